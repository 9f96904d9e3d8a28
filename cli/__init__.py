"""The ``apprentice`` command: thin, like nodes/."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from .calibrate import calibrate
from .convert import convert
from .distill import distill
from .models import models

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Apprentice: students, oracles and teachers.")
bench = typer.Typer(no_args_is_help=True, help="Measure, and print what was measured.")
app.add_typer(bench, name="bench")
app.add_typer(distill, name="distill")
app.add_typer(models, name="models")
app.command()(calibrate)
app.command()(convert)


@app.callback()
def main() -> None:
    """Keep ``bench`` a subcommand."""


def _benchmark(name: str) -> Any:
    """The benchmark's module.

    Raises:
        typer.BadParameter: Benchmarks, or what they need, are not installed.
    """
    try:
        return importlib.import_module(f"..benchmarks.{name}", __package__)
    except ModuleNotFoundError as error:
        raise typer.BadParameter(
            f"'{error.name}' is missing: benchmarks come with the repository, not with the registry's package; clone it and "
            f"run pip install -e '.[bench]'."
        ) from error


@bench.command()
def adaptive(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes on two cores.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("adaptive.png"),
) -> None:
    """Student, teacher and adaptive collaboration at equal cost, by a judge that no gate saw."""
    benchmark = _benchmark("adaptive")
    figures = benchmark.run(quick, plot, lambda text: typer.echo(text, err=True))
    if json:
        figures.save(json)


@bench.command()
def oracles(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes on two cores.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("oracles.png"),
) -> None:
    """Oracles against their authors' path, and every threshold on an oracle of dialled accuracy."""
    benchmark = _benchmark("oracles")
    figures = benchmark.run(quick, plot, lambda text: typer.echo(text, err=True))
    if json:
        figures.save(json)


@bench.command()
def digits(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes on two cores.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Distil an EDM network of handwritten digits into one step, with three seeds."""
    benchmark = _benchmark("digits")
    try:
        figures = benchmark.run(quick, lambda text: typer.echo(text, err=True))
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"'{error.name}' is missing: pip install -e '.[bench]'.") from error
    if json:
        figures.save(json)


@bench.command()
def promptkd(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes on two cores.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("promptkd.png"),
) -> None:
    """A small CLIP distilled for a domain by PromptKD, against zero-shot ones: base and novel names, speed, decisions."""
    figures = _benchmark("promptkd").run(quick, plot, lambda text: typer.echo(text, err=True))
    if json:
        figures.save(json)


@bench.command()
def sid(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes on two cores.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes; with --speed there is none.")] = Path("sid.png"),
    speed: Annotated[bool, typer.Option("--speed", help="Measure the training step instead: CPU time and memory.")] = False,
) -> None:
    """The one-step student of SiD against its teacher and the consistency student; or how fast SiD trains."""
    say = lambda text: typer.echo(text, err=True)  # noqa: E731
    try:
        figures = _benchmark("sid_speed").run(quick, say) if speed else _benchmark("sid").run(quick, plot, say)
    except (FileNotFoundError, RuntimeError) as error:
        raise typer.BadParameter(str(error)) from error
    if json:
        figures.save(json)


@bench.command()
def startup(json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None) -> None:
    """What the pack adds to the start-up of the ComfyUI in $COMFYUI_PATH."""
    benchmark = _benchmark("startup")
    try:
        figures = benchmark.run()
    except RuntimeError as error:
        raise typer.BadParameter(str(error)) from error
    if json:
        figures.save(json)
