"""What is believed of the next picture's score, and what a look at it is worth: numpy alone.

Scores of one prompt under several sources are one Bayesian linear model with the normal-gamma prior, the prompt's own quality in
common. With z = (score - mean) / within of its source,

    z = u_s + e,   e ~ N(0, v),   u ~ N(0, v K),   1 / v ~ Gamma(a, a - 1)

where K [S, S] says how much prompts differ (in units of what drafts of one prompt differ by) and how far the sources agree on
which prompts are hard. With one source this is the textbook's normal-gamma, shrunk to the calibration with 1 / K drafts' weight.
The next score of a source is then Student's t, of which Pandora's rule needs two integrals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

Array = np.ndarray[Any, np.dtype[np.float64]]

_SHAPES = (2.5, 50.0)  # of the gamma: from very different prompts to all alike
_SHAPE = 5.0  # where nothing tells
_UNCOMMON = 1e6  # how much more prompts differ than drafts, for scores that mean something else for every prompt
_ROUNDS = 100


# ------------------------------------------------------------------------------------------------ Pandora's integrals


def tail(z: Array, dof: Array) -> Array:
    """P(T > z) of Student's t."""
    return np.asarray(special.stdtr(dof, -z))


def excess(z: Array, dof: Array) -> Array:
    """E[(T - z)+] of Student's t with ``dof`` > 1 degrees of freedom: (dof + z^2) / (dof - 1) f(z) - z P(T > z).

    For many degrees of freedom this is the expected improvement of a normal score, f(z) - z P(T > z).
    """
    return _excess(z, dof, tail(z, dof), _log_height(dof))


def _excess(z: Array, dof: Array, beyond: Array, log_height: Array) -> Array:
    density = np.exp(log_height - (dof + 1) / 2 * np.log1p(z**2 / dof))
    return np.maximum((dof + z**2) / (dof - 1) * density - z * beyond, 0.0)


def _log_height(dof: Array) -> Array:
    """log f(0)."""
    return np.asarray(special.gammaln((dof + 1) / 2) - special.gammaln(dof / 2) - np.log(dof * np.pi) / 2)


def reservation(cost: Array, location: Array, scale: Array, dof: Array) -> Array:
    """The score z at which another look is just worth its cost: E[(X - z)+] = cost (Weitzman 1979, eq. 7).

    Args:
        cost: In units of the score; 0 is always worth it (infinity).
        location, scale, dof: Of the t that X follows.
    """
    cost, location, scale, dof = np.broadcast_arrays(cost, location, scale, dof)
    share = cost / scale
    z = -share  # E[(T - z)+] >= -z, so this lies left of the root, from where Newton's steps on a convex function never pass it
    worth, height = share > 0, _log_height(dof)
    for _ in range(_ROUNDS):
        beyond = np.maximum(tail(z, dof), 1e-300)
        step = np.where(worth, (_excess(z, dof, beyond, height) - share) / beyond, 0.0)
        z = z + step
        if not np.any(np.abs(step) > 1e-9):
            break
    return np.where(share > 0, location + scale * z, np.inf)


# ------------------------------------------------------------------------------------------------------------ beliefs


@dataclass(frozen=True)
class Prior:
    """What calibrations, or the batch so far, say of S sources before a prompt is tried.

    Attributes:
        mean: Of each source's scores [S]; NaN where nothing is known of it.
        within: Standard deviation of drafts of one prompt [S].
        between: K [S, S]: covariance of the prompts' own means, each in units of ``within``.
        shape: a of the gamma.
    """

    mean: Array
    within: Array
    between: Array
    shape: float = _SHAPE

    @property
    def known(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which sources something is known of [S]."""
        return np.isfinite(self.mean)

    def apart(self) -> Prior:
        """The same for an oracle whose scores mean something else for every prompt: a prompt's level, which all sources share, is
        unknown before a try."""
        level = 1 / np.where(self.known, self.within, 1.0)  # a score in each source's unit
        level = (level / np.exp(np.log(level).mean())).clip(1e-2, 1e2)
        return replace(self, between=self.between + _UNCOMMON * np.outer(level, level))


@dataclass(frozen=True)
class Predictive:
    """The next score of each source for each prompt: Student's t with ``location`` and ``scale`` [G, S] and ``dof`` [G, 1]."""

    location: Array
    scale: Array
    dof: Array

    def improvement(self, best: Array) -> Array:
        """E[(X - best)+] [G, S] over scores in hand [G, 1]."""
        return self.scale * excess((best - self.location) / self.scale, self.dof)

    def chance(self, best: Array) -> Array:
        """P(X > best) [G, S]."""
        return tail((best - self.location) / self.scale, self.dof)

    def reservation(self, costs: Array) -> Array:
        """See the function of this name; [G, S]."""
        return reservation(costs, self.location, self.scale, self.dof)


def predictive(prior: Prior, counts: Array, means: Array, squares: Array) -> Predictive:
    """The posterior of every prompt, as the t of its next scores.

    Args:
        counts: Drafts seen [G, S].
        means: Their mean score [G, S]; anything where there are none.
        squares: Their squared deviations from it, summed [G, S].
    """
    known = prior.known
    mean, within = np.where(known, prior.mean, 0.0), np.where(known, prior.within, 1.0)
    z = np.where(counts > 0, (means - mean) / within, 0.0)
    seen = counts * z
    # (K^-1 + N)^-1 without K's inverse, which need not exist where sources agree wholly.
    identity = np.eye(len(mean))
    prompts = np.broadcast_to(prior.between, (len(z), *identity.shape))
    spread = np.linalg.solve(identity + prior.between * counts[:, None, :], prompts)
    effects = np.einsum("gst,gt->gs", spread, seen)
    shape = prior.shape + counts.sum(1, keepdims=True) / 2
    unexplained = (squares / within**2).sum(1, keepdims=True) + (seen * (z - effects)).sum(1, keepdims=True)
    rate = prior.shape - 1 + np.maximum(unexplained, 0.0) / 2
    own = np.einsum("gss->gs", spread)
    return Predictive(mean + within * effects, within * np.sqrt(rate / shape * (1 + own)), 2 * shape)


# ------------------------------------------------------------------------------------------------------- from scores


def fit_prior(scores: Sequence[dict[str, list[float]]]) -> Prior:
    """The prior by moments, from scores of drafts by prompt, one table a source.

    Drafts of one prompt tell ``within``; the prompts' means tell K after what drafts add to them is taken off; how ``within``
    differs from prompt to prompt tells the shape. A source whose prompts have one draft each is taken to differ as much between
    prompts as within one.
    """
    tables = [{p: np.array([v for v in values if np.isfinite(v)]) for p, values in table.items()} for table in scores]
    tables = [{p: values for p, values in table.items() if len(values)} for table in tables]
    mean = np.array([np.mean([v.mean() for v in table.values()]) if table else np.nan for table in tables])
    within = np.array([_within(table) for table in tables])
    few = np.array([sum(map(len, table.values())) < 2 for table in tables])
    if few.any() and not few.all():
        within = np.where(few, within[~few].mean(), within)  # of one score nobody can tell: as the others differ
    return Prior(mean, within, _between(tables, mean, within), _shape(tables, within))


def _within(table: dict[str, Array]) -> float:
    """Pooled over the prompts with several drafts; without any, half of all variance."""
    several = [v for v in table.values() if len(v) > 1]
    if several:
        variance = sum(((v - v.mean()) ** 2).sum() for v in several) / sum(len(v) - 1 for v in several)
    else:
        everything = np.concatenate([*table.values(), np.zeros(0)])
        variance = everything.var(ddof=1) / 2 if len(everything) > 1 else 0.0
    level = max((float(np.abs(v).max()) for v in table.values()), default=1.0)
    return float(max(np.sqrt(variance), 1e-6 * max(level, 1e-6)))  # never nothing: a t needs a width


def _between(tables: Sequence[dict[str, Array]], mean: Array, within: Array) -> Array:
    count = len(tables)
    between = np.eye(count)
    for a in range(count):
        for b in range(a, count):
            shared = [p for p in tables[a] if p in tables[b]]
            if len(shared) < 2 or (a == b and not any(len(v) > 1 for v in tables[a].values())):
                between[a, b] = between[b, a] = 1.0 if a == b else 0.5  # as much as drafts differ; half of it in common
                continue
            one, two = (np.array([(tables[s][p].mean() - mean[s]) / within[s] for p in shared]) for s in (a, b))
            noise = np.mean([1 / len(tables[a][p]) for p in shared]) if a == b else 0.0
            between[a, b] = between[b, a] = (one * two).sum() / (len(shared) - 1) - noise
    values, vectors = np.linalg.eigh(between)
    return np.asarray((vectors * values.clip(min=0.01)) @ vectors.T)


def _shape(tables: Sequence[dict[str, Array]], within: Array) -> float:
    """From E[v^2] / E[v]^2 = (a - 1) / (a - 2) of the prompts' variances, with the chi-squared's own spread taken off."""
    variances = [
        (v.var(ddof=1) / within[s] ** 2, len(v) - 1) for s, table in enumerate(tables) for v in table.values() if len(v) > 2
    ]
    if len(variances) < 20:
        return _SHAPE
    seen = np.array(variances)
    if not seen[:, 0].any():
        return _SHAPE
    ratio = np.mean(seen[:, 0] ** 2 * seen[:, 1] / (seen[:, 1] + 2)) / seen[:, 0].mean() ** 2
    return float(np.clip((2 * ratio - 1) / (ratio - 1), *_SHAPES)) if ratio > 1 else _SHAPES[1]


@dataclass(frozen=True)
class Gain:
    """What a teacher makes of a draft of score x: t about ``intercept + slope (x - centre)``, from pairs of draft and answer.

    Attributes:
        inverse: (X'X)^-1 of the columns 1 and x - centre [2, 2].
    """

    intercept: float
    slope: float
    centre: float
    variance: float
    inverse: Array
    dof: float

    def improvement(self, best: Array) -> Array:
        """E[(Y - x)+] for drafts of scores x in hand, of any shape."""
        x = np.asarray(best, dtype=np.float64) - self.centre
        columns = np.stack([np.ones_like(x), x], axis=-1)
        scale = np.sqrt(self.variance * (1 + np.einsum("...i,ij,...j->...", columns, self.inverse, columns)))
        location = self.intercept + self.slope * x
        return np.asarray(scale * excess((best - location) / scale, np.full_like(x, self.dof)))


FEWEST_PAIRS = 4


def fit_gain(drafts: Sequence[float], answers: Sequence[float]) -> Gain | None:
    """By least squares with one pair's weight on slope 1 (the same gain for all); None below ``FEWEST_PAIRS`` pairs."""
    both = np.array([(d, a) for d, a in zip(drafts, answers, strict=True) if np.isfinite(d) and np.isfinite(a)])
    if len(both) < FEWEST_PAIRS:
        return None
    x, y = both[:, 0] - both[:, 0].mean(), both[:, 1]
    weight = max(float(x.var()), 1e-12)
    slope = float((x @ (y - y.mean()) + weight) / (x @ x + weight))
    variance = float(((y - y.mean() - slope * x) ** 2).sum() / (len(x) - 2))
    inverse = np.diag([1 / len(x), 1 / float(x @ x + weight)])
    return Gain(float(y.mean()), slope, float(both[:, 0].mean()), max(variance, 1e-12), inverse, float(len(x) - 2))
