"""What a service does with a request: every policy is the way that each picture takes through the pools, and what is delivered.

The gate's mathematics is the pack's own: the percentile and the budget (``gate.thresholds``), the running threshold
(``gate.by_load``), Explore's search (``samplers.explore``). A request is a row of the measured drawings and one of its drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..gate.by_load import ByLoad
from ..gate.thresholds import percentile
from ..samplers.beliefs import fit_gain
from ..samplers.explore import Search, Source, Teacher
from .figures import Array
from .fleet_queues import Pool, Stages
from .fleet_scores import Drawings, Scores

STUDENT, JUDGE, TEACHER = STAGES = ("student", "judge", "teacher")
PRICES = (0.05, 0.1, 0.2, 0.4, 0.8)  # score an evaluation that Explore's price is looked for among


class Policy(Protocol):
    """A way of serving requests."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def passes(self) -> dict[str, float]:
        """How often a picture visits each pool on average."""

    def way(self, row: int, draft: int, now: float, pools: dict[str, Pool]) -> Stages:
        """The way of a picture that comes ``now``; it returns the judge's score of what is delivered."""


def noised(drawings: Drawings, noise: float, rng: np.random.Generator) -> Drawings:
    """As if the gate's oracle were less accurate: noise on its scores, in spreads (standard deviations) of the drafts' scores."""
    width = noise * float(drawings.student.gate.std())
    blurred = lambda a: a + width * rng.standard_normal(a.shape)  # noqa: E731
    of = lambda s: replace(s, gate=blurred(s.gate), taught=blurred(s.taught))  # noqa: E731
    return replace(drawings, students={n: of(s) for n, s in drawings.students.items()}, teacher=of(drawings.teacher))


@dataclass(frozen=True)
class Only:
    """One network draws all, and nobody judges."""

    name: str
    stage: str
    source: Scores

    @property
    def passes(self) -> dict[str, float]:
        """Of its own pool alone."""
        return {self.stage: 1.0}

    def way(self, row: int, draft: int, now: float, pools: dict[str, Pool]) -> Stages:
        """See ``Policy``."""
        yield self.stage
        return float(self.source.judge[row, draft % self.source.judge.shape[1]])


def _judged_passes(share: float) -> dict[str, float]:
    return {STUDENT: 1.0, JUDGE: 1.0 + share, TEACHER: share}


class Fixed:
    """Algorithm 1 with a fixed threshold: the percentile of the calibration that rejects ``share`` (0..1); the better is kept."""

    def __init__(self, drawings: Drawings, share: float, name: str = "cascade, fixed threshold") -> None:
        self.name, self.drawings = name, drawings
        gate = drawings.student.gate
        verdict = percentile(gate.ravel().tolist(), 100 * share, drawings.student.taught.ravel().tolist())
        self.accepted = np.array(verdict.accepted).reshape(gate.shape)
        self.passes = _judged_passes(float(1 - self.accepted.mean()))

    def delivered(self) -> Array:
        """The judge's score of what each draft of each row ends as [rows, drafts]."""
        student, teacher = self.drawings.student, self.drawings.teacher
        replaced = ~self.accepted & (teacher.gate > student.gate)
        return np.where(replaced, teacher.judge, student.judge)

    def accepts(self, row: int, draft: int, pools: dict[str, Pool]) -> bool:
        """Whether a draft passes, at the moment of its verdict."""
        return bool(self.accepted[row, draft])

    def way(self, row: int, draft: int, now: float, pools: dict[str, Pool]) -> Stages:
        """See ``Policy``."""
        yield STUDENT
        yield JUDGE
        student, teacher = self.drawings.student, self.drawings.teacher
        if self.accepts(row, draft, pools):
            return float(student.judge[row, draft])
        yield TEACHER
        yield JUDGE
        better = teacher.gate[row, 0] > student.gate[row, draft]
        return float(teacher.judge[row, 0] if better else student.judge[row, draft])


class Running(Fixed):
    """The same, but the threshold follows the scores so that ``share`` are rejected over time.

    Args:
        horizon: Seconds; with it the share follows the load too: no more are rejected than the teacher's pool can answer within
            that time, as a budget of evaluations a picture. 0 for a share that stays.
    """

    def __init__(self, drawings: Drawings, share: float, horizon: float = 0.0) -> None:
        super().__init__(drawings, share, "cascade, running threshold" + (" by load" if horizon else ""))
        self.share, self.horizon, self.passes = share, horizon, _judged_passes(share)
        self.fresh()

    def fresh(self) -> None:
        """Begin a new day: the controller knows the calibration's scores alone."""
        self.gate = ByLoad(self.share, self.horizon, self.drawings.student.taught.ravel().tolist())

    def accepts(self, row: int, draft: int, pools: dict[str, Pool]) -> bool:
        """See ``Fixed``; one controller judges everybody, in the order that they come."""
        if self.horizon:
            pool = pools[TEACHER]
            self.gate.follow(pool.env.now, pool.servers * pool.most / pool.seconds(pool.most), len(pool.queue))
        return self.gate.judge(float(self.drawings.student.gate[row, draft]))[0]


@dataclass(frozen=True)
class Plan:
    """What Explore does for one picture: the pools in order, evaluations spent, and the judge's score of what it ends with."""

    stages: tuple[str, ...]
    spent: float
    judge: float


class Explore:
    """Weitzman's search over students' drafts, then the teacher where that pays, at the price that costs as a cascade does.

    A picture's search depends on its scores alone, not on queues, so it is made beforehand and its stages are replayed.

    Args:
        share: Of the cascade that shall cost as much, on training prompts.
    """

    def __init__(self, drawings: Drawings, share: float) -> None:
        self.name, self.drawings = "Explore", drawings
        aim = drawings.student.evaluations + share * drawings.teacher.evaluations
        costs = [np.mean([p.spent for p in self._plans(price, taught=True)]) for price in PRICES]
        self.price = PRICES[int(np.argmin(np.abs(np.array(costs) - aim)))]
        self.plans = self._plans(self.price, taught=False)
        self.passes = {stage: float(np.mean([p.stages.count(stage) for p in self.plans])) for stage in STAGES}

    def way(self, row: int, draft: int, now: float, pools: dict[str, Pool]) -> Stages:
        """See ``Policy``."""
        plan = self.plans[row]
        yield from plan.stages
        return plan.judge

    def _plans(self, price: float, taught: bool) -> list[Plan]:
        """A search for every row."""
        places, students = self.drawings.places, self.drawings.students
        known = {name: _by_prompt(s.taught, places) for name, s in students.items()}
        drafts, answers = (s.taught[:, 0].tolist() for s in (self.drawings.student, self.drawings.teacher))
        teacher = Teacher(self.drawings.teacher.evaluations, fit_gain(drafts, answers))
        sources = [Source(s.evaluations, n, s.gate.shape[1], known[n]) for n, s in students.items()]
        gates = [s.taught if taught else s.gate for s in students.values()]
        search = lambda: Search(sources, [0], price=price, teacher=teacher)  # noqa: E731
        return [self._plan(search(), gates, row, taught) for row in range(len(gates[0]))]

    def _plan(self, search: Search, gates: Sequence[Array], row: int, taught: bool) -> Plan:
        stages: list[str] = []
        while tries := search.wanted():
            search.tell(tries, [float(gates[t.source][row, t.number]) for t in tries])
            stages += [STUDENT, JUDGE] * len(tries)
        held, spent = search.tries[int(search.held[0])], float(search.spent.sum())
        student, teacher = list(self.drawings.students.values())[held.source], self.drawings.teacher
        worth = 0.0 if taught else float(student.judge[row, held.number])
        if search.for_teacher():
            stages, spent = [*stages, TEACHER, JUDGE], spent + teacher.evaluations
            if not taught and teacher.gate[row, 0] > held.score:
                worth = float(teacher.judge[row, 0])
        return Plan(tuple(stages), spent, worth)


def _by_prompt(scores: Array, places: int) -> dict[str, list[float]]:
    return {str(p): scores[p * places : (p + 1) * places].ravel().tolist() for p in range(len(scores) // places)}
