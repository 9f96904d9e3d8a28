"""A taste from clicks: Bradley-Terry on a picture's features, and how much the published judge's word weighs beside it.

The model (Bradley and Terry, 1952): the artist prefers picture i to picture j with probability

    P(i > j) = sigma(s_i - s_j),     s(x) = a w.phi(x) + b z(x),                                            (BT)

phi(x) in R^D the features of a picture, z(x) the published judge's score in standard deviations over the clicked pictures.
Given pairs (better, worse), maximum likelihood of w under a ridge prior N(0, C) is logistic regression of "1" on
phi(better) - phi(worse) without an intercept. C is the value with the best held-out likelihood. The weights a, b >= 0 come by
stacking (Wolpert, 1992): logistic regression on the *held-out* margins w.(phi_i - phi_j) and on z_i - z_j. A head that has
learned nothing has held-out margins that tell nothing, so a goes to 0 and the published judge stays; with more clicks its say
shrinks as far as the evidence goes. Scores are in logits: a difference of 1 means 73 to 27.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
LEAST_CLICKS, LEAST_GROUPS = 15, 5
_FOLDS = 5
_RIDGES = tuple(10.0**k for k in range(-3, 4))
_LEAST_KEPT = 3  # clicks for, and against, the draft before there is a threshold
_CERTAIN = 1.96  # standard deviations of a 95 % interval


@dataclass(frozen=True)
class Taste:
    """What was learned.

    Attributes:
        weight: a w [D]: the score's part of the features.
        published: b: the weight of the published judge's z.
        mean, std: Of the published judge's scores over the clicked pictures.
        ridge: C.
        clicks: How many it learned from.
        accuracy, lo, hi: Share of held-out clicks that it would have made itself, with Wilson's 95 % interval, which takes
            clicks for independent.
        published_accuracy: The published judge's share of the same clicks; NaN without one.
        threshold: The draft's score at which the artist keeps it as often as not, NaN where the clicks don't tell.
        shares: Share of the say of head and published judge, by the spread of each part over the clicked pairs.
    """

    weight: Array
    published: float
    mean: float
    std: float
    ridge: float
    clicks: int
    accuracy: float
    lo: float
    hi: float
    published_accuracy: float
    threshold: float
    shares: tuple[float, float]


def learn(
    features: Array, published: Array | None, pairs: Sequence[tuple[int, int]], prompts: Sequence[str],
    improved: Sequence[bool] | None = None, mix: float | None = None,
) -> Taste:  # fmt: skip
    """A taste.

    Args:
        features: [N, D] of the clicked pictures.
        published: [N] scores of a published judge; None without one.
        pairs: (better, worse), rows of ``features``.
        prompts: [N]; held out are whole prompts where there are enough, so that the figures hold for new ones.
        improved: [N] whether the teacher made it; for the threshold.
        mix: The published judge's share of the say, 0..1, instead of what the clicks say.

    Raises:
        ValueError: There are too few clicks, or they are all about too few pictures to hold any out.
    """
    if published is not None:
        published, pairs = _scored(published, pairs)
    groups = _groups(pairs, prompts)
    _require_enough(pairs, groups)
    better, worse = (np.array(side) for side in zip(*pairs, strict=True))
    scale = float(features.std(0).mean()) or 1.0
    phi = (features - features.mean(0)) / scale
    x = phi[better] - phi[worse]
    mean, std = (float(published.mean()), float(published.std()) or 1.0) if published is not None else (0.0, 1.0)
    z = (published - mean) / std if published is not None else np.zeros(len(phi))
    dz = z[better] - z[worse]
    folds = _folds(groups)
    ridge, margins = _best_ridge(x, folds)
    parts = np.stack([margins, dz], 1)
    usable = (True, published is not None)
    guessed = np.empty(len(x))
    for train, test in folds:
        guessed[test] = parts[test] @ _stack(parts[train], usable, mix)
    right = float(((guessed > 0) + 0.5 * (guessed == 0)).mean())
    lo, hi = wilson(right, len(x))
    weights = _stack(parts, usable, mix)
    head = weights[0] * _ridge_regression(x, ridge)
    scores = phi @ head + weights[1] * z
    spread = np.array([np.std(x @ head), abs(weights[1]) * np.std(dz)])
    shares = spread / spread.sum() if spread.sum() > 0 else np.array([1.0, 0.0])
    agreed = float(((dz > 0) + 0.5 * (dz == 0)).mean()) if published is not None else math.nan
    offset = float(features.mean(0) @ head) / scale  # scores are told of features as they are, so the mean goes back in
    threshold = _threshold(scores, pairs, improved) + offset
    return Taste(
        head / scale, float(weights[1]), mean, std, ridge, len(x), right, lo, hi, agreed, threshold,
        (float(shares[0]), float(shares[1])),
    )  # fmt: skip


def _scored(published: Array, pairs: Sequence[tuple[int, int]]) -> tuple[Array, list[tuple[int, int]]]:
    """The clicks on pictures that the published judge gives scores, and scores that are numbers throughout."""
    fine = np.isfinite(published)
    kept = [(better, worse) for better, worse in pairs if fine[better] and fine[worse]]
    if len(kept) < min(len(pairs), LEAST_CLICKS):
        raise ValueError(f"The oracle gives no score to {(~fine).sum()} of the {len(fine)} clicked pictures; connect another.")
    return np.where(fine, published, published[fine].mean() if fine.any() else 0.0), kept


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count`` (Wilson, 1927)."""
    z2 = _CERTAIN**2 / count
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(max(0.0, share * (1 - share) * z2 + z2**2 / 4)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _groups(pairs: Sequence[tuple[int, int]], prompts: Sequence[str]) -> list[str]:
    """What stays together when clicks are held out: a prompt's; where there are few prompts, those of compared pictures."""
    by_prompt = [prompts[better] for better, _ in pairs]
    if len(set(by_prompt)) >= LEAST_GROUPS:
        return by_prompt
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    better, worse = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_matrix((np.ones(len(pairs)), (better, worse)), shape=(len(prompts), len(prompts)))
    _, label = connected_components(graph, directed=False)
    return [str(label[row]) for row in better]


def _require_enough(pairs: Sequence[tuple[int, int]], groups: Sequence[str]) -> None:
    if len(pairs) < LEAST_CLICKS:
        raise ValueError(
            f"There are {len(pairs)} clicks, and a taste takes at least {LEAST_CLICKS} (better 50): click the better of two on "
            "the Draft Board."
        )
    if len(set(groups)) < LEAST_GROUPS:
        raise ValueError(
            f"The {len(pairs)} clicks are about pictures that are all compared with each other, of {len(set(groups))} groups; "
            f"click on pictures of at least {LEAST_GROUPS} prompts."
        )


def _folds(groups: Sequence[str]) -> list[tuple[Array, Array]]:
    from sklearn.model_selection import GroupKFold

    split = GroupKFold(min(_FOLDS, len(set(groups)))).split(np.zeros(len(groups)), groups=groups)
    return [(train, test) for train, test in split]


def _ridge_regression(x: Array, ridge: float) -> Array:
    """w of (BT). Every click is told both ways round, since a regression without intercept wants both answers."""
    from sklearn.linear_model import LogisticRegression

    both, answers = np.concatenate([x, -x]), np.repeat([1, 0], len(x))
    # Each click counts once, though it is told twice: half the weight each.
    fitted = LogisticRegression(C=ridge, fit_intercept=False, max_iter=2000).fit(both, answers, np.full(len(both), 0.5))
    weights: Array = fitted.coef_[0]
    return weights


def _held_out(x: Array, folds: Sequence[tuple[Array, Array]], ridge: float) -> Array:
    """Each click's margin by the head that never saw its group."""
    margins = np.empty(len(x))
    for train, test in folds:
        margins[test] = x[test] @ _ridge_regression(x[train], ridge)
    return margins


def _best_ridge(x: Array, folds: Sequence[tuple[Array, Array]]) -> tuple[float, Array]:
    """The C with the best held-out log-likelihood, and the held-out margins that it gives."""
    margins = {ridge: _held_out(x, folds, ridge) for ridge in _RIDGES}
    best = max(_RIDGES, key=lambda ridge: float(-np.logaddexp(0, -margins[ridge]).mean()))
    return best, margins[best]


def _stack(parts: Array, usable: tuple[bool, bool], mix: float | None) -> Array:
    """The weights [2] >= 0 of head and published judge; what weighs less than nothing weighs nothing."""
    spread = parts.std(0)
    spread[spread == 0] = 1.0
    parts = parts / spread  # so that the ridge means the same for both
    if mix is not None and all(usable):
        direction = np.array([1 - mix, mix])
        return direction * max(0.0, float(_ridge_regression((parts @ direction)[:, None], 1.0)[0])) / spread
    chosen = [column for column in (0, 1) if usable[column] and parts[:, column].any()]
    weights = np.zeros(2)
    while chosen:
        fitted = _ridge_regression(parts[:, chosen], 1.0)
        if (fitted >= 0).all():
            weights[chosen] = fitted
            break
        chosen.pop(int(fitted.argmin()))
    return weights / spread


def _threshold(scores: Array, pairs: Sequence[tuple[int, int]], improved: Sequence[bool] | None) -> float:
    """The draft's score at which the artist keeps it over the teacher's picture as often as not: P(keep) = sigma(g (s - t))."""
    from sklearn.linear_model import LogisticRegression

    if improved is None:
        return math.nan
    mixed = [(better, worse) for better, worse in pairs if improved[better] != improved[worse]]
    kept = np.array([not improved[better] for better, _ in mixed])
    drafts = np.array([scores[worse if improved[better] else better] for better, worse in mixed])
    if min(kept.sum(), len(kept) - kept.sum()) < _LEAST_KEPT:
        return math.nan
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit(drafts[:, None], kept)
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return -intercept / slope if slope > 0 else math.nan


def in_words(taste: Taste, unread: int = 0) -> str:
    """For people: how good it is, what it is made of, and what to think of it."""
    other = "" if math.isnan(taste.published_accuracy) else f"; the published judge {taste.published_accuracy:.0%}"
    lines = [
        f"{taste.clicks} clicks. Of clicks that it had not seen it would have made {taste.accuracy:.0%} itself "
        f"({taste.lo:.0%} to {taste.hi:.0%}){other}.",
        f"Your clicks have {taste.shares[0]:.0%} of the say, the published judge {taste.shares[1]:.0%}; ridge {taste.ridge:g}.",
    ]
    if taste.lo <= 0.5:
        lines.append("That is not clearly better than a coin: click more, and only where you are sure.")
    if math.isnan(taste.threshold):
        lines.append("There is no threshold of yours yet: click on drafts beside the teacher's pictures, and keep some of each.")
    else:
        lines.append(f"Below {taste.threshold:.3g} you would rather have the teacher's picture than the draft.")
    if unread:
        lines.append(f"{unread} lines of the file could not be read and are left out.")
    return " ".join(lines)
