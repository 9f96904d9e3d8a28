"""The simulator against formulas: Erlang C for many servers, Pollaczek and Khinchine for one, and half of the slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import simpy

from .figures import Array, Claim, mean_of_seeds
from .fleet_policies import STUDENT, TEACHER, Policy
from .fleet_queues import Pool, Stages, erlang_c, erlang_quantile, erlang_wait, pollaczek_khinchine, simulate
from .fleet_service import Service, sized

WARM = 0.1  # of the jobs come before the queue is as it stays
ERLANG = ((8, 6.4), (100, 90.0))  # servers and load: a small pool and a large one


def waits(servers: int, rate: float, service: Callable[[], float], jobs: int, rng: np.random.Generator) -> tuple[Array, float]:
    """The waits of all jobs but the first ones in M/G/c, simulated, and the error of Little's law."""

    def way(number: int, pools: dict[str, Pool]) -> Stages:
        yield STUDENT
        return 0.0

    def pools(env: simpy.Environment) -> dict[str, Pool]:
        return {STUDENT: Pool(env, servers, lambda _: service())}

    run = simulate(np.cumsum(rng.exponential(1 / rate, jobs)), pools, way)
    return np.array(run.pools[STUDENT].waits[int(WARM * jobs) :]), run.littles_error


def erlang_errors(servers: int, load: float, jobs: int, seed: int) -> tuple[float, float, float]:
    """Simulated over exact, minus 1, in M/M/c: the mean wait, the probability to wait, and the wait's 99th percentile."""
    rng = np.random.default_rng(seed)
    seen, _ = waits(servers, load, rng.standard_exponential, jobs, rng)
    return (
        float(seen.mean()) / erlang_wait(servers, load, 1.0) - 1,
        float((seen > 1e-9).mean()) / erlang_c(servers, load) - 1,
        float(np.quantile(seen, 0.99)) / erlang_quantile(servers, load, 1.0, 0.99) - 1,
    )


def pollaczek_error(services: Sequence[float], busy: float, jobs: int, seed: int) -> float:
    """Simulated over exact mean wait, minus 1, in M/G/1 with a server that is busy for a part ``busy`` (0..1) of the time."""
    rng = np.random.default_rng(seed)
    rate, drawn = busy / float(np.mean(services)), iter(rng.choice(services, jobs))
    seen, _ = waits(1, rate, lambda: float(next(drawn)), jobs, rng)
    return float(seen.mean()) / pollaczek_khinchine(rate, services) - 1


def formulas(service: Service, jobs: int, seeds: int) -> dict[str, Claim]:
    """Relative errors, means over independent runs; each interval should hold 0."""
    small, large = (np.array([erlang_errors(*each, jobs * (4 if each[0] > 10 else 1), seed) for seed in range(seeds)])
                    for each in ERLANG)  # fmt: skip
    mixed = [service.seconds(TEACHER, 1)] * 3 + [service.seconds(STUDENT, 1)] * 7
    pollaczek = [pollaczek_error(mixed, 0.6, jobs, seed) for seed in range(seeds)]
    errors = {
        "fleet_erlang_error": small[:, 0], "fleet_erlang_waiting_error": small[:, 1], "fleet_erlang_quantile_error": small[:, 2],
        "fleet_erlang_large_error": large[:, 0], "fleet_pollaczek_error": np.array(pollaczek),
    }  # fmt: skip
    return {name: mean_of_seeds(values.tolist()) for name, values in errors.items()}


def half_slice(
    service: Service, cascade: Policy, teacher: Policy, rows: int, whole: Sequence[tuple[int, int]]
) -> dict[str, Claim]:
    """GPUs of the whole service by half of the slice over those by the slice; and by how much cascade over teacher changes.

    Args:
        whole: GPUs of cascade and teacher in the slice, by seed.
    """
    half = replace(service, slice=2 * service.slice)
    gpus = np.array([[sum(sized(half, policy, rows, seed).servers.values()) for policy in (cascade, teacher)]
                     for seed in range(len(whole))], dtype=np.float64)  # fmt: skip
    before = np.array(whole, dtype=np.float64)
    changes = {
        "fleet_half_slice_gpus_cascade": 2 * gpus[:, 0] / before[:, 0],
        "fleet_half_slice_gpus_teacher": 2 * gpus[:, 1] / before[:, 1],
        "fleet_half_slice_difference": gpus[:, 0] / gpus[:, 1] - before[:, 0] / before[:, 1],
    }
    return {name: mean_of_seeds(values.tolist()) for name, values in changes.items()}
