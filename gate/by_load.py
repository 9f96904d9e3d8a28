"""A running threshold whose share of rejected drafts follows the load, so that a service keeps its deadline.

As DiffServe (Ahmad et al., arXiv 2411.15381) and HADIS (arXiv 2509.00642) do it: with more to do than the teacher can, fewer
drafts go to it, the worst ones still. The share is the load's affair, and the threshold that rejects this share the controller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from .controller import WINDOW, State, step


class ByLoad:
    """Judges one score after the other, in the order that they come.

    Args:
        share: Of drafts that go to the teacher at most (0..1).
        horizon: Seconds within which the teacher must be done with what it is given; 0 for a share that stays.
        first: Scores to begin with, such as a calibration's.
    """

    def __init__(self, share: float, horizon: float, first: Sequence[float] = ()) -> None:
        self.share, self.horizon, self.target = share, horizon, share
        self.state = State(recent=tuple(first)[:WINDOW])
        self._set, self._seen = 0.0, deque[float]()

    def follow(self, now: float, rate: float, waiting: float) -> None:
        """A draft has come: set the share anew, ten times a horizon, from the drafts of the last one.

        Args:
            now: Seconds of any clock that only goes forward.
            rate: Pictures a second that the teacher's workers together can answer.
            waiting: Pictures that wait for them.
        """
        if not self.horizon:
            return
        self._seen.append(now)
        if now - self._set < self.horizon / 10:
            return
        self._set = now
        while self._seen[0] <= now - self.horizon:
            self._seen.popleft()
        answers = max(rate * self.horizon - waiting, 0.0)
        self.target = min(self.share, answers / len(self._seen))

    def judge(self, score: float, most: float = 1.0) -> tuple[bool, float]:
        """Whether a draft passes, and the threshold that it was held against.

        Args:
            most: The share that this draft's own budget affords (0..1).
        """
        # What the controller remembers of single pictures, so that judging one again moves nothing, is for artists: it is let go.
        after, gate = step(self.state, [score], ["picture"], min(self.target, most))
        self.state = replace(after, judged={}, latest=(), before=None)
        return gate.accepted[0], gate.threshold_of(0)
