"""What the commands that train share: where to compute, how to stop, and how to say what went wrong."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..training.options import option
from ..training.processes import Processes
from ..training.progress import Progress, Screen
from ..training.run_folder import RunFolder
from ..training.target import Target

if TYPE_CHECKING:
    from torch import Tensor, nn


class Finite(TyperCommand):
    """A command whose numbers are numbers: "nan" and "inf" are floats to the parser, and pass its min and max."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the parser does, then look."""
        rest: list[str] = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise typer.BadParameter(f"--{name.replace('_', '-')} is {value}; it must be a number.")
        return rest


_THREADS = "CPU threads. Left out: 1 for networks as small as the built-in ones, on a CPU; else PyTorch's own choice."
Threads = Annotated[int | None, typer.Option(min=1, help=_THREADS)]
LARGE = 30_000_000
"""Parameters from which a network is computed on all cores: below, two threads gain little on free cores and cost a
multiple on busy ones."""


@dataclass(frozen=True)
class RunOptions:
    """What every command that trains takes."""

    work: Path | None = option(None, "The run's folder: checkpoint, losses and what else it keeps; OUT with .run.", node=None)
    device: str = option("auto", "auto takes a GPU if there is one.", choices="device", node=None)
    force: bool = option(False, "Overwrite OUT.", flag=True, node=None)
    threads: int | None = option(None, _THREADS, least=1, node=None)


def set_threads(asked: int | None, device: str = "cpu", parameters: int = 0) -> None:
    """Set PyTorch's threads: as ``asked``, or as ``OMP_NUM_THREADS`` says, or one on a CPU for networks below ``LARGE``."""
    import torch

    if asked is not None:
        torch.set_num_threads(asked)
    elif device == "cpu" and parameters < LARGE and "OMP_NUM_THREADS" not in environ:
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
        raise typer.BadParameter(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    """What the system says of a file, "[Errno 21] Is a directory", in words; other errors have them already."""
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return str(error)
    ways: dict[type[OSError], str] = {
        FileNotFoundError: "There is no file or folder {}.", IsADirectoryError: "{} is a folder; give a file.",
        NotADirectoryError: "{} lies in a file, where a folder should be.",
        PermissionError: "{} may not be read or written by you; take another place, or change who may.",
    }  # fmt: skip
    way = next((text for kind, text in ways.items() if isinstance(error, kind)), f"{{}} can't be used: {error.strerror}.")
    return way.format(error.filename)


def pick_device(asked: str, processes: Processes) -> str:
    """Where to compute.

    Raises:
        ValueError: It isn't there, or accelerate has chosen another.
    """
    import torch

    if processes.count > 1:
        chosen = str(processes.accelerator.device)
        if asked not in ("auto", chosen.split(":")[0]):
            raise ValueError(f"accelerate launch computes on {chosen}, not on {asked}: leave --device out.")
        return chosen
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, is_there in there.items() if is_there)
    if not there[asked]:
        raise ValueError(f"PyTorch finds no {asked} device here: leave --device out.")
    return asked


def place(networks: Sequence[nn.Module], flags: RunOptions, precision: str, processes: Processes) -> None:
    """The networks onto the device, and PyTorch's threads as they suit them."""
    import torch

    where = pick_device(flags.device, processes)
    set_threads(flags.threads, where, sum(p.numel() for network in networks for p in network.parameters()))
    if processes.main:
        check_precision(precision, where)
    for network in networks:
        network.to(where, torch.float16 if precision == "fp16" else torch.float32)


@contextmanager
def stop_signals(hurry: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Whether the run was told to stop, by Ctrl-C or by whoever ends processes; a second Ctrl-C does not wait for the step.

    Args:
        hurry: Called at once when it is told.
    """
    signals: list[int] = []

    def on_signal(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and number in signals:
            raise KeyboardInterrupt
        signals.append(number)
        hurry()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Terminal(Screen):
    """A bar with the losses and the time left, or lines where there is no terminal."""

    text = ""
    progress_bar: Any

    def bar(self, done: int, total: int, text: str = "", preview: Callable[[], Any] | None = None) -> None:
        """See ``Screen``."""
        bar = self.progress_bar
        if total != bar.length:  # what comes before the run has a bar of its own
            bar.length, bar.pos, bar.finished, self.text = total, 0, False, ""
        self.text = text or self.text
        bar.update(done - bar.pos)

    def report(self, text: str) -> None:
        """See ``Screen``."""
        self.text = text
        if not sys.stderr.isatty():
            self.say(text)

    def say(self, text: str) -> None:
        """See ``Screen``."""
        typer.echo(text, err=True)


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


class CommandRun:
    """A run of a command: its folder, the file that it makes, and how people follow it.

    Args:
        out: The file that is made; ``--force`` overwrites what other runs or people made.
        facts: What the run is made of.
        free: What of it may change while a run goes on.

    Raises:
        ValueError: There is another file.
    """

    def __init__(
        self, out: Path, flags: RunOptions, processes: Processes, facts: dict[str, Any], free: tuple[str, ...] = ()
    ) -> None:
        self.facts, self.free, self.processes = facts, free, processes
        self.folder = RunFolder(flags.work or out.with_suffix(".run"), "give the same options or another --work")
        self.target = Target.of(out, facts, free)
        if not flags.force:
            self.target.check(otherwise=", or add --force to overwrite it")

    @contextmanager
    def followed(
        self, label: str, total: int, batch: int = 1, unit: str = "steps",
        look: Callable[[int, Mapping[str, Tensor]], None] | None = None,
    ) -> Iterator[Progress]:  # fmt: skip
        """Hold the folder and show ``total`` steps of ``batch`` units each, in one of several processes; Ctrl-C saves.

        Raises:
            ValueError: The folder holds another run, or another process works in it.
        """
        if not self.processes.main:
            with stop_signals() as stopped:
                yield Progress(Screen(stopped), total)
            return
        try:
            with self.folder.held(self.facts, self.free), stop_signals() as stopped:
                screen = Terminal(stopped)
                with typer.progressbar(
                    length=total, label=label, show_eta=False, file=sys.stderr, item_show_func=lambda _: screen.text
                ) as screen.progress_bar:
                    yield Progress(screen, total, look=look)
        except KeyboardInterrupt:
            saved = f"{self.folder.pictures_seen(batch):,} of {total * batch:,} {unit} are saved in {self.folder.path}"
            typer.echo(f"Stopped: {saved}. The same command goes on.")
            raise


@contextmanager
def launched() -> Iterator[Processes]:
    """The processes of ``accelerate launch``, which leave each other in the end."""
    processes = Processes.launched()
    try:
        yield processes
    finally:
        processes.end()
