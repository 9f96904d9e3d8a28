"""A service's engine whose work is sleep: stages take known seconds on workers that can be killed, so that load is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bulk.items import Item
from ..bulk.job import PictureError
from ..bulk.pool import Pool
from ..fleet.jobs import Drafts
from ..gate.verdict import IMPROVED, Judgement, Verdict

DRAFT_COST, ANSWER_COST = 2.0, 18.0  # evaluations
POISON = "poison"  # a prompt with this word can't be drawn


class Sleeper:
    """A worker."""

    def work(self, seconds: float) -> None:
        """Take so long."""
        time.sleep(seconds)


class GoneError(Exception):
    """A worker of this process was killed."""


@dataclass(frozen=True)
class Takes:
    """Seconds of a batch, by its size: shared, and for each picture."""

    draft: tuple[float, float] = (0.1, 0.025)
    verdict: tuple[float, float] = (0.02, 0.005)
    answer: tuple[float, float] = (0.2, 0.3)

    def seconds(self, stage: str, size: int) -> float:
        """Of a batch of ``size``."""
        shared, each = getattr(self, stage)
        return float(shared + each * size)


class Sleeping:
    """The engine; see ``fleet.jobs.Engine``. A draft's score is a standard normal number, by its seed and place.

    Args:
        workers: Students, judges, teachers.
        make: Makes a worker. Left out: of this process.
        call: Has a worker take so many seconds.
        broken: What a killed worker raises.
    """

    def __init__(
        self, takes: Takes, workers: tuple[int, int, int] = (1, 1, 1), batch: int = 4, make: Callable[[], Any] = Sleeper,
        call: Callable[[Any, float], Any] = lambda worker, seconds: worker.work(seconds),
        broken: tuple[type[BaseException], ...] = (GoneError,), end: Callable[[Any], object] = lambda _: None,
    ) -> None:  # fmt: skip
        self.takes, self.batch, self.call = takes, batch, call
        self.drafters, self.teachers = workers[0] + workers[1], workers[2]
        self.alive = list[Any]()  # workers, in the order that they were made

        def made() -> Any:
            self.alive.append(make())
            return self.alive[-1]

        stages = ("draft", "verdict", "answer")
        self.pools = {s: Pool(made, most, broken, end) for s, most in zip(stages, workers, strict=True)}
        self.drawn = list[str]()  # prompts that were drafted, once for each time

    @property
    def replaced(self) -> int:
        """Workers that broke."""
        return sum(pool.replaced for pool in self.pools.values())

    def _work(self, stage: str, size: int) -> None:
        self.pools[stage].run(lambda worker: self.call(worker, self.takes.seconds(stage, size)))

    def draft(self, part: Sequence[Item], seed: int) -> Drafts:
        """See ``fleet.jobs.Engine``."""
        if any(POISON in item.prompt for item in part):
            raise PictureError("CLIP: no words for poison.")
        self._work("draft", len(part))
        self._work("verdict", len(part))
        self.drawn += [item.prompt for item in part]
        numbers = np.random.default_rng(seed).standard_normal(len(part)).tolist()
        judged = [
            Judgement(place, score, 0.0, score >= 0, item.prompt, seed, DRAFT_COST)
            for place, (score, item) in enumerate(zip(numbers, part, strict=True))
        ]
        return Drafts(pictures(numbers), Verdict(tuple(judged), "sleep", "0" * 16, "absolute", 0.0), numbers)

    def teach(self, drafts: Drafts, verdict: Verdict) -> tuple[Tensor, Verdict]:
        """See ``fleet.jobs.Engine``; every answer is better by 1."""
        self._work("answer", len(verdict.rejected))
        improved = [
            j if j.accepted
            else replace(j, score=j.score + 1, draft_score=j.score, nfe=DRAFT_COST + ANSWER_COST, decision=IMPROVED)
            for j in verdict
        ]  # fmt: skip
        return pictures([j.score for j in improved]), verdict.with_judgements(improved)

    def close(self) -> None:
        """See ``fleet.jobs.Engine``."""
        for pool in self.pools.values():
            pool.close()


def pictures(scores: Sequence[float]) -> Tensor:
    """Grey ones [B, 8, 8, 3], as bright as their scores."""
    return torch.sigmoid(torch.tensor(scores)).view(-1, 1, 1, 1).expand(-1, 8, 8, 3)
