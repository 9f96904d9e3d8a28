"""What the training nodes share: a run under a name, the file that it makes, and its progress on the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from ..bridge import training as bridge
from ..bridge.progress import show_text
from ..files import save_safetensors_atomically
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
        later: Facts of settings that came later, None where they aren't used: runs of before go on, and their files are theirs.

    Raises:
        ValueError: The name can't be a file's; another run, or a file that this run did not make, has it.
    """

    def __init__(
        self, name: str, what: str, kind: str, facts: dict[str, Any], free: tuple[str, ...] = (),
        later: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        later = later or {}
        self.name, self.kind, self.facts, self.free = folders.check_name(name, what), kind, {**facts, **later}, free
        self.folder = folders.run_folder(self.name)
        self.folder.check(self.facts, free)
        used = {key: value for key, value in later.items() if value is not None}
        self.target = Target.of(folders.made_file(kind, self.name, what), {**facts, **used}, free)
        self.check_target()

    def foresee(self, forecast: Forecast) -> None:
        """Tell on the node what the run will take, before it starts; ``foreseen`` says it once more beside the result."""
        self.foreseen = f"Foreseen: {forecast}."
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
