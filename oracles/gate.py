"""The gate as a whole: scores in, VERDICT out; and after the teacher, which of the two pictures stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .calibration import Calibration
from .thresholds import MODES, Gate, absolute, budget, percentile, worst_share
from .verdict import IMPROVED, KEPT, Judgement, Verdict


def gate_scores(
    scores: Sequence[float],
    mode: str,
    value: float,
    calibration: Calibration | None = None,
    student_nfe: float | None = None,
    teacher_nfe: float = 0.0,
) -> Gate:
    """Which drafts pass, by one of ``thresholds.MODES``.

    Args:
        value: The threshold, the share, the percentile, or the average evaluations a picture, as the mode says.
        calibration: For "percentile": the distribution that the percentile is of; without it, the batch's own scores.
        student_nfe: For "budget": what a draft cost.
        teacher_nfe: For "budget": what the teacher costs a picture.

    Raises:
        ValueError: Unknown mode, or a value out of its range.
    """
    if mode == "absolute":
        return absolute(scores, value)
    if mode == "worst share":
        return worst_share(scores, value)
    if mode == "percentile":
        if calibration is not None:
            return percentile(scores, value, calibration.scores)
        if not any(math.isfinite(s) for s in scores):
            return absolute(scores, math.inf)
        gate = percentile(scores, value, scores)
        return Gate(gate.threshold, gate.accepted, "The percentile is of this batch's own scores (no calibration given).")
    if mode == "budget":
        if student_nfe is None:
            raise ValueError(
                "Budget mode needs to know what the drafts cost: connect the student sampler's drafts to the judge."
            )
        return budget(scores, value, student_nfe, teacher_nfe)
    raise ValueError(f"The threshold is one of {', '.join(MODES)}, not '{mode}'.")


def judge(
    gate: Gate,
    scores: Sequence[float],
    prompts: Sequence[str],
    *,
    oracle: str,
    fingerprint: str,
    mode: str,
    value: float,
    seed: int | None = None,
    nfe: Sequence[float] | None = None,
) -> Verdict:
    """The VERDICT of a gate. ``nfe`` is what each draft cost, where known."""
    judgements = [
        Judgement(
            index=i, score=float(score), threshold=gate.threshold, accepted=gate.accepted[i], prompt=prompts[i], seed=seed,
            nfe=nfe[i] if nfe is not None else None,
        )
        for i, score in enumerate(scores)
    ]  # fmt: skip
    return Verdict(tuple(judgements), oracle, fingerprint, mode, float(value), gate.note)


def is_better(draft: float, improved: float, margin: float) -> bool:
    """Whether the teacher's picture replaces the draft: it scores more than ``margin`` above it.

    A picture whose score is NaN never replaces another, and is replaced by any that has a score.
    """
    if math.isnan(improved):
        return False
    return math.isnan(draft) or improved > draft + margin


def keep_better(
    verdict: Verdict,
    improved: dict[int, float],
    margin: float,
    teacher_nfe: Sequence[float] | None = None,
    draft_nfe: Sequence[float] | None = None,
    draft_seed: int | None = None,
    note: str = "",
) -> Verdict:
    """The verdict after the teacher: the rejected pictures become "improved" or "draft kept".

    Args:
        improved: Score of the teacher's picture, for each rejected index.
        teacher_nfe: What the teacher spent on each picture of the batch, where known.
        draft_nfe: What each draft cost, where the verdict does not know.
        draft_seed: Likewise the drafts' seed.
    """
    judgements = []
    for j in verdict:
        cost = j.nfe if j.nfe is not None else (draft_nfe[j.index] if draft_nfe is not None else None)
        seed = j.seed if j.seed is not None else draft_seed
        if j.accepted:
            judgements.append(replace(j, nfe=cost, seed=seed))
            continue
        if cost is not None and teacher_nfe is not None:
            cost = cost + teacher_nfe[j.index]
        elif teacher_nfe is None:
            cost = None
        better = is_better(j.score, improved[j.index], margin)
        judgements.append(
            replace(
                j, nfe=cost, seed=seed, draft_score=j.score, decision=IMPROVED if better else KEPT,
                score=improved[j.index] if better else j.score,
            )  # fmt: skip
        )
    joined = " ".join(part for part in (verdict.note, note) if part)
    return replace(verdict.with_judgements(judgements), note=joined)
