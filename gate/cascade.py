"""Where a cascade asks its heavy oracle: a band of light scores around a threshold, by a share or with a guarantee."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from dataclasses import dataclass

from ..oracles.cascade import Cascade
from .calibration import Calibration
from .selection import agreement
from .thresholds import most_worse, of_hundred, pairs_needed

SHARE, GUARANTEED = "share", "guaranteed"
BANDS = (SHARE, GUARANTEED)
FEWEST = 10  # pairs that a scale is learned from


@dataclass(frozen=True)
class Pairs:
    """Pictures that both oracles have scored.

    Attributes:
        light, heavy: Scores, one a picture.
        first: The places of one picture a prompt: pictures of one prompt are not independent of each other.
    """

    light: tuple[float, ...]
    heavy: tuple[float, ...]
    first: tuple[int, ...]

    @classmethod
    def of(cls, light: Calibration, heavy: Calibration) -> Pairs:
        """Of two calibrations of the same drafts, in pairs as far as both reach.

        Raises:
            ValueError: They are not of the same drafts, or too few.
        """
        if light.published or heavy.published:
            raise ValueError("Published percentiles tell no two scores of one picture; calibrate your student with both oracles.")
        count = min(len(light), len(heavy))
        differing = [
            what for what, a, b in (
                ("student", light.student, heavy.student), ("schedule", light.schedule, heavy.schedule),
                ("prompts", light.prompts[:count], heavy.prompts[:count]),
                *((key.replace("_", " "), light.settings.get(key), heavy.settings.get(key))
                  for key in ("size", "negative_prompt", "first_seed", "batch_size")),
            ) if a != b and None not in (a, b)
        ]  # fmt: skip
        if differing:
            raise ValueError(
                f"The calibrations '{light.name}', '{heavy.name}' are not of the same drafts (they differ in "
                f"{', '.join(differing)}); make both with the same student and settings, each with its own oracle and name."
            )
        first: dict[str, int] = {}
        for i, prompt in enumerate(light.prompts[:count]):
            first.setdefault(prompt, i)
        pairs = cls(light.scores[:count], heavy.scores[:count], tuple(first.values()))
        if sum(math.isfinite(a + b) for a, b in zip(pairs.light, pairs.heavy, strict=True)) < FEWEST:
            raise ValueError(f"A cascade wants {FEWEST} drafts or more that both oracles have scored; calibrate on more prompts.")
        return pairs


@dataclass(frozen=True)
class ShareBand:
    """As many of the student's drafts as a share (0..1): those whose light scores rank nearest to the threshold's.

    Attributes:
        light: Light scores of the student's drafts, rising.
    """

    light: tuple[float, ...]
    share: float

    @classmethod
    def of(cls, pairs: Pairs, share: float) -> ShareBand:
        """By the calibration's drafts.

        Raises:
            ValueError: The share is not in 0..1.
        """
        if not 0 <= share <= 1:
            raise ValueError(
                f"The share that the heavy oracle sees is a number from 0 (nobody) to 1 (everybody), not {share:g}"
                f"{of_hundred(share)}."
            )
        return cls(tuple(sorted(filter(math.isfinite, pairs.light))), share)

    promise = ""

    def __call__(self, threshold: float, middle: float) -> tuple[float, float]:
        """See ``oracles.cascade.Rule``. Near an end of the scores the band lies to one side, and stays as wide."""
        count = len(self.light)
        inside = round(self.share * count)
        start = min(max(round(bisect_left(self.light, middle) - inside / 2), 0), count - inside)
        if inside == 0:
            return middle, middle
        low = self.light[start] if start else -math.inf
        return low, self.light[start + inside - 1] if start + inside < count else math.inf


@dataclass(frozen=True)
class CertifiedBand:
    """The narrowest band outside of which both oracles decide alike, but for ``alpha`` of the pictures, with confidence.

    Theorem. Let (L_i, H_i), i = 1..n, and a new (L, H) be independent draws from one law: light and heavy scores of a picture.
    At a threshold t that was not chosen by looking at these n pairs call a picture good where H >= t, which is what the heavy
    oracle accepts. The cascade accepts the same within [low, high], nothing below, and everything above. Let j, m >= 0 be such
    that P(Bin(n, alpha) <= j + m + 1) <= 1 - confidence, low the (j+1)-th lowest L_i of the good pairs, and high the (m+1)-th
    highest of the others (infinity and -infinity where there are fewer). Then with probability at least ``confidence`` over the n
    pairs

        R = P(L < low, good) + P(L > high, not good) <= alpha,

    where R is the share of new pictures on which the cascade decides otherwise than the heavy oracle.

    Proof. Lay all pictures along [0, 1]: a good one at U = P(L' < L, good'), any other at U = 1 - P(L' > L, not good'), with
    (L', H') another draw; ties are broken at random. Then U is uniform, the good ones fill [0, P(good)], each kind in the order
    of its L. So U_(j+1), the (j+1)-th lowest of n, is at least P(L < low, good), and 1 - U_(n-m) at least P(L > high, not good).
    Hence R <= U_(j+1) + 1 - U_(n-m), which is j + m + 2 of the n + 1 spacings of n uniform points, so it is
    Beta(j + m + 2, n - j - m - 1). It is above alpha with probability P(Bin(n, alpha) <= j + m + 1).
    QED. (Wilks's tolerance limits, Ann. Math. Stat. 12, 1941, 91-96, on a line made of both
    kinds; where the law has no atoms and both kinds abound, the probability is exact.)

    Widening the band keeps the promise. With too few pairs for any j and m, everybody is in it.

    Attributes:
        light, heavy: The n pairs, one a prompt. A heavy NaN is rejected; a light NaN is in every band.
        alpha: Share (0..1) of decisions that may differ.
        confidence: Between 0 and 1.
    """

    light: tuple[float, ...]
    heavy: tuple[float, ...]
    alpha: float
    confidence: float

    @classmethod
    def of(cls, pairs: Pairs, alpha: float, confidence: float) -> CertifiedBand:
        """By the calibration's drafts, one a prompt.

        Raises:
            ValueError: ``alpha`` is not in 0..1 or ``confidence`` not between 0 and 1.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"The share of decisions that may differ is a number from 0 to 1, not {alpha:g}{of_hundred(alpha)}.")
        if not 0 < confidence < 1:
            raise ValueError(f"The confidence is a number between 0 and 1, such as 0.9, not {confidence:g}.")
        return cls(tuple(pairs.light[i] for i in pairs.first), tuple(pairs.heavy[i] for i in pairs.first), alpha, confidence)

    @property
    def spared(self) -> int:
        """j + m: how many pairs are left outside on the wrong side; -1 where the pairs are too few to tell."""
        return max(most_worse(len(self.light), self.alpha, 1 - self.confidence) - 1, -1)

    @property
    def promise(self) -> str:
        """In words."""
        if self.alpha >= 1:
            return "All decisions may differ, so nobody is asked"
        if self.alpha <= 0:
            return "No decision may differ, so all are asked"
        count, sure = len(self.light), f"With {self.confidence:.0%} confidence at most {self.alpha:.1%}"
        if self.spared < 0:
            first = pairs_needed(self.alpha, self.confidence)
            needed = next(n for n in itertools.count(first) if most_worse(n, self.alpha, 1 - self.confidence) > 0)
            return f"Drafts of {count} prompts are too few to promise anything, so all are asked; it takes {needed} prompts"
        like = f"pictures like the calibration's ({count} prompts)"
        return f"{sure} of {like} are decided otherwise than by it alone at this threshold"

    def __call__(self, threshold: float, middle: float) -> tuple[float, float]:
        """See ``oracles.cascade.Rule``."""
        if self.alpha >= 1:
            return middle, middle
        if self.spared < 0:
            return -math.inf, math.inf
        j, m = (self.spared + 1) // 2, self.spared // 2
        pairs = [(light, heavy) for light, heavy in zip(self.light, self.heavy, strict=True) if not math.isnan(light)]
        good = sorted(light for light, heavy in pairs if heavy >= threshold)
        bad = sorted((light for light, heavy in pairs if not heavy >= threshold), reverse=True)
        return good[j] if j < len(good) else math.inf, bad[m] if m < len(bad) else -math.inf


def report(cascade: Cascade, pairs: Pairs) -> str:
    """Where the band of the cascade's own threshold lies, and what became of the calibration's drafts; a line each."""
    light, heavy, t = cascade.light.name, cascade.heavy_name, cascade.threshold
    low, high = cascade.band(t)
    rows, worth = cascade.doubtful(pairs.light, [t] * len(pairs.light)), cascade.scale.heavy_of(pairs.light)
    asked = set(rows)
    decided = [heavy_score if i in asked else worth[i] for i, heavy_score in enumerate(pairs.heavy)]
    differing = sum((a >= t) != (b >= t) for a, b in zip(decided, pairs.heavy, strict=True))
    lines = [
        f"{light} judges every picture, {heavy} the doubtful ones. Both have scored {len(pairs.light)} drafts of "
        f"{len(pairs.first)} prompts; their rank correlation is {agreement(pairs.light, pairs.heavy).spearman:.2f}.",
        *([f"{cascade.promise}."] if cascade.promise else []),
        f"At a threshold of {t:.4g} {heavy} is asked where {light} scores from {low:.4g} to {high:.4g}: about {len(rows)} of the "
        f"{len(pairs.light)} drafts. {differing} of them are decided otherwise than by {heavy} alone.",
    ]
    return "\n".join(lines)
