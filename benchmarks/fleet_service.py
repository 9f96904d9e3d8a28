"""The service on paper: what a batch takes, how the day's pictures come, and how many GPUs meet the deadline.

No GPU was timed. An evaluation's seconds are assumed; what decoding, a verdict and a batch take beside it are the tiny world's
on a CPU. Each of them is a field of ``Service``, so that who has times of their own can put them in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import simpy

from .figures import Array
from .fleet_policies import JUDGE, STAGES, STUDENT, TEACHER, Policy, Running
from .fleet_queues import Load, Pool, Run, simulate, square_root_staffing
from .fleet_scores import DRAFTS, Measured

SECONDS_A_DAY = 86_400
BETAS = (*(-1 + 0.1 * i for i in range(50)), *(4 + 0.25 * i for i in range(49)))  # of square-root staffing, to choose from
ANSWERED = 0.9  # of its share a policy that follows the load still sends to the teacher, over the day


@dataclass(frozen=True)
class Service:
    """What is simulated; every field can be set with ``--set name=value``.

    Attributes:
        pictures: A day.
        slice: One in so many of the pictures, and of the GPUs, is simulated.
        day: Seconds that the day is shortened to; long beside a picture and a burst.
        swing: Amplitude of the day's curve (0..1 of the mean).
        burst, burst_part, burst_lasts: See ``Load``.
        deadline: Seconds within which 99 of 100 pictures of the day are there.
        evaluation: Seconds of one network evaluation of one picture. Assumed.
        student_evaluations, teacher_evaluations: Of a draft, and of an answer.
        decoding, verdict: In evaluations of one picture. The tiny world's on a CPU.
        fixed: The part of an evaluation of one picture that a batch shares (0..1). The tiny world's on a CPU.
        fixed_verdict: The same of a verdict.
        overhead: Seconds a batch, for the network and the queue. Assumed.
        most: Pictures of a batch at most.
        patience: Seconds that a free GPU waits for a batch to fill.
        share: Of drafts that go to the teacher (0..1).
        gpu_hour: Price of a GPU's hour. Assumed.
    """

    pictures: float = 1e8
    slice: float = 20
    day: float = 900
    swing: float = 0.4
    burst: float = 1.5
    burst_part: float = 0.1
    burst_lasts: float = 20
    deadline: float = 5.0
    evaluation: float = 0.05
    student_evaluations: float = 1
    teacher_evaluations: float = 18
    decoding: float = 0.25
    verdict: float = 0.2
    fixed: float = 0.5
    fixed_verdict: float = 0.5
    overhead: float = 0.02
    most: float = 4
    patience: float = 0.02
    share: float = 0.3
    gpu_hour: float = 2.0

    @classmethod
    def of(cls, measured: Measured, settings: Sequence[str] = ()) -> Service:
        """With the tiny world's ratios, then ``settings``, each "name=value".

        Raises:
            ValueError: A setting has no such name, or no number that fits.
        """
        one = measured.evaluation.fixed + measured.evaluation.each
        verdict = measured.verdict.fixed + measured.verdict.each
        service = cls(
            student_evaluations=measured.worlds["near"].student.evaluations,
            teacher_evaluations=measured.worlds["near"].teacher.evaluations,
            decoding=round((measured.decoding.fixed + measured.decoding.each) / one, 3), verdict=round(verdict / one, 3),
            fixed=round(measured.evaluation.fixed / one, 3), fixed_verdict=round(measured.verdict.fixed / verdict, 3),
        )  # fmt: skip
        return replace(service, **dict(map(_setting, settings)))

    def seconds(self, stage: str, size: int) -> float:
        """What a batch of ``size`` takes in a pool."""
        shared = lambda fixed: fixed + (1 - fixed) * size  # noqa: E731
        if stage == JUDGE:
            return self.overhead + self.evaluation * self.verdict * shared(self.fixed_verdict)
        evaluations = self.student_evaluations if stage == STUDENT else self.teacher_evaluations
        return self.overhead + self.evaluation * (evaluations * shared(self.fixed) + self.decoding * size)

    def least(self, stage: str) -> float:
        """GPU-seconds a picture in full batches."""
        return self.seconds(stage, int(self.most)) / int(self.most)

    @property
    def load(self) -> Load:
        """The slice's arrivals."""
        rate = self.pictures / SECONDS_A_DAY / self.slice
        return Load(rate, self.day, self.swing, self.burst, self.burst_part, self.burst_lasts)

    def staffed(self, passes: dict[str, float], beta: float) -> dict[str, int]:
        """Servers of each pool for the hour of the highest load, bursts left out, by square-root staffing."""
        peak = self.load.rate * self.load.quiet * (1 + self.swing)
        return {s: square_root_staffing(peak * passes[s] * self.least(s), beta) for s in STAGES if passes.get(s)}


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in {field.name for field in fields(Service)}:
        raise ValueError(f"There is no setting '{name}'; there are {', '.join(field.name for field in fields(Service))}.")
    try:
        number = float(value)
    except ValueError as error:
        raise ValueError(f"'{text}' has no number; write {name}=2, for instance.") from error
    most = 1.0 if name in ("swing", "fixed", "fixed_verdict", "burst_part", "share") else np.inf
    least = 1 if name in ("most", "burst") else 0
    if not (least <= number <= most and number < np.inf) or (number == 0 and name in ("pictures", "slice", "day", "evaluation")):
        raise ValueError(f"{name} can't be {number:g}.")
    return name, number


@dataclass(frozen=True)
class Day:
    """A simulated day of the slice.

    Attributes:
        servers: Of each pool of the slice.
        rows: Which row each picture was.
    """

    servers: dict[str, int]
    rows: Array
    run: Run

    @property
    def busy(self) -> float:
        """GPU-seconds of work a picture."""
        return sum(pool.busy for pool in self.run.pools.values()) / len(self.rows)

    @property
    def answered(self) -> float:
        """The share that the teacher drew."""
        return len(self.run.pools[TEACHER].waits) / len(self.rows) if TEACHER in self.run.pools else 0.0

    def late(self, deadline: float) -> float:
        """The share of pictures that came later than that."""
        return float((self.run.latency > deadline).mean())


def simulated(service: Service, policy: Policy, rows: int, servers: dict[str, int], seed: int) -> Day:
    """One day; the same seed gives the same arrivals, prompts and drafts to every policy and every fleet.

    Raises:
        RuntimeError: Little's law doesn't hold: the simulation is wrong.
    """
    rng = np.random.default_rng(seed)
    times = service.load.times(rng)
    which, drafts = rng.integers(rows, size=len(times)), rng.integers(DRAFTS, size=len(times))
    if isinstance(policy, Running):
        policy.fresh()

    def pools(env: simpy.Environment) -> dict[str, Pool]:
        return {stage: Pool(env, count, _seconds(service, stage), int(service.most), service.patience)
                for stage, count in servers.items()}  # fmt: skip

    run = simulate(times, pools, lambda i, there: policy.way(int(which[i]), int(drafts[i]), float(times[i]), there))
    if run.littles_error > 1e-6:
        raise RuntimeError(f"L and lambda W differ by {run.littles_error:.2g} of them.")
    return Day(servers, which, run)


def _seconds(service: Service, stage: str) -> Callable[[int], float]:
    return partial(service.seconds, stage)


def sized(service: Service, policy: Policy, rows: int, seed: int) -> Day:
    """The day with the fewest GPUs that meet the deadline in 99 of 100 pictures: one beta for all pools, by bisection.

    A policy that follows the load must also send ``ANSWERED`` of its share to the teacher.

    Raises:
        ValueError: Even the largest fleet that is tried doesn't meet the deadline.
    """

    def meets(day: Day) -> bool:
        wanted = ANSWERED * policy.share if isinstance(policy, Running) and policy.horizon else 0.0
        return day.late(service.deadline) <= 0.01 and day.answered >= wanted

    low, high, best = 0, len(BETAS) - 1, None
    while low <= high:
        middle = (low + high) // 2
        day = simulated(service, policy, rows, service.staffed(policy.passes, BETAS[middle]), seed)
        if meets(day):
            best, high = day, middle - 1
        else:
            low = middle + 1
    if best is None:
        takes = service.seconds(TEACHER, int(service.most))
        raise ValueError(
            f"{policy.name}: no fleet meets {service.deadline:g} s, for a batch of {int(service.most)} takes the teacher "
            f"{takes:.3g} s; raise deadline, or lower most."
        )
    return best
