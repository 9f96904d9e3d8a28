"""How people follow a run: what is done, what it learns, how long it takes still. The same for a node and for a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .loop import Means, Watch


class Clock:
    """How long a run will still take, from how long it has taken since it began or resumed."""

    def __init__(self) -> None:
        self.begun, self.first = time.monotonic(), -1

    def step(self, step: int) -> None:
        """One more step is done."""
        if self.first < 0:
            self.begun, self.first = time.monotonic(), step

    def left(self, step: int, total: int) -> str:
        """In words, after ``step`` of ``total``."""
        if step <= self.first or self.first < 0:
            return "estimating the time left"
        seconds = (time.monotonic() - self.begun) / (step - self.first) * (total - step)
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"about {hours} h {minutes:02d} min left" if hours else f"about {max(minutes, 1)} min left"


class Screen:
    """Where a run is shown, and stopped: ComfyUI's node that runs, a terminal; or nowhere, as by this one.

    Attributes:
        cancelled_by: What networks raise by themselves when somebody cancels.
    """

    cancelled_by: tuple[type[BaseException], ...] = ()

    def __init__(self, stopped: Callable[[], bool] = lambda: False) -> None:
        self.stopped = stopped

    def bar(self, done: int, total: int, text: str = "", preview: Callable[[], Any] | None = None) -> None:
        """``done`` of ``total``, with a text beside it; ``preview`` makes a picture."""

    def say(self, text: str) -> None:
        """Something to know."""

    def report(self, text: str) -> None:
        """A line of how the run goes."""
        self.say(text)

    def interrupted(self) -> bool:
        """Whether somebody wants it to stop."""
        return self.stopped()


@dataclass
class Progress:
    """A run of ``total`` steps on a screen.

    Attributes:
        report_every: Steps between reports and lines of the log.
        look: Told of every step and the averaged weights; may answer with a function that makes a preview.
        preview: Of pictures that are drawn before the run.
    """

    screen: Screen
    total: int
    report_every: int = 10
    look: Callable[[int, Mapping[str, Tensor]], Callable[[], Any] | None] | None = None
    preview: Callable[[Tensor], Any] | None = None

    def __post_init__(self) -> None:
        self._steps, self._drawn = Clock(), Clock()

    @property
    def watch(self) -> Watch:
        """What the loop tells."""
        return Watch(
            self._report, self.report_every, self.screen.interrupted, self.screen.cancelled_by, after_step=self._after_step,
            say=self.screen.say,
        )  # fmt: skip

    def drawing(self, done: int, total: int, pictures: Tensor) -> None:
        """See ``baseline.Drawing``."""
        text = f"Pictures of the model as it is: {done:,} of {total:,} evaluations, {self._drawn.left(done, total)}"
        make = self.preview
        self.screen.bar(done, total, text, None if make is None else lambda: make(pictures))
        self._drawn.step(done)
        if self.screen.interrupted():
            raise KeyboardInterrupt

    def _after_step(self, step: int, average: Mapping[str, Tensor]) -> None:
        self.screen.bar(step, self.total, preview=self.look(step, average) if self.look else None)
        self._steps.step(step)

    def _report(self, step: int, pictures: int, means: Means) -> None:
        losses = "".join(f"{name} {value:.4g}, " for name, value in means.items())
        left = self._steps.left(step, self.total)
        self.screen.report(f"{step:,} of {self.total:,} steps, {pictures:,} pictures seen, {losses}{left}")
