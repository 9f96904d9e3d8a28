"""What the commands that train share: where to compute, how to stop, and how to say what went wrong."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..training.loop import Ema, Means
    from ..training.processes import Processes


class Device(str, Enum):
    """Where to compute; auto takes a GPU if there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Precision(str, Enum):
    """What the networks compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


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


def pick_device(asked: str, processes: Processes) -> str:
    """Where to compute.

    Raises:
        ValueError: It isn't there, or accelerate has chosen another.
    """
    import torch

    if processes.count > 1:
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
