"""What the commands that train share: where to compute, how to stop, and how to say what went wrong."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from ..training.loop import Ema, Means, Watch
    from ..training.processes import Processes
    from ..training.run_folder import RunFolder
    from ..training.target import Target


class Device(str, Enum):
    """Where to compute; auto takes a GPU if there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Finite(TyperCommand):
    """A command whose numbers are numbers: "nan" and "inf" are floats to the parser, and pass its min and max."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the parser does, then look."""
        rest: list[str] = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise typer.BadParameter(f"--{name.replace('_', '-')} is {value}; it must be a number.")
        return rest


class Precision(str, Enum):
    """What the networks compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


_THREADS = "CPU threads. Left out: 1 for networks as small as the built-in ones, on a CPU; else PyTorch's own choice."
Threads = Annotated[int | None, typer.Option(min=1, help=_THREADS)]
LARGE = 30_000_000
"""Parameters from which a network is computed on all cores: below, two threads gain little on free cores and cost a
multiple on busy ones."""


def set_threads(asked: int | None, device: str = "cpu", parameters: int = 0) -> None:
    """Set PyTorch's threads: as ``asked``, or as ``OMP_NUM_THREADS`` says, or one on a CPU for networks below ``LARGE``."""
    import torch

    if asked is not None:
        torch.set_num_threads(asked)
    elif device == "cpu" and parameters < LARGE and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def check_precision(precision: str, device: str) -> None:
    """Tell people who ask for a precision that this device is slow in."""
    from ..precision import DTYPES, warning

    if slow := warning(DTYPES[precision], device):
        typer.echo(slow, err=True)


@contextmanager
def told_in_words() -> Iterator[None]:
    """What goes wrong, as a sentence and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except FloatingPointError as error:
        typer.echo(f"{error} A run with other settings needs another --work.", err=True)
        raise typer.Exit(1) from error
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


def pick_device(asked: str, processes: Processes | None = None) -> str:
    """Where to compute.

    Raises:
        ValueError: It isn't there, or accelerate has chosen another.
    """
    import torch

    if processes is not None and processes.count > 1:
        found = str(processes.accelerator.device)
        if asked not in ("auto", found.split(":")[0]):
            raise ValueError(f"accelerate launch computes on {found}, not on {asked}: leave --device out.")
        return found
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, found in there.items() if found)
    if not there[asked]:
        raise ValueError(f"PyTorch finds no {asked} device here: leave --device out.")
    return asked


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether the run was told to stop, by Ctrl-C or by whoever ends processes; a second Ctrl-C does not wait for the step."""
    told: list[int] = []

    def on_signal(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and number in told:
            raise KeyboardInterrupt
        told.append(number)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar(label: str, steps: int, done: int) -> Iterator[tuple[Callable[[int, Ema], None], Callable[..., None]]]:
    """A bar with an estimate, or lines where there is no terminal: ``Watch``'s ``after_step`` and ``report``."""
    losses = [""]
    bar: Any
    with typer.progressbar(
        length=steps - done, label=label, show_eta=True, file=sys.stderr, item_show_func=lambda _: losses[0]
    ) as bar:

        def after_step(step: int, _ema: Ema) -> None:
            bar.update(step - done - bar.pos)

        def report(step: int, pictures: int, means: Means) -> None:
            losses[0] = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
            if not sys.stderr.isatty():
                typer.echo(f"step {step:,}, pictures {pictures:,}, {losses[0]}", err=True)

        yield after_step, report


def say(sentence: str) -> None:
    """Beside the progress bar."""
    typer.echo(sentence, err=True)


def check_out(out: Path, force: bool, facts: dict[str, Any], free: tuple[str, ...] = ()) -> Target:
    """The file that a run of ``facts`` makes, if it may: ``--force`` overwrites what other runs or people made.

    Raises:
        ValueError: It may not.
    """
    from ..training.target import Target

    target = Target.of(out, facts, free)
    if not force:
        target.check(otherwise=", or add --force to overwrite it")
    return target


def check_suffix(out: Path) -> None:
    """Whether the file can be what is made.

    Raises:
        ValueError: It can't.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"{out.name} must end in .safetensors.")


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text that aren't blank.

    Raises:
        ValueError: It isn't a text in UTF-8.
        OSError: It can't be read.
    """
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8; save it as such, one entry a line.") from error


@contextmanager
def claim(
    path: Path, facts: dict[str, Any], free: tuple[str, ...], processes: Processes | None = None
) -> Iterator[RunFolder]:
    """Take the run's folder, and hold it; what is ``free`` may change while a run goes on.

    Raises:
        ValueError: It holds another run, or another process works in it.
    """
    from ..training.run_folder import Differences, RunFolder

    def refusal(other: Differences) -> str:
        return f"{path} holds a run with another {' and '.join(list(other)[:3])}: give the same options or another --work."

    folder = RunFolder(path)
    with folder.held(facts, free, refusal) if processes is None or processes.main else nullcontext():
        yield folder


@contextmanager
def watched(label: str, folder: RunFolder, steps: int, processes: Processes | None = None) -> Iterator[Watch]:
    """A bar, a log, and Ctrl-C that saves."""
    from ..training.loop import Watch

    main = processes is None or processes.main

    def stopped_text() -> str:
        return f"Stopped: {folder.pictures_seen(1):,} of {steps:,} steps are saved in {folder.path}. The same command goes on."

    with stop_signals() as stopped:
        try:
            if main:
                with progress_bar(label, steps, folder.pictures_seen(1)) as (after_step, report):
                    yield Watch(report, 10, folder.log, stopped, after_step=after_step, say=say)
            else:
                yield Watch(interrupted=stopped)
        except KeyboardInterrupt:
            if main:
                typer.echo(stopped_text())
            raise


@contextmanager
def launched() -> Iterator[Processes]:
    """The processes of ``accelerate launch``, which leave each other in the end."""
    from ..training.processes import Processes

    processes = Processes.launched()
    try:
        yield processes
    finally:
        processes.end()
