"""Queues of a service on simpy: pools of servers that take batches, arrivals that swing and burst, and formulas to check them by.

Times are in seconds, rates per second. FIFO, nobody gives up, nothing is pushed back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import simpy

from .figures import Array

Stages = Generator[str, None, float]
"""A picture's way: the pools it visits, one after the other; what it returns is what it was good for."""


class Pool:
    """Servers with one FIFO queue. A free one starts once ``most`` wait, or the oldest has waited for ``patience``.

    Args:
        seconds: A batch's size -> how long it takes.

    Attributes:
        waits: Of every job, from its coming to its batch's start.
        busy: Server-seconds.
        area: The integral of how many are inside over time.
        sojourns: The sum of how long each was inside.
    """

    def __init__(
        self, env: simpy.Environment, servers: int, seconds: Callable[[int], float], most: int = 1, patience: float = 0.0
    ) -> None:
        self.env, self.servers, self.seconds, self.most, self.patience = env, servers, seconds, most, patience
        self.queue: deque[tuple[float, Callable[[], None]]] = deque()
        self.free, self.inside, self.changed, self.alarm = servers, 0, env.now, math.inf
        self.busy = self.area = self.sojourns = 0.0
        self.waits: list[float] = []

    def put(self, then: Callable[[], None]) -> None:
        """A job comes; ``then`` is called when it is done."""
        self._count(1)
        self.queue.append((self.env.now, then))
        self._start()

    def _start(self) -> None:
        now = self.env.now
        while self.free and self.queue:
            ripe = self.queue[0][0] + self.patience
            if len(self.queue) < self.most and ripe > now + 1e-9:
                self._wake(ripe)
                return
            batch = [self.queue.popleft() for _ in range(min(self.most, len(self.queue)))]
            self.waits += [now - came for came, _ in batch]
            self.free -= 1
            took = self.seconds(len(batch))
            self.busy += took
            _after(self.env, took, partial(self._finish, batch))

    def _wake(self, when: float) -> None:
        if self.alarm > when:
            self.alarm = when
            _after(self.env, when - self.env.now, self._ring)

    def _ring(self) -> None:
        self.alarm = math.inf
        self._start()

    def _finish(self, batch: list[tuple[float, Callable[[], None]]]) -> None:
        self.free += 1
        self._count(-len(batch))
        for came, then in batch:
            self.sojourns += self.env.now - came
            then()
        self._start()

    def _count(self, change: int) -> None:
        self.area += self.inside * (self.env.now - self.changed)
        self.inside, self.changed = self.inside + change, self.env.now


def _after(env: simpy.Environment, seconds: float, call: Callable[[], None]) -> None:
    event = env.timeout(seconds)
    assert event.callbacks is not None  # it has not happened yet
    event.callbacks.append(lambda _: call())


@dataclass(frozen=True)
class Run:
    """What came of a simulation that ran until all had left.

    Attributes:
        latency: Of every picture, from coming to leaving.
        worth: What each picture's way returned.
        pools: As they were left.
    """

    latency: Array
    worth: Array
    pools: dict[str, Pool]

    @property
    def littles_error(self) -> float:
        """The largest of the pools' relative differences between L and lambda W: 0 but for rounding."""
        return max(abs(p.area - p.sojourns) / max(p.area, 1e-9) for p in self.pools.values())


def simulate(
    times: Array, pools: Callable[[simpy.Environment], dict[str, Pool]], way: Callable[[int, dict[str, Pool]], Stages]
) -> Run:
    """Pictures that come at ``times`` (rising), each on its own way.

    Args:
        way: From a picture's number and the pools to its way.
    """
    env = simpy.Environment()
    there = pools(env)
    latency, worth = np.zeros(len(times)), np.zeros(len(times))

    def follow(number: int, stages: Stages) -> None:
        try:
            there[next(stages)].put(lambda: follow(number, stages))
        except StopIteration as end:
            latency[number], worth[number] = env.now - times[number], end.value

    def comings() -> Generator[simpy.Event, None, None]:
        for number, time in enumerate(times):
            yield env.timeout(max(float(time) - env.now, 0.0))
            follow(number, way(number, there))

    env.process(comings())
    env.run()
    return Run(latency, worth, there)


# ------------------------------------------------------------------------------------------------------------ arrivals


@dataclass(frozen=True)
class Load:
    """A day's arrivals: a Poisson process whose rate follows the hour and, on top of that, bursts.

    Attributes:
        rate: Mean over the day.
        day: Its length.
        swing: Amplitude of the day's curve, 0..1 of the mean; the day begins at its quietest.
        burst: How many times the rate is as high in a burst; 1 for none.
        part: Of the day that bursts take.
        lasts: A burst's mean length.
    """

    rate: float
    day: float
    swing: float
    burst: float
    part: float
    lasts: float

    @property
    def quiet(self) -> float:
        """The factor between bursts, so that the mean stays."""
        return 1 / (1 - self.part + self.part * self.burst)

    def times(self, rng: np.random.Generator) -> Array:
        """When pictures come: a Markov-modulated Poisson process (Fischer and Meier-Hellstern 1993) with two states, thinned from
        its highest rate (Lewis and Shedler 1979)."""
        edges, bursting = self._bursts(rng)
        factor = np.where(bursting, self.burst, 1.0) * self.quiet
        highest = self.rate * (1 + self.swing) * float(factor.max())
        times = np.sort(rng.uniform(0, self.day, rng.poisson(highest * self.day)))
        curve = 1 - self.swing * np.cos(2 * np.pi * times / self.day)
        rate = self.rate * curve * factor[np.searchsorted(edges, times, side="right") - 1]
        return times[rng.uniform(0, highest, len(times)) < rate]

    def _bursts(self, rng: np.random.Generator) -> tuple[Array, Any]:
        """Where each state begins, and whether it is a burst; the first is one as often as the day's part in bursts."""
        if self.burst == 1 or self.part == 0:
            return np.zeros(1), np.zeros(1, dtype=bool)
        calm = self.lasts * (1 - self.part) / self.part
        count = int(10 + 2 * self.day / (self.lasts + calm))
        bursting = np.tile([False, True], count) ^ (rng.uniform() < self.part)
        lengths = rng.exponential(np.where(bursting, self.lasts, calm))
        return np.concatenate([[0.0], np.cumsum(lengths)[:-1]]), bursting


# ------------------------------------------------------------------------------------------------------------ formulas


def erlang_c(servers: int, load: float) -> float:
    """The probability that an arrival waits in M/M/c with ``load`` = lambda / mu Erlangs (Erlang's second formula).

    By the recursion of Erlang's first one, B(c) = load B(c - 1) / (c + load B(c - 1)), and C = B / (1 - load/c (1 - B)).

    Raises:
        ValueError: The load is not below the servers: the queue would grow without end.
    """
    if not 0 <= load < servers:
        raise ValueError(f"A load of {load:g} needs more than {load:g} servers, not {servers}.")
    blocked = 1.0
    for c in range(1, servers + 1):
        blocked = load * blocked / (c + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def erlang_wait(servers: int, load: float, mean: float) -> float:
    """The mean wait in M/M/c where a service takes ``mean``: C mean / (c - load)."""
    return erlang_c(servers, load) * mean / (servers - load)


def erlang_quantile(servers: int, load: float, mean: float, share: float) -> float:
    """The wait that ``share`` (0..1) of arrivals at M/M/c don't exceed: P(W > t) = C exp(-(c - load) t / mean)."""
    waits = erlang_c(servers, load)
    return max(0.0, math.log(waits / (1 - share)) * mean / (servers - load)) if waits else 0.0


def pollaczek_khinchine(rate: float, services: Sequence[float]) -> float:
    """The mean wait in M/G/1, lambda E[S^2] / (2 (1 - rho)), where all of ``services`` are as likely.

    Raises:
        ValueError: The server would be busy all the time.
    """
    values = np.asarray(services, dtype=np.float64)
    busy = rate * float(values.mean())
    if busy >= 1:
        raise ValueError(f"One server can't do {busy:g} seconds of work a second.")
    return float(rate * (values**2).mean() / (2 * (1 - busy)))


def square_root_staffing(load: float, beta: float) -> int:
    """Servers for ``load`` Erlangs, at least one: load + beta sqrt(load) (Halfin and Whitt 1981)."""
    return max(1, math.ceil(load + beta * math.sqrt(load) - 1e-9))
