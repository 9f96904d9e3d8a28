"""What the training nodes share: a run under a name, the file that it makes, and its progress on the node."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from ..bridge import training as bridge
from ..bridge.memory import room
from ..bridge.progress import show_text
from ..files import save_safetensors_atomically
from ..training.account import GIB, REWARD, SLACK, UNACCOUNTED, Job, Sketch, account, plan, verdict
from ..training.forecast import Forecast
from ..training.progress import Progress
from ..training.target import Target
from . import folders

T = TypeVar("T")


class NodeRun:
    """A run under a name: its folder, looked at before the work, and the file that it makes.

    Args:
        what: Of the file, for messages: "student".
        kind: Of models, in ComfyUI's words: where the file goes.
        facts: What the run is made of.
        free: What changes memory and not the result, or may change while a run goes on.

    Raises:
        ValueError: The name can't be a file's; another run, or a file that this run did not make, has it.
    """

    accounted, job = "", Job()

    def __init__(self, name: str, what: str, kind: str, facts: dict[str, Any], free: tuple[str, ...] = ()) -> None:
        self.name, self.kind, self.facts, self.free = folders.check_name(name, what), kind, facts, free
        self.folder = folders.run_folder(self.name)
        self.folder.check(facts, free)
        self.target = Target.of(folders.made_file(kind, self.name, what), facts, free)
        self.check_target()

    def fitting(self, sketch: Sketch, job: Job) -> Job:
        """``job`` as it fits the card, before anything is copied there: pass by pass where it must be.

        Told is the account, by ``foresee`` too. On a CPU, and of networks that don't run without values, there is none.

        Raises:
            ValueError: It can't fit; the sentence says what to turn down.
        """
        if (free := room()) is None:
            return job
        try:
            found = account(sketch, job)
            if found.total > free and job.checkpointing and job.method != REWARD:
                job = replace(job, apart=True)
                found = account(sketch, job)
            steps = plan(job, lambda turned: account(sketch, turned), free) if found.total * SLACK > free else []
        except UNACCOUNTED as error:
            logging.info("Apprentice: this network's memory can't be accounted without computing: %s", error)
            return job
        if steps:
            raise ValueError(verdict(steps, free))
        self.accounted = f"{found}{', pass by pass' if job.apart else ''}, of {free / GIB:.1f} GiB that are free"
        if found.total > free:
            self.accounted += ": that is close, so it may fail for want of memory"
        show_text(f"Memory: {self.accounted}.")
        return job

    def foresee(self, forecast: Forecast) -> None:
        """Tell on the node what the run will take, before it starts; ``foreseen`` says it once more beside the result."""
        self.foreseen = f"Foreseen: {forecast}." + (f" Memory: {self.accounted}." if self.accounted else "")
        show_text(self.foreseen)

    def follow(self, work: Callable[[Progress], T], total: int, report_every: int, **more: Any) -> T:
        """``work`` with the folder held, a progress bar, and cancelling that saves first.

        Args:
            total: Steps.
            **more: See ``Progress``.
        """
        screen = bridge.NodeScreen(total)
        try:
            with self.folder.held(self.facts, self.free):
                return work(Progress(screen, total, report_every, **more))
        except (KeyboardInterrupt, bridge.Cancelled):
            screen.stop()

    def check_target(self) -> None:
        """Whether the file may be written still: a run takes hours.

        Raises:
            ValueError: Somebody has put another there meanwhile.
        """
        folders.check_target(self.target, self.kind)

    def save(self, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
        """Write the file, marked as this run's; see ``check_target``."""
        self.check_target()
        save_safetensors_atomically(tensors, self.target.file, about | self.target.about)
