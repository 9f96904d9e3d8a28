"""Picking the best of a batch, and how two oracles' opinions of it differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np


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


def best_together(
    scores: Sequence[float], seen: Any, count: int, variety: float, groups: Sequence[str] | None = None
) -> list[int]:
    """Like ``best_of``, but chosen together, as ``choose_together`` does; the best by score first.

    Args:
        seen: Unit features [N, D]: a distance is 1 - cosine.
        variety: Score that a distance of 1 is worth.
    """
    features, labels = np.asarray(seen, dtype=np.float64), [""] * len(scores) if groups is None else groups
    best = []
    for wanted in dict.fromkeys(labels):
        rows = [i for i, label in enumerate(labels) if label == wanted]
        own = [scores[i] for i in rows]
        chosen = choose_together(own, 1 - features[rows] @ features[rows].T, count, variety)
        best += [rows[chosen[i]] for i in best_of([own[i] for i in chosen], len(chosen))]
    return best


_EXACT = 20_000  # subsets that are all looked at


def choose_together(scores: Sequence[float], distances: Any, count: int, variety: float) -> list[int]:
    """Indices, rising, of the ``count`` pictures of one prompt that are best together (arXiv 2508.15773, eq. 1).

    They maximise sum_i score_i + variety * sum_{i<j} distance_ij: exactly where there are at most 20,000 subsets, beyond that
    greedily and then by swaps until none helps. NaN is chosen only where nothing else is left; of equals the earlier is.

    Args:
        distances: Symmetric [N, N], such as 1 - cosine of features.
        variety: Score that a distance of 1 is worth; 0 gives the best by score.

    Raises:
        ValueError: ``count`` is below 1, or there isn't a row and a column of distances for each score.
    """
    if count < 1:
        raise ValueError(f"Best-of picks 1 picture or more, not {count}.")
    values, apart = np.asarray(scores, dtype=np.float64), np.asarray(distances, dtype=np.float64)
    if apart.shape != (len(values), len(values)):
        raise ValueError(f"There are {len(values)} scores, and distances of shape {apart.shape}; each needs a row and a column.")
    usable = [i for i in range(len(values)) if math.isfinite(values[i])]
    if count >= len(usable):
        rest = [i for i in range(len(values)) if i not in usable]
        return sorted(usable + rest[: count - len(usable)])
    if variety == 0:
        return sorted(best_of(list(values), count))
    if math.comb(len(usable), count) <= _EXACT:
        sets = np.array(list(combinations(usable, count)))
        pairs = sum(apart[sets[:, a], sets[:, b]] for a in range(count) for b in range(a))
        return [int(i) for i in sets[int(np.argmax(values[sets].sum(1) + variety * pairs))]]
    return _by_swaps(values, apart, usable, count, variety)


def newcomers_levels(scores: Sequence[float], distances: Any, chosen: Sequence[int], variety: float) -> list[float]:
    """The score that one more picture would need to take the place of each chosen one, if it lies as far from the others as
    pictures of this prompt do on average: score_i + variety * (sum_j distance_ij - (K - 1) mean distance)."""
    apart, count = np.asarray(distances, dtype=np.float64), len(scores)
    usual = float(apart.sum() / (count * (count - 1))) if count > 1 else 0.0
    own = [float(apart[i, list(chosen)].sum() - apart[i, i]) for i in chosen]
    return [scores[i] + variety * (sum_i - (len(chosen) - 1) * usual) for i, sum_i in zip(chosen, own, strict=True)]


def _by_swaps(values: Any, apart: Any, usable: list[int], count: int, variety: float) -> list[int]:
    free = np.isin(np.arange(len(values)), usable)
    chosen = list[int]()
    while len(chosen) < count:
        worth = np.where(free, values + variety * apart[:, chosen].sum(1), -np.inf)
        chosen.append(int(worth.argmax()))
        free[chosen[-1]] = False
    while True:
        rest, near = np.flatnonzero(free), apart[:, chosen].sum(1)
        # What each chosen one adds to the others, and what each other would add in its place.
        adds = values[chosen] + variety * (near - apart.diagonal())[chosen]
        gains = (values + variety * near)[rest] - variety * apart[chosen][:, rest] - adds[:, None]
        out, new = np.unravel_index(int(gains.argmax()), gains.shape)
        if gains[out, new] <= 1e-12 * (1 + abs(adds[out])):
            return sorted(chosen)
        free[chosen[out]], free[rest[new]] = True, False
        chosen[out] = int(rest[new])


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
