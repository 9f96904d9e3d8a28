"""From scores to a gate: which drafts are good enough (arXiv 2312.10835, Algorithm 1, line 4).

Every function is pure; NaN never passes, and an empty batch gives an empty answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MODES = ("absolute", "worst share", "percentile", "budget")


@dataclass(frozen=True)
class Gate:
    """What was decided: a threshold and who passes it. ``accepted`` has one entry a score."""

    threshold: float
    accepted: tuple[bool, ...]
    note: str = ""


def absolute(scores: Sequence[float], threshold: float) -> Gate:
    """Accept what reaches ``threshold``."""
    return Gate(threshold, tuple(score >= threshold for score in scores))


def worst_share(scores: Sequence[float], share: float) -> Gate:
    """Reject the worst ``share`` (0..1) of this batch, to the nearest count; ties fall to the later picture.

    Raises:
        ValueError: The share is not in 0..1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"The worst share is a number from 0 (nobody) to 1 (everybody), not {share:g}.")
    count = math.floor(share * len(scores) + 0.5)
    # NaN counts as the worst of all.
    order = sorted(range(len(scores)), key=lambda i: (_rank(scores[i]), -i))
    rejected = set(order[:count]) | {i for i, score in enumerate(scores) if math.isnan(score)}
    kept = [scores[i] for i in range(len(scores)) if i not in rejected]
    threshold = min(kept) if kept else math.inf
    return Gate(threshold, tuple(i not in rejected for i in range(len(scores))))


def percentile(scores: Sequence[float], k: float, reference: Sequence[float]) -> Gate:
    """Accept what reaches the k-th percentile (0..100) of ``reference``: the student's scores on many prompts.

    This is the paper's rule: tau is the k-th percentile of the student's score distribution, so that about k of 100
    drafts go to the teacher. k = 0 accepts all, k = 100 rejects all.

    Raises:
        ValueError: k is not in 0..100, or there are no reference scores.
    """
    if not 0 <= k <= 100:
        raise ValueError(f"The percentile k is a number from 0 to 100, not {k:g}.")
    if k <= 0:
        return absolute(scores, -math.inf)
    if k >= 100:
        return absolute(scores, math.inf)
    return absolute(scores, quantile(reference, k / 100))


def budget_share(nfe: float, student_nfe: float, teacher_nfe: float) -> float:
    """The share of drafts that may go to the teacher so that a picture costs ``nfe`` evaluations on average.

    student_nfe + share * teacher_nfe = nfe, clipped to 0..1.

    Raises:
        ValueError: The teacher costs nothing, so no share follows.
    """
    if teacher_nfe <= 0:
        raise ValueError(
            "Budget mode needs to know what the teacher costs: connect the drafts and set teacher_nfe above 0."
        )
    return min(1.0, max(0.0, (nfe - student_nfe) / teacher_nfe))


def budget(scores: Sequence[float], nfe: float, student_nfe: float, teacher_nfe: float) -> Gate:
    """Send as many of the worst drafts to the teacher as an average of ``nfe`` evaluations a picture affords."""
    share = budget_share(nfe, student_nfe, teacher_nfe)
    affordable = math.floor(share * len(scores) + 1e-9)
    gate = worst_share(scores, affordable / len(scores) if scores else 0.0)
    note = (
        f"A budget of {nfe:g} evaluations a picture, {student_nfe:g} for the draft and {teacher_nfe:g} for the teacher, "
        f"sends {share:.0%} of the drafts to the teacher: {affordable} of {len(scores)}."
    )
    return Gate(gate.threshold, gate.accepted, note)


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile (0..1) of the finite ``values``, linear between ranks.

    Raises:
        ValueError: There is no finite value.
    """
    ordered = sorted(v for v in values if math.isfinite(v))
    if not ordered:
        raise ValueError("There is no finite score to take a percentile of; calibrate again.")
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _rank(score: float) -> float:
    return -math.inf if math.isnan(score) else score
