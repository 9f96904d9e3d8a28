"""What a service is asked for, what becomes of it, and who draws."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..bulk.items import Item
from ..bulk.manifest import FAILED
from ..gate.verdict import Judgement, Verdict

QUEUED, DRAWING, DONE, FAILURE, CANCELLED = "queued", "drawing", "done", "failed", "cancelled"


@dataclass(frozen=True)
class Drafts:
    """A batch of drafts with the judge's word.

    Attributes:
        pictures: [B, H, W, 3] in 0..1.
        verdict: By a threshold of 0 (or of each prompt's baseline): only the distance from it counts.
        rest: What the engine wants back for the teacher.
    """

    pictures: Tensor
    verdict: Verdict
    rest: Any = None


class Engine(Protocol):
    """Who draws; its methods are called from threads, so many at a time as it says, and raise ``PictureError``.

    Attributes:
        batch: Pictures at a time at most.
        drafters, teachers: Batches that are drafted, and answered, at a time; no teachers, no answers.
    """

    batch: int
    drafters: int
    teachers: int

    @property
    def replaced(self) -> int:
        """Workers that broke so far, and whose work was done again by others."""

    def draft(self, part: Sequence[Item], seed: int) -> Drafts:
        """Draw a batch and judge it."""

    def teach(self, drafts: Drafts, verdict: Verdict) -> tuple[Tensor, Verdict]:
        """Have the teacher answer what ``verdict`` rejects; pictures and verdict of the whole batch, the better of each two."""

    def close(self) -> None:
        """Send the workers away."""


@dataclass(frozen=True)
class Limits:
    """What the service promises, and what it takes on.

    Attributes:
        share: Of drafts that go to the teacher where nothing else bounds it (0..1); None: as ``budget`` says.
        deadline: Seconds from request to answer, where a request says nothing.
        budget: Network evaluations a picture on average; None for no bound.
        queue: Pictures that may wait.
        keep: Seconds that a job is remembered after its end.
        memory: Bytes of pictures that are kept; the oldest jobs are forgotten before.
    """

    share: float | None
    deadline: float = 10.0
    budget: float | None = None
    queue: int = 256
    keep: float = 600.0
    memory: int = 2**29


class RefusedError(Exception):
    """A request that isn't taken on now.

    Attributes:
        retry: Seconds after which it may be; 0: not by this service.
    """

    def __init__(self, reason: str, sentence: str, retry: float = 0.0) -> None:
        super().__init__(sentence)
        self.reason, self.retry = reason, retry


@dataclass
class Picture:
    """One picture of a job; ``judgement`` and ``png`` are there once it is answered, ``error`` where it can't be drawn."""

    number: int
    prompt: str
    judgement: Judgement | None = None
    seed: int = 0
    png: bytes = b""
    error: str = ""

    @property
    def decision(self) -> str:
        """What became of it; "" while it is not answered."""
        return FAILED if self.error else self.judgement.decision if self.judgement else ""


@dataclass(eq=False)
class Job:
    """What a request asked for, and what has become of it."""

    id: str
    pictures: list[Picture]
    due: float
    share: float
    begun: float
    state: str = QUEUED
    ended: float = math.inf
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in (DONE, FAILURE, CANCELLED)

    def tell(self, event: str, **data: Any) -> None:
        """Everybody who follows it."""
        self.events.append((event, data))
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(frozen=True, eq=False)
class Work:
    """Pictures of a job that are drawn together: with a seed of their own by themselves, else with whoever comes."""

    pictures: tuple[tuple[Job, Picture], ...]
    seed: int | None
