"""The ``apprentice`` command: thin, like nodes/."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Apprentice: students, oracles and teachers.")
bench = typer.Typer(no_args_is_help=True, help="Measure, and print what was measured.")
app.add_typer(bench, name="bench")


@app.callback()
def main() -> None:
    """Keep ``bench`` a subcommand."""


@bench.command()
def adaptive(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes on two cores.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("adaptive.png"),
) -> None:
    """Student, teacher and adaptive collaboration at equal cost, by a judge that no gate saw."""
    try:
        from ..benchmarks import adaptive as benchmark
    except ModuleNotFoundError as error:
        raise typer.BadParameter(
            f"'{error.name}' is missing: benchmarks come with the repository, not with the registry's package; clone it and "
            f"run pip install -e '.[bench]'."
        ) from error
    figures = benchmark.run(quick, plot, lambda text: typer.echo(text, err=True))
    if json:
        figures.save(json)


@bench.command()
def startup(json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None) -> None:
    """What the pack adds to the start-up of the ComfyUI in $COMFYUI_PATH."""
    from ..benchmarks import startup as benchmark

    try:
        figures = benchmark.run()
    except RuntimeError as error:
        raise typer.BadParameter(str(error)) from error
    if json:
        figures.save(json)
