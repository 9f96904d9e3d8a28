"""A hundred million pictures a day, on paper: GPUs, latency, cost and quality of a cascade as a service, by simulation.

The scores are measured (``fleet_scores``), the gate's rules are the pack's own, the queues are simulated and held to formulas.
The seconds are *not* a GPU's: an evaluation's are assumed, and what the rest takes beside it is the tiny world's on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .adaptive import mean_of
from .figures import Array, Claim, Figures, mean_of_seeds
from .fleet_checks import formulas, half_slice
from .fleet_policies import STAGES, STUDENT, TEACHER, Explore, Fixed, Only, Policy, Running, noised
from .fleet_scores import FILE, Drawings, draw, load
from .fleet_service import Day, Service, simulated, sized

__all__ = ["draw", "run"]

SEEDS = 5
QUICK = {"slice": 40.0, "day": 200.0}
SHARES = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
NOISES = (0.0, 1.0, 2.0)  # of the oracle, in spreads of its scores
BLURS = 8  # noises that a quality is the mean over
BURSTS = (1.5, 2.0, 3.0)
FIXED, BY_LOAD = "cascade, fixed threshold", "cascade, running threshold by load"
IN_BURSTS = {
    "teacher_only": ("teacher only", False), "cascade": (FIXED, False), "running_by_load": (BY_LOAD, False),
    "cascade_twice_students": (FIXED, True), "running_by_load_twice_students": (BY_LOAD, True),
}  # fmt: skip
"""Line -> its policy, and whether it has twice the students and judges."""
AROUND: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "teacher's evaluations: 9, 36 (in 10 s)": ({"teacher_evaluations": 9}, {"teacher_evaluations": 36, "deadline": 10.0}),
    "share to the teacher: 0.2, 0.4": ({"share": 0.2}, {"share": 0.4}),
    "a verdict: half, four times": ({"verdict": 0.5}, {"verdict": 4.0}),
    "what a batch shares: 0, 0.8": ({"fixed": 0.0}, {"fixed": 0.8}),
    "deadline: 4 s, 10 s": ({"deadline": 4.0}, {"deadline": 10.0}),
    "the day's swing: 0, 0.8": ({"swing": 0.0}, {"swing": 0.8}),
    "bursts: none, twofold": ({"burst": 1.0}, {"burst": 2.0}),
}
"""What the GPUs of the cascade over the teacher's depend on; of a verdict it is a factor."""
NEAR, FAR = "near", "far"
KEYS = {
    "teacher only": "teacher_only", "student only": "student_only", FIXED: "cascade",
    "cascade, running threshold": "running", BY_LOAD: "running_by_load", "Explore": "explore",
}  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """A policy's days, a seed each, with the fewest GPUs that meet the deadline."""

    policy: Policy
    drawings: Drawings
    days: list[Day]

    @property
    def gpus(self) -> list[int]:
        """Of the slice, by seed."""
        return [sum(day.servers.values()) for day in self.days]

    def gain(self) -> Claim:
        """What was delivered minus the teacher's picture of the same row, by the judge; the interval is by prompt."""
        teacher, places = self.drawings.teacher.judge[:, 0], self.drawings.places
        rows = np.concatenate([day.rows for day in self.days])
        gaps = np.concatenate([day.run.worth for day in self.days]) - teacher[rows]
        count = np.bincount(rows // places)
        return mean_of(np.bincount(rows // places, gaps) / np.maximum(count, 1))


def policies(drawings: Drawings, service: Service, world: str) -> list[Policy]:
    """All of them; of the world with the far student those that differ."""
    share = service.share
    student = Only("student only", STUDENT, drawings.student)
    by_load = Running(drawings, share, service.deadline)
    if world == FAR:
        return [student, Fixed(drawings, share), by_load, Explore(drawings, share)]
    teacher = Only("teacher only", TEACHER, drawings.teacher)
    return [teacher, student, Fixed(drawings, share), Running(drawings, share), by_load, Explore(drawings, share)]


def tried(service: Service, worlds: dict[str, Drawings], seeds: int, say: Callable[[str], None]) -> dict[str, dict[str, Tried]]:
    """World -> policy -> its days."""
    found: dict[str, dict[str, Tried]] = {}
    for world, drawings in worlds.items():
        found[world] = {}
        for policy in policies(drawings, service, world):
            say(f"{world} student: {policy.name}")
            days = [sized(service, policy, len(drawings.teacher.gate), seed) for seed in range(seeds)]
            found[world][policy.name] = Tried(policy, drawings, days)
    return found


# -------------------------------------------------------------------------------------------------------------- findings


def by_share(service: Service, drawings: Drawings) -> list[dict[str, float]]:
    """GPUs (of the whole) and gain over the teacher for every share, with an oracle that is less and less accurate."""
    points = []
    for share in SHARES:
        day = sized(service, Fixed(drawings, share), len(drawings.teacher.gate), 0)
        gains = {f"gain, noise {noise:g}": float(blurred(drawings, share, noise).mean()) for noise in NOISES}
        points.append({"share": share, "gpus": service.slice * sum(day.servers.values()), **gains})
    return points


def blurred(drawings: Drawings, share: float, noise: float) -> Array:
    """The cascade's gain over the teacher [prompts] with noise on the oracle's scores, a mean over all drafts and some noises."""
    gains = []
    for seed in range(BLURS if noise else 1):
        policy = Fixed(noised(drawings, noise, np.random.default_rng(seed)), share)
        gains.append(policy.delivered().mean(1) - drawings.teacher.judge[:, 0])
    return np.asarray(np.mean(gains, axis=0).reshape(-1, drawings.places).mean(1))


def in_bursts(service: Service, found: dict[str, Tried], seeds: int) -> list[dict[str, Any]]:
    """Fleets that were made for the usual bursts, in higher ones: the share of late pictures, and the teacher's share.

    The cascades have the GPUs of the fixed threshold, or those with twice the students and judges.
    """
    points = []
    for key, (name, twice) in IN_BURSTS.items():
        owner = found[FIXED if "cascade" in name else name]
        policy, rows = found[name].policy, len(found[name].drawings.teacher.gate)
        for burst in BURSTS:
            days = []
            for seed in range(seeds):
                servers = {s: c * (2 if twice and s != TEACHER else 1) for s, c in owner.days[seed].servers.items()}
                days.append(simulated(replace(service, burst=burst), policy, rows, servers, seed))
            late = mean_of_seeds([day.late(service.deadline) for day in days])
            points.append({"line": key, "burst": burst, **{f"late {end}": getattr(late, end) for end in ("value", "lo", "hi")},
                           "judge": float(np.mean([day.run.worth.mean() for day in days])),
                           "to the teacher": float(np.mean([day.answered for day in days])),
                           "GPUs": service.slice * float(np.mean([sum(day.servers.values()) for day in days]))})  # fmt: skip
    return points


def around(service: Service, drawings: Drawings, usual: Sequence[float], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """By how much the cascade's GPUs over the teacher's change with one assumption at a time, down and up.

    Args:
        usual: What they are, by seed.
    """
    bars = []
    for words, ends in AROUND.items():
        say(f"changed: {words}")
        bar: dict[str, Any] = {"what": words}
        for end, changes in zip(("down", "up"), ends, strict=True):
            if "verdict" in changes:
                changes = {"verdict": changes["verdict"] * service.verdict}
            changed = replace(service, **changes)
            bar[end] = asdict(mean_of_seeds([ratio(changed, drawings, seed) - before for seed, before in enumerate(usual)]))
        bars.append(bar)
    return bars


def ratio(service: Service, drawings: Drawings, seed: int) -> float:
    """The cascade's GPUs over the teacher's."""
    both = (Fixed(drawings, service.share), Only("teacher only", TEACHER, drawings.teacher))
    cascade, teacher = (sum(sized(service, p, len(drawings.teacher.gate), seed).servers.values()) for p in both)
    return cascade / teacher


# ------------------------------------------------------------------------------------------------------------------- all


def run(
    quick: bool = False, plot: Path | None = None, say: Callable[[str], None] = print, seeds: int | None = None,
    settings: Sequence[str] = (),
) -> Figures:  # fmt: skip
    """Simulate, print the table and the claims, draw the plot.

    Args:
        settings: Of the service, each "name=value"; see ``Service``.

    Raises:
        FileNotFoundError: The measured scores are not there.
        ValueError: A setting doesn't fit, or no fleet meets the deadline.
    """
    measured = load()
    seeds = seeds or (2 if quick else SEEDS)
    service = Service.of(measured, [*(f"{name}={value}" for name, value in QUICK.items() if quick), *settings])
    near = measured.worlds[NEAR]
    figures = Figures("fleet", {
        **asdict(service), "seeds": seeds, "scores": FILE.name, "seconds": "not a GPU's: evaluation, overhead and gpu_hour are "
        "assumed; decoding, verdict and what a batch shares are the tiny world's beside an evaluation, on a CPU",
    })  # fmt: skip
    found = tried(service, {NEAR: near} if quick else measured.worlds, seeds, say)
    for world, by_policy in found.items():
        figures.rows += [row(service, world, each) for each in by_policy.values()]
    say("formulas, and half of the slice")
    figures.claims = {**claims(service, found), **formulas(service, 8_000 if quick else 60_000, 4 if quick else 10)}
    cascade, teacher = found[NEAR][FIXED], found[NEAR]["teacher only"]
    whole = list(zip(cascade.gpus, teacher.gpus, strict=True))
    figures.claims |= half_slice(service, cascade.policy, teacher.policy, len(near.teacher.gate), whole)
    say("shares, the oracle's accuracy, bursts")
    figures.findings = {"by share": {world: by_share(service, measured.worlds[world]) for world in found},
                        "in bursts": in_bursts(service, found[NEAR], seeds),
                        "around": around(service, near, [a / b for a, b in whole][: 1 if quick else 2], say)}  # fmt: skip
    for world in found:
        for noise in NOISES[1:]:
            figures.claims[f"{prefix(world)}quality_difference_noise_{noise:g}"] = mean_of(
                blurred(measured.worlds[world], service.share, noise)
            )
    for point in figures.findings["in bursts"]:
        if point["burst"] == BURSTS[-1]:
            late = Claim(*(point[f"late {end}"] for end in ("value", "lo", "hi")))
            figures.claims[f"fleet_late_in_bursts_{point['line']}"] = late
    figures.show()
    if plot:
        from .fleet_plot import draw_plot

        draw_plot(figures, plot)
        say(f"plot: {plot}")
    return figures


def prefix(world: str) -> str:
    """What the claims of a world begin with."""
    return "fleet_" if world == NEAR else "fleet_far_"


def row(service: Service, world: str, each: Tried) -> dict[str, Any]:
    """One line of the table; GPUs and cost are of the whole service."""
    gpus = mean_of_seeds([service.slice * count for count in each.gpus])
    latency = [np.mean([np.quantile(day.run.latency, q) for day in each.days]) for q in (0.5, 0.95, 0.99)]
    pools = {stage: service.slice * float(np.mean([day.servers.get(stage, 0) for day in each.days])) for stage in STAGES}
    gain = each.gain()
    cost = gpus.value * 24 * service.gpu_hour / service.pictures
    return {
        "student": world, "policy": each.policy.name, "GPUs": gpus.value, "GPUs, 95 %": f"{gpus.lo:.0f} to {gpus.hi:.0f}",
        **{f"{stage} GPUs": count for stage, count in pools.items()},
        "median s": float(latency[0]), "95 of 100 s": float(latency[1]), "99 of 100 s": float(latency[2]),
        "cost of 1000": 1000 * cost, "GPU-seconds a picture": float(np.mean([day.busy for day in each.days])),
        "to the teacher": float(np.mean([day.answered for day in each.days])),
        "judge, minus the teacher's": gain.value, "95 %": f"{gain.lo:.2f} to {gain.hi:.2f}",
    }  # fmt: skip


def claims(service: Service, found: dict[str, dict[str, Tried]]) -> dict[str, Claim]:
    """GPUs, costs and quality beside the teacher's, by seed and by prompt."""
    teacher, made = found[NEAR]["teacher only"], dict[str, Claim]()
    for world, by_policy in found.items():
        for name, each in by_policy.items():
            key, start = KEYS[name], prefix(world)
            made[f"{start}gpus_{key}"] = mean_of_seeds([service.slice * count for count in each.gpus])
            if name == "teacher only":
                continue
            made[f"{start}gpus_{key}_over_teacher"] = mean_of_seeds([a / b for a, b in zip(each.gpus, teacher.gpus, strict=True)])
            busy = [a.busy / b.busy for a, b in zip(each.days, teacher.days, strict=True)]
            made[f"{start}cost_ratio_{key}"] = mean_of_seeds(busy)
            made[f"{start}quality_difference{'' if key == 'cascade' else '_' + key}"] = each.gain()
    errors = [day.run.littles_error for by_policy in found.values() for each in by_policy.values() for day in each.days]
    made["fleet_little_error"] = Claim(max(errors), min(errors), max(errors))
    return made
