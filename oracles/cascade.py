"""Two oracles as one: a light one for every picture, a heavy one only where the light one's word isn't enough."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .base import Oracle
from .ensemble import Members

Rule = Callable[[float, float], tuple[float, float]]
"""Of a threshold (a heavy score, and the light score that is worth it): between which light scores the heavy oracle is asked."""


@dataclass(frozen=True)
class Scale:
    """What a light score is worth on the heavy oracle's scale: a rising, piecewise linear map of all numbers onto all numbers.

    Attributes:
        light, heavy: Its knots, both strictly rising; at least two.
    """

    light: tuple[float, ...]
    heavy: tuple[float, ...]

    @classmethod
    def fitted(cls, light: Sequence[float], heavy: Sequence[float]) -> Scale:
        """Isotonic least squares (pool adjacent violators) of pictures that both have scored; pairs with a NaN don't count.

        The knots are the middles of its blocks, so that no two light scores are worth the same; beyond the outermost the map
        goes on with its mean slope.

        Raises:
            ValueError: The heavy scores don't rise with the light ones at all.
        """
        from scipy.optimize import isotonic_regression  # half a second to import

        pairs = np.array([p for p in zip(light, heavy, strict=True) if all(map(math.isfinite, p))]).reshape(-1, 2)
        knots, place, counts = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
        if len(knots) > 1:
            means = np.bincount(place, pairs[:, 1]) / counts  # of the pictures with the same light score
            fit = isotonic_regression(means, weights=counts)
            blocks = list(zip(fit.blocks[:-1], fit.blocks[1:], strict=True))
            if len(blocks) > 1:
                middles = [float(np.average(knots[a:b], weights=counts[a:b])) for a, b in blocks]
                return cls(tuple(middles), tuple(float(fit.x[a]) for a, _ in blocks))
        raise ValueError(
            "The light oracle's scores don't rise with the heavy one's, so it can't stand in for it: take another light oracle, "
            "or calibrate on more prompts."
        )

    def heavy_of(self, light: Sequence[float]) -> list[float]:
        """What light scores are worth; NaN stays NaN."""
        return _through(light, self.light, self.heavy)

    def light_of(self, heavy: Sequence[float]) -> list[float]:
        """The light scores that are worth so much; the inverse of ``heavy_of``."""
        return _through(heavy, self.heavy, self.light)


def _through(values: Sequence[float], x: Sequence[float], y: Sequence[float]) -> list[float]:
    v, slope = np.asarray(values, dtype=np.float64), (y[-1] - y[0]) / (x[-1] - x[0])
    inside = np.interp(v, x, y)
    return [float(z) for z in inside + slope * (np.minimum(v - x[0], 0) + np.maximum(v - x[-1], 0))]


def band_around(threshold: float, scale: Scale, rule: Rule) -> tuple[float, float]:
    """Where ``rule`` has the band, widened to hold the light score that is worth the threshold; none at an infinite one."""
    if not math.isfinite(threshold):
        return math.inf, -math.inf
    middle = scale.light_of([threshold])[0]
    low, high = rule(threshold, middle)
    hair = 1e-9 * max(scale.light[-1] - scale.light[0], abs(middle))  # beyond what rounding could turn round
    return min(low, middle - hair), max(high, middle + hair)


class Cascade(Oracle):
    """The light oracle's word on the heavy oracle's scale, and within a band around the threshold the heavy one's own.

    A picture's score depends on the picture, its prompt and the threshold alone. Callers that know their threshold ask
    ``doubtful`` with it (``bridge.scoring``); all others get the band around ``threshold``.

    Args:
        heavy: May be a ``Deferred``, which is not read while no picture needs it.
        scale: From the light scores to the heavy ones.
        rule: Where the band lies; see ``band_around``.
        threshold: A heavy score, for callers that have none.
        heavy_fingerprint: Of the heavy oracle that ``scale`` was learned on.
        promise: What holds of decisions at one threshold; nothing where nothing is promised.

    Raises:
        ValueError: Scores of the heavy oracle mean something else for every prompt.
    """

    def __init__(
        self, light: Oracle, heavy: Oracle, scale: Scale, rule: Rule, threshold: float, heavy_fingerprint: str, promise: str = ""
    ) -> None:
        if not heavy.comparable_across_prompts:
            raise ValueError(
                f"Scores of {heavy.name} mean something else for every prompt, so no band of one threshold holds for all: take a "
                "heavy oracle that is comparable across prompts, such as ImageReward, HPSv3 or an aesthetic predictor."
            )
        self.light, self._heavy, self.scale, self.rule = light, heavy, scale, rule
        self.threshold, self.heavy_fingerprint, self.promise = threshold, heavy_fingerprint, promise
        self.name = f"{light.name}, then {heavy.name}"
        self.batch = min(light.batch, heavy.batch)
        self.reads_prompts = light.reads_prompts or heavy.reads_prompts

    @property
    def heavy(self) -> Oracle:
        """The heavy oracle, read now if it wasn't.

        Raises:
            ValueError: It is another than the one that was calibrated.
        """
        if self._heavy.fingerprint() != self.heavy_fingerprint:
            raise ValueError(
                f"The cascade was calibrated with another {self._heavy.name} ({self.heavy_fingerprint}; this one is "
                f"{self._heavy.fingerprint()}); connect that one, or calibrate this one."
            )
        return self._heavy

    @property
    def heavy_name(self) -> str:
        """Its name, without reading it."""
        return self._heavy.name

    @property
    def network(self) -> Members:  # type: ignore[override]
        """Both networks, for callers that need them at once."""
        return Members([self.light.network, self.heavy.network])

    def fingerprint(self) -> str:
        """See ``Oracle.fingerprint``. The heavy oracle isn't read for it."""
        parts = (self.light.fingerprint(), self.heavy_fingerprint, self.scale, self.rule, self.threshold)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def unit(self) -> tuple[str, str]:
        """See ``Oracle.unit``: the heavy oracle's."""
        return self.heavy_fingerprint, self.heavy_name

    def doubts(self, pictures: Sequence[Tensor]) -> str:
        """See ``Oracle.doubts``: the light oracle's, who sees them all."""
        return self.light.doubts(pictures)

    def band(self, threshold: float) -> tuple[float, float]:
        """The light scores, ends included, of pictures that the heavy oracle is asked about."""
        return band_around(threshold, self.scale, self.rule)

    def doubtful(self, light: Sequence[float], thresholds: Sequence[float]) -> list[int]:
        """Which pictures the heavy oracle is to be asked about, by their light scores and what each must reach.

        A light score that is no number leaves the question open; a threshold that is none or infinite doesn't ask it.
        """
        bands = {threshold: self.band(threshold) for threshold in set(thresholds)}
        rows = zip(light, (bands[threshold] for threshold in thresholds), strict=True)
        return [i for i, (score, (low, high)) in enumerate(rows) if low <= high and not (score < low or score > high)]

    def words(self, asked: int, pictures: int, thresholds: Sequence[float]) -> str:
        """What to say of a batch: how often the heavy oracle was asked, and what holds where all pictures have one threshold."""
        one = len(set(thresholds)) == 1 and math.isfinite(thresholds[0])
        told = f" {self.promise}." if one and self.promise else ""
        return f"{self.heavy_name} was asked about {asked} of {pictures} pictures.{told}"

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``, with the band around ``threshold``."""
        light = self.light.reward(images, prompts).double().tolist()
        scores = torch.tensor(self.scale.heavy_of(light), dtype=torch.float32, device=images.device)
        if rows := self.doubtful(light, [self.threshold] * len(light)):
            scores[rows] = self.heavy.reward(images[rows], [prompts[row] for row in rows]).float()
        return scores
