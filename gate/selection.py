"""Picking the best of a batch, and how two oracles' opinions of it differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def best_of(scores: Sequence[float], count: int, groups: Sequence[str] | None = None) -> list[int]:
    """Indices of the ``count`` best, the best first; with ``groups``, the best of each group, groups in order of appearance.

    NaN comes after every number, and of equals the earlier comes first.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"Best-of picks 1 picture or more, not {count}.")
    labels = [""] * len(scores) if groups is None else groups
    best = []
    for wanted in dict.fromkeys(labels):
        rows = [i for i, label in enumerate(labels) if label == wanted]
        best += sorted(rows, key=lambda i: (math.isnan(scores[i]), -scores[i] if not math.isnan(scores[i]) else 0, i))[:count]
    return best


@dataclass(frozen=True)
class Agreement:
    """How far two oracles agree on a batch.

    Attributes:
        spearman, kendall: Rank correlations in -1..1 over the pictures that both scored; NaN with fewer than two different ones.
        ranks_a, ranks_b: Rank of each picture, 1 the best, ties shared; NaN where there is no score.
    """

    spearman: float
    kendall: float
    ranks_a: tuple[float, ...]
    ranks_b: tuple[float, ...]

    def disagreements(self, count: int = 3) -> list[int]:
        """The pictures whose ranks lie furthest apart, the furthest first; none where the ranks are equal."""
        gaps = {i: abs(a - b) for i, (a, b) in enumerate(zip(self.ranks_a, self.ranks_b, strict=True)) if abs(a - b) > 0}
        return sorted(gaps, key=lambda i: (-gaps[i], i))[:count]


def agreement(a: Sequence[float], b: Sequence[float]) -> Agreement:
    """Spearman's rho and Kendall's tau-b (scipy), and the ranks that they compare.

    Raises:
        ValueError: There is not one score of each oracle for every picture.
    """
    if len(a) != len(b):
        raise ValueError(f"One oracle scored {len(a)} pictures and the other {len(b)}; compare them on the same batch.")
    from scipy import stats

    both = [i for i in range(len(a)) if math.isfinite(a[i]) and math.isfinite(b[i])]
    ours, theirs = [a[i] for i in both], [b[i] for i in both]
    rho = tau = math.nan
    if len(set(ours)) > 1 and len(set(theirs)) > 1:
        rho, tau = float(stats.spearmanr(ours, theirs)[0]), float(stats.kendalltau(ours, theirs)[0])
    ranks: list[list[float]] = [[math.nan] * len(a), [math.nan] * len(a)]
    for target, values in zip(ranks, (ours, theirs), strict=True):
        for i, rank in zip(both, stats.rankdata([-v for v in values]), strict=True):
            target[i] = float(rank)
    return Agreement(rho, tau, tuple(ranks[0]), tuple(ranks[1]))
