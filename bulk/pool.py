"""Workers that are lent one at a time: made when they are needed, replaced when they break, sent away when they idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from .job import PictureError

_AGAIN = 5.0  # seconds until one is asked for again, where there was none to be had
W = TypeVar("W")
R = TypeVar("R")


class NoWorkersError(PictureError):
    """Nobody is left who could draw these pictures; the message says why."""


class Pool(Generic[W]):
    """At most ``most`` workers; who asks when all are busy waits, which is what holds the work before it back.

    Args:
        make: Makes a worker; may take long, and may raise. None: there is none to be had now.
        most: How many there may be at a time.
        broken: What a worker raises that is no longer there: its work is done again by another.
        end: Sends a worker away.
        idle: Seconds after which one that has nothing to do is sent away, as long as another is left.
        tries: How often one piece of work is begun before it counts as hopeless.
    """

    def __init__(
        self, make: Callable[[], W | None], most: int, broken: tuple[type[BaseException], ...] = (),
        end: Callable[[W], object] = lambda _: None, idle: float = 300.0, tries: int = 4,
    ) -> None:  # fmt: skip
        self.make, self.most, self.broken, self.end, self.idle, self.tries = make, most, broken, end, idle, tries
        self._free: list[tuple[float, W]] = []
        self._count = 0
        self._changed = threading.Condition()
        self.replaced = 0  # workers that broke

    def run(self, work: Callable[[W], R]) -> R:
        """Have a worker do ``work``; another one, where the first breaks.

        Raises:
            NoWorkersError: Several broke over it, or nobody is left.
        """
        for _ in range(self.tries):
            worker = self._take()
            try:
                result = work(worker)
            except self.broken as error:
                last = error
                self._give_up(worker)
            except BaseException:
                self._give_back(worker)
                raise
            else:
                self._give_back(worker)
                return result
        raise NoWorkersError(f"{self.tries} workers broke over the same pictures; the last said: {last}") from last

    def _take(self) -> W:
        while True:
            with self._changed:
                while not self._free and self._count >= self.most:
                    self._changed.wait()
                if self._free:
                    return self._free.pop()[1]
                self._count += 1
            made = None
            try:
                made = self.make()
            finally:
                if made is None:
                    with self._changed:
                        self._count -= 1
                        self._changed.notify()
            if made is not None:
                return made
            with self._changed:
                if not self._count and not self._free:
                    raise NoWorkersError("No worker is left.")
                if not self._free:
                    self._changed.wait(_AGAIN)

    def _give_back(self, worker: W) -> None:
        with self._changed:
            self._free.append((time.monotonic(), worker))
            late = [entry for entry in self._free[:-1] if time.monotonic() - entry[0] > self.idle]
            self._free = [entry for entry in self._free if entry not in late]
            self._count -= len(late)
            self._changed.notify()
        for _since, old in late:
            self.end(old)

    def _give_up(self, worker: W) -> None:
        with self._changed:
            self._count -= 1
            self.replaced += 1
            self._changed.notify()
        with suppress(Exception):
            self.end(worker)

    def close(self) -> None:
        """Send all away that are free."""
        with self._changed:
            free, self._free = self._free, []
            self._count -= len(free)
        for _since, worker in free:
            self.end(worker)
