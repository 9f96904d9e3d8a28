"""How long batches take, by their size, from those that were done."""

from __future__ import annotations

from collections import deque

import numpy as np

_LAST = 64  # batches that count


class Pace:
    """Seconds of a batch as a line over its size: a part that the batch shares, and a part for each picture.

    Args:
        workers: Batches that are done at a time.
    """

    def __init__(self, workers: int) -> None:
        self.workers, self._done = workers, deque[tuple[int, float]](maxlen=_LAST)
        self._shared = self._each = 0.0
        self.usual = 1.0  # size of a batch, on average

    def tell(self, size: int, seconds: float) -> None:
        """A batch was done."""
        self._done.append((size, seconds))
        sizes, times = np.array(self._done, float).T
        self.usual = float(sizes.mean())
        slope = float(np.cov(sizes, times, bias=True)[0, 1] / sizes.var()) if sizes.var() > 0 else 0.0
        # Batches of one size tell nothing of another; then, as where the line falls, larger ones cost in proportion.
        self._each = slope if slope > 0 else float(times.sum() / sizes.sum())
        self._shared = max(float(times.mean()) - self._each * self.usual, 0.0)

    def seconds(self, size: float) -> float:
        """Of a batch of ``size`` pictures; 0 while nothing is known."""
        return self._shared + self._each * size

    def rate(self, size: float) -> float:
        """Pictures a second of all workers in batches of ``size``; infinite while nothing is known, 0 without workers."""
        seconds = self.seconds(size)
        return self.workers * size / seconds if seconds > 0 else float("inf") if self.workers else 0.0
