"""Is a look at a draft after its first step worth it? What a calibration measures, and where it would begin to pay."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special


def correlation(first: Sequence[float], last: Sequence[float], prompts: Sequence[str]) -> float:
    """Pearson's r in -1..1 between scores after the first and after the last step, among drafts of one prompt.

    Where prompts have one draft each, among all; NaN where nothing differs.
    """
    rows = [i for i in range(len(last)) if math.isfinite(first[i]) and math.isfinite(last[i])]
    a, b = np.array([first[i] for i in rows]), np.array([last[i] for i in rows])
    groups = [[k for k, i in enumerate(rows) if prompts[i] == prompt] for prompt in dict.fromkeys(prompts[i] for i in rows)]
    several = [group for group in groups if len(group) > 1]
    if several:
        a, b = (np.concatenate([values[group] - values[group].mean() for group in several]) for values in (a, b))
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def expected_best(count: int) -> float:
    """The expectation of the greatest of ``count`` standard normals."""
    x = np.linspace(-8, 8, 4001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.sum(x * count * density * special.ndtr(x) ** (count - 1)) * (x[1] - x[0]))


def pays_from(steps: int) -> float:
    """The correlation from which looks pay for a student of ``steps`` steps.

    For the price of two whole drafts there are ``steps`` looks and a draft of the most promising start: of normal scores that is
    r times the expected best of ``steps``, against the expected best of two. Infinite where no correlation is enough.
    """
    needed = expected_best(2) / expected_best(steps) if steps > 1 else math.inf
    return needed if needed < 1 else math.inf


def told(first: Sequence[float], last: Sequence[float], prompts: Sequence[str], steps: int) -> str:
    """The correlation in words, and whether looks would pay."""
    r, needed = correlation(first, last, prompts), pays_from(steps)
    if math.isnan(r):
        return "A look after the first step: its scores don't differ, or there are too few, so nothing is known."
    if math.isinf(needed):
        return f"A look after the first step: r = {r:.2f} with the last; with {steps} steps it never pays."
    verdict = "it would pay" if r >= needed else "it doesn't pay"
    return f"A look after the first step: r = {r:.2f} with the last; {verdict} (with {steps} steps from r = {needed:.2f})."
