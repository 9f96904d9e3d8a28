"""The ``apprentice`` command: thin, like nodes/."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from .calibrate import calibrate
from .convert import convert
from .distill import distill
from .draw import draw
from .finetune import finetune
from .inspect import inspect
from .models import models
from .plan import plan_memory
from .prefer import prefer
from .running import LARGE, Finite, Threads, set_threads, told_in_words
from .serve import serve

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Apprentice: students, oracles and teachers.")
bench = typer.Typer(no_args_is_help=True, help="Measure, and print what was measured.")
app.add_typer(bench, name="bench")
app.add_typer(distill, name="distill")
app.add_typer(models, name="models")
app.command()(calibrate)
app.command()(convert)
app.command(cls=Finite)(draw)
app.command()(inspect)
app.command("plan")(plan_memory)
app.command(cls=Finite)(finetune)
app.command(cls=Finite)(prefer)
app.command(cls=Finite)(serve)


@app.callback()
def main() -> None:
    """Keep ``bench`` a subcommand."""


Quick = Annotated[bool, typer.Option("--quick", help="A few minutes on two cores.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]


def _benchmark(name: str, threads: int | None = None, parameters: int = 0) -> Any:
    """The benchmark's module; PyTorch's threads are set for it.

    Args:
        parameters: Of its networks, where they are larger than the built-in ones.

    Raises:
        typer.BadParameter: Benchmarks, or what they need, are not installed.
    """
    try:
        set_threads(threads, parameters=parameters)
        return import_module(f"..benchmarks.{name}", __package__)
    except ModuleNotFoundError as error:
        raise typer.BadParameter(
            f"'{error.name}' is missing: benchmarks come with the repository, not with the registry's package; clone it and "
            f"run pip install -e '.[bench]'."
        ) from error


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _report(measure: Callable[[], Any], json: Path | None) -> None:
    """Measure, and save the figures where that is asked for; what is missing is told in words.

    Raises:
        typer.BadParameter: A file, a library or a ComfyUI is missing, or an option doesn't fit.
    """
    try:
        with told_in_words():
            figures = measure()
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"'{error.name}' is missing: pip install -e '.[bench]'.") from error
    if json:
        figures.save(json)


@bench.command()
def adaptive(
    quick: Quick = False,
    json: Json = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("adaptive.png"),
    threads: Threads = None,
) -> None:
    """Student, teacher and adaptive collaboration at equal cost, by a judge that no gate saw."""
    benchmark = _benchmark("adaptive", threads)
    _report(lambda: benchmark.run(quick, plot, _say), json)


@bench.command()
def explore(
    quick: Quick = False,
    json: Json = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("explore.png"),
    work: Annotated[Path | None, typer.Option(help="Keep what is drawn here; a stopped benchmark goes on with it.")] = None,
    threads: Threads = None,
) -> None:
    """Spending where it pays (Explore) beside best-of-N, adaptive collaboration and the teacher, at equal cost."""
    benchmark = _benchmark("explore", threads)
    _report(lambda: benchmark.run(quick, plot, _say, work), json)


@bench.command()
def style(
    quick: Quick = False,
    json: Json = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("style.png"),
    work: Annotated[Path | None, typer.Option(help="Keep what is learned here; a stopped benchmark goes on with it.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each way; 3, and 1 with --quick.")] = None,
    threads: Threads = None,
) -> None:
    """A look of the slow model's in two steps: a warm start beside a cold one, LCM, and the LoRA put on the student."""
    benchmark = _benchmark("style", threads)
    _report(lambda: benchmark.run(quick, plot, _say, work, seeds), json)


@bench.command()
def students(
    quick: Quick = False,
    json: Json = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("students.png"),
    threads: Threads = None,
) -> None:
    """Each kind of student beside its teacher: how often it is better, on what that depends, and whether they complement."""
    benchmark = _benchmark("students", threads)
    _report(lambda: benchmark.run(quick, plot, _say), json)


@bench.command()
def oracles(
    quick: Quick = False,
    json: Json = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes; with --pictures there is none.")] = Path("oracles.png"),
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Measure instead whether oracles know a picture's prompt from another's.")
    ] = False,
    models: Annotated[Path | None, typer.Option(help="With --pictures: published oracles, a ComfyUI's models/oracles.")] = None,
    packages: Annotated[
        Path | None, typer.Option(help="With --pictures: the site-packages with ComfyUI's templates, if not this Python's.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Oracles against their authors' path, and every threshold on an oracle of dialled accuracy; or on pictures with prompts."""
    if pictures:
        templates = _benchmark("picture_oracles", threads, LARGE)
        _report(lambda: templates.run(quick, models, packages, _say), json)
        return
    benchmark = _benchmark("oracles", threads, LARGE)
    _report(lambda: benchmark.run(quick, plot, _say), json)


@bench.command()
def cascade(quick: Quick = False, json: Json = None, threads: Threads = None) -> None:
    """What a cascade of two oracles saves, and how often it decides otherwise than the heavy one alone."""
    benchmark = _benchmark("cascade", threads)
    _report(lambda: benchmark.run(quick, _say), json)


@bench.command()
def digits(
    quick: Quick = False,
    json: Json = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes; with --search there is none.")] = Path("digits.png"),
    search: Annotated[bool, typer.Option("--search", help="Change one setting at a time in short runs instead.")] = False,
    work: Annotated[Path | None, typer.Option(help="Keep the runs here; a stopped benchmark goes on with what is there.")] = None,
    threads: Threads = None,
) -> None:
    """Distil an EDM network of handwritten digits into one step, with three seeds, until it draws as its teacher does."""
    benchmark = _benchmark("digits", threads)
    _report(lambda: benchmark.search(quick, _say, work) if search else benchmark.run(quick, plot, _say, work), json)


_PUBLISHED = (
    "One of the field's data sets, laid out below --data as CoOp's DATASETS.md says. In the paper with ViT-B/16, base / novel, "
    "not measured here: imagenet 80.83 / 74.66, caltech101 98.91 / 96.65, oxford_pets 96.30 / 98.01, stanford_cars 82.80 / "
    "83.37, oxford_flowers 99.42 / 82.62, food101 92.43 / 93.68, fgvc_aircraft 49.12 / 41.81, sun397 83.69 / 81.54, dtd 85.84 / "
    "71.37, eurosat 97.54 / 82.08, ucf101 89.71 / 82.27; mean 86.96 / 80.73, harmonic 83.73."
)


@bench.command(cls=Finite)
def promptkd(
    quick: Quick = False,
    json: Json = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("promptkd.png"),
    data: Annotated[
        Path | None, typer.Option(help="Photos instead of icons: a folder with train/ and test/, or the root of data sets.")
    ] = None,
    dataset: Annotated[str, typer.Option(help=_PUBLISHED)] = "",
    teacher: Annotated[Path | None, typer.Option(help="With --data: the large CLIP.")] = None,
    student: Annotated[Path | None, typer.Option(help="With --data: the small CLIP.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="With --data: the teacher's learned tokens.")] = None,
    shots: Annotated[
        int, typer.Option(min=0, help="With --data and no tokens: pictures a base class for the teacher; 0 is zero-shot.")
    ] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="With --data: runs.")] = 3,
    epochs: Annotated[int, typer.Option(min=2, help="With --data: of the student.")] = 20,
    weight: Annotated[float, typer.Option(help="With --data: of the loss. Published: 200 on flowers, aircraft, dtd.")] = 1000.0,
    depth: Annotated[int, typer.Option(min=1, help="With --data: blocks with tokens; in the paper 3 across data sets.")] = 9,
    across: Annotated[
        bool, typer.Option("--across", help="With --data: cross-dataset, for a teacher that learned elsewhere (--tokens).")
    ] = False,
    work: Annotated[Path | None, typer.Option(help="Without --data: keep the parts here; a stopped one goes on there.")] = None,
    threads: Threads = None,
) -> None:
    """A small CLIP distilled for a domain by PromptKD, against zero-shot ones: base and novel names, speed, decisions.

    Without --data on icons of a vendor that no CLIP here has seen; with it the paper's protocols on photos.
    """
    if data is None:
        icons = _benchmark("promptkd", threads)
        _report(lambda: icons.run(quick, plot, _say, work), json)
    elif teacher is None or student is None:
        raise typer.BadParameter("--data needs two CLIPs: give --teacher and --student.")
    else:
        photos = _benchmark("promptkd_data", threads, LARGE)
        task = (data, dataset, teacher, student, tokens, shots, seeds, epochs, weight, depth, across)
        _report(lambda: photos.run(photos.Task(*task), _say), json)


@bench.command()
def control(
    quick: Quick = False,
    json: Json = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("control.png"),
    toy: Annotated[bool, typer.Option("--toy", help="A problem with one dimension and an exact answer instead.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Measure what each algorithm holds in memory instead.")] = False,
    work: Annotated[Path | None, typer.Option(help="Keep the runs here; a stopped benchmark goes on with what is there.")] = None,
    tilted: Annotated[bool, typer.Option("--tilted", help="Students by SiD towards the tilted teacher instead.")] = False,
    threads: Threads = None,
) -> None:
    """Fine-tuning by an oracle: the tiny world's teacher and its student, what it costs in variety, and the loop closed."""
    benchmark = _benchmark("control_memory" if memory else "control_tilted" if tilted else "control", threads)
    if memory:
        _report(lambda: benchmark.run(quick, _say), json)
    else:
        _report(lambda: benchmark.run_toy(quick, plot, _say) if toy else benchmark.run(quick, plot, _say, work), json)


@bench.command()
def sid(
    quick: Quick = False,
    json: Json = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes; with --speed there is none.")] = Path("sid.png"),
    speed: Annotated[bool, typer.Option("--speed", help="Measure the training step instead: CPU time and memory.")] = False,
    threads: Threads = None,
) -> None:
    """The one-step student of SiD against its teacher and the consistency student; or how fast SiD trains."""
    benchmark = _benchmark("sid_speed" if speed else "sid", threads)
    _report(lambda: benchmark.run(quick, _say) if speed else benchmark.run(quick, plot, _say), json)


@bench.command()
def variety(
    quick: Quick = False,
    json: Json = None,
    work: Annotated[Path | None, typer.Option(help="Keep the runs here; a stopped benchmark goes on with what is there.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every way.")] = 1,
    threads: Threads = None,
) -> None:
    """What keeps the variety of SiD's students on the tiny world: guidance, an anchor, consistency; and what it costs."""
    benchmark = _benchmark("variety", threads)
    _report(lambda: benchmark.run(quick, _say, work, seeds), json)


@bench.command()
def bfloat16(
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds.")] = False,
    json: Json = None,
    threads: Threads = None,
) -> None:
    """What bfloat16 costs on this CPU, and on it without its newer instructions, over float32."""
    benchmark = _benchmark("bfloat16", threads)
    _report(lambda: benchmark.run(quick, _say), json)


@bench.command()
def families(
    json: Annotated[Path | None, typer.Option("--json", help="Write the table here.")] = None,
    threads: Threads = None,
) -> None:
    """What the pack draws rightly with every family of models, at tiny size, in the ComfyUI in $COMFYUI_PATH."""
    benchmark = _benchmark("families", threads)
    _report(lambda: benchmark.run(_say), json)


@bench.command()
def decoder_memory(json: Annotated[Path | None, typer.Option("--json", help="Write the table here.")] = None) -> None:
    """What Reward Finetune holds in memory for its way back through SDXL's VAE; needs a ComfyUI in $COMFYUI_PATH."""
    _report(_benchmark("decoder_memory").run, json)


@bench.command()
def memory(
    quick: Quick = False,
    json: Json = None,
    sizes: Annotated[bool, typer.Option("--sizes", help="Account for published networks at their true size instead.")] = False,
    threads: Threads = None,
) -> None:
    """What a training's memory is accounted for beside what it takes, in a ComfyUI in $COMFYUI_PATH."""
    benchmark = _benchmark("memory_targets" if sizes else "memory", threads)
    _report(lambda: benchmark.run(quick, _say), json)


@bench.command()
def gpu_memory(
    network: Annotated[list[str] | None, typer.Argument(help="SDXL, Z-Image, 'Flux dev', Qwen-Image; all of them.")] = None,
    small: Annotated[bool, typer.Option("--small", help="A layer or two, on whatever device there is, to try it.")] = False,
    json: Json = None,
    threads: Threads = None,
) -> None:
    """Iterations of SiD Distill on random weights of the true size: peak memory and seconds on this GPU, beside the account."""
    benchmark = _benchmark("memory_targets", threads)
    unknown = set(network or ()) - set(benchmark.CARDS)
    if unknown:
        raise typer.BadParameter(f"There is no network '{min(unknown)}'; there are {', '.join(benchmark.CARDS)}.")
    _report(lambda: benchmark.run_on_gpu(small, _say, network or ()), json)


@bench.command()
def fleet(
    quick: Annotated[bool, typer.Option("--quick", help="A minute on one core.")] = False,
    json: Json = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes; with --draw there is none.")] = Path("fleet.png"),
    seeds: Annotated[int | None, typer.Option(min=1, help="Simulated days of each policy; 5, and 2 with --quick.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Of the service: evaluation=0.08, for one; again for more: docs/scale.md.")
    ] = None,
    draw: Annotated[Path | None, typer.Option(help="Draw the tiny world's scores anew instead, into this file.")] = None,
    threads: Threads = None,
) -> None:
    """A hundred million pictures a day on paper: a simulated service's GPUs, latency, cost and quality, by policy."""
    benchmark = _benchmark("fleet", threads)
    if draw:
        _report(lambda: benchmark.draw(draw, _say), None)
    else:
        _report(lambda: benchmark.run(quick, plot, _say, seeds, settings or ()), json)


@bench.command("serve")
def serve_bench(
    quick: Annotated[bool, typer.Option("--quick", help="A minute.")] = False,
    json: Json = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each policy under load; 5, and 1 with --quick.")] = None,
    threads: Threads = None,
) -> None:
    """The service under load and over killed workers, on the loopback: late, lost and doubled answers; takes ten minutes."""
    benchmark = _benchmark("serve", threads)
    _report(lambda: benchmark.run(quick, _say, seeds), json)


@bench.command("draw")
def bench_draw(quick: Quick = False, json: Json = None, threads: Threads = None) -> None:
    """What apprentice draw itself costs a picture, and what Ray's workers gain over one process; with $COMFYUI_PATH."""
    benchmark = _benchmark("draw", threads)
    _report(lambda: benchmark.run(quick, _say), json)


@bench.command()
def startup(json: Json = None) -> None:
    """What the pack adds to the start-up of the ComfyUI in $COMFYUI_PATH."""
    _report(_benchmark("startup").run, json)


@bench.command()
def taste(quick: Quick = False, json: Json = None, threads: Threads = None) -> None:
    """What clicks of simulated artists teach, and what their taste does for the gate, on prompts that they never saw."""
    benchmark = _benchmark("taste", threads)
    _report(lambda: benchmark.run(quick, _say), json)
