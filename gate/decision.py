"""The gate as a whole: scores in, VERDICT out; and after the teacher, which of the two pictures stays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..samplers.adaptive import is_better
from .calibration import Calibration
from .controller import FileController
from .overrides import decided
from .thresholds import (
    MODES,
    Gate,
    above_baselines,
    absolute,
    budget,
    expected_gain,
    guaranteed,
    percentile,
    unit_note,
    worst_share,
)
from .verdict import IMPROVED, KEPT, Judgement, Verdict


@dataclass(frozen=True)
class Situation:
    """What a gate may want to know beside the scores.

    Attributes:
        prompts: One a score; needed where baselines are.
        comparable: Whether the oracle's scores of different prompts may be compared.
        oracle, oracle_name: The oracle's fingerprint and name.
        confidence: For "guaranteed".
        controller: For "running": where it remembers.
        keys: For "running": one a score, names the picture, so that it is not counted twice.
    """

    prompts: Sequence[str] = ()
    comparable: bool = True
    oracle: str = ""
    oracle_name: str = "the oracle"
    confidence: float = 0.9
    controller: FileController | None = None
    keys: Sequence[str] = ()


def gate_scores(
    scores: Sequence[float], mode: str, value: float, calibration: Calibration | None = None, student_nfe: float | None = None,
    teacher_nfe: float = 0.0, situation: Situation | None = None,
) -> Gate:  # fmt: skip
    """Which drafts pass, by one of ``thresholds.MODES``.

    Scores of an oracle that isn't comparable across prompts are compared as they are only where all are of one prompt;
    otherwise what is compared is score minus that prompt's baseline.

    Args:
        value: The threshold, the share, the percentile, the average evaluations a picture, the gain that is worth a call of
            the teacher, or the share of accepted drafts that may be worse than the teacher's, as the mode says.
        calibration: For "percentile": the distribution that the percentile is of; without it, the batch's own scores. A single
            picture's "worst share" is of it too, and for both without it of the pictures that the controller has seen. For
            "guaranteed": the pairs. For "expected gain", and for oracles that aren't comparable: the baselines. For
            "running": scores to begin with.
        student_nfe: For "budget": what a draft cost.
        teacher_nfe: For "budget": what the teacher costs a picture.

    Raises:
        ValueError: Unknown mode, a value out of its range, or the comparison would mean nothing.
    """
    if mode not in MODES:
        raise ValueError(f"The threshold is one of {', '.join(MODES)}, not '{mode}'.")
    gate = _decided(scores, mode, value, calibration, student_nfe, teacher_nfe, situation or Situation())
    note = unit_note(mode, value, [*scores, *(calibration.scores if calibration is not None else ())])
    return replace(gate, note=f"{gate.note} {note}".strip()) if note else gate


def limits(gate: Gate, mode: str) -> list[float]:
    """What each picture must reach for its verdict to stand: -infinity where all pass by their count, whatever they score."""
    if mode in ("worst share", "budget") and all(gate.accepted):
        return [-math.inf] * len(gate.accepted)
    return [gate.threshold_of(i) for i in range(len(gate.accepted))]


def _decided(
    scores: Sequence[float], mode: str, value: float, calibration: Calibration | None, student_nfe: float | None,
    teacher_nfe: float, situation: Situation,
) -> Gate:  # fmt: skip
    """By which scores the pictures are compared: alone, by gain, as they are, or after taking off baselines."""
    if len(scores) == 1 and (alone := _gate_alone(scores, mode, value, calibration, situation)) is not None:
        return alone
    if mode == "expected gain":
        return _gate_by_gain(scores, value, calibration, situation)
    if situation.comparable or _one_prompt(mode, calibration, situation):
        return _gate(scores, mode, value, calibration, student_nfe, teacher_nfe, situation)
    baselines = _baselines_for_incomparable(mode, calibration, situation)
    relative = [score - baseline for score, baseline in zip(scores, baselines, strict=True)]
    gate = _gate(relative, mode, value, _relative(calibration), student_nfe, teacher_nfe, situation)
    note = f"{gate.note} Scores of {situation.oracle_name} were compared after taking off each prompt's baseline.".strip()
    return replace(above_baselines(gate, scores, baselines), note=note)


def _gate(
    scores: Sequence[float], mode: str, value: float, calibration: Calibration | None, student_nfe: float | None,
    teacher_nfe: float, situation: Situation,
) -> Gate:  # fmt: skip
    """The modes that compare every score with every other."""
    if mode == "absolute":
        return absolute(scores, value)
    if mode == "worst share":
        return worst_share(scores, value)
    if mode == "percentile":
        return _gate_by_percentile(scores, value, calibration)
    if mode == "running":
        if situation.controller is None:
            raise ValueError("Running mode needs a controller to remember in: give it a name.")
        first = calibration.scores if calibration is not None else ()
        return situation.controller.judge(
            scores, situation.keys, value, situation.oracle, situation.oracle_name, first
        )
    if mode == "guaranteed":
        if calibration is None:
            raise ValueError(
                "Guaranteed mode needs a calibration with paired drafts: connect one that was made with the teacher."
            )
        drafts, teachers = calibration.pairs()
        return guaranteed(scores, drafts, teachers, value, situation.confidence)
    if mode == "budget":
        if student_nfe is None:
            raise ValueError(
                "Budget mode needs to know what the drafts cost: connect the student sampler's drafts to the judge."
            )
        return budget(scores, value, student_nfe, teacher_nfe)
    raise ValueError(f"The threshold is one of {', '.join(MODES)}, not '{mode}'.")


def _gate_alone(
    scores: Sequence[float], mode: str, value: float, calibration: Calibration | None, situation: Situation
) -> Gate | None:
    """A share of one picture would be all or nothing, so it is taken of the calibration's scores, or of the pictures before it.

    None where no such share is asked for, or there is nothing that the score may be compared with.
    """
    share = {"worst share": value, "percentile": value / 100}.get(mode, 0.0)
    if not 0 < share < 1 or (mode == "percentile" and calibration is not None):
        return None
    comparable = calibration is not None and (situation.comparable or set(situation.prompts) <= set(calibration.baselines()))
    if comparable:
        gate = _decided(scores, "percentile", 100 * share, calibration, None, 0.0, situation)
    elif situation.controller is not None and situation.comparable:
        gate = _decided(scores, "running", share, None, None, 0.0, situation)
    else:
        return None
    of = "the calibration's scores" if comparable else "the single pictures judged so far"
    return replace(gate, note=f"A share of one picture would be all or nothing, so it is {share:g} of {of}. {gate.note}".strip())


def _gate_by_percentile(scores: Sequence[float], k: float, calibration: Calibration | None) -> Gate:
    if calibration is not None and calibration.published and 0 < k < 100:
        threshold, note = calibration.percentile(k)
        return replace(absolute(scores, threshold), note=note)
    if calibration is not None:
        return percentile(scores, k, calibration.scores)
    if not any(math.isfinite(s) for s in scores):
        return absolute(scores, math.inf)
    gate = percentile(scores, k, scores)
    return Gate(gate.threshold, gate.accepted, "The percentile is of this batch's own scores (no calibration given).")


def _gate_by_gain(scores: Sequence[float], gain: float, calibration: Calibration | None, situation: Situation) -> Gate:
    """Against each prompt's baseline: the teacher's mean where the calibration has it for all, else the student's mean.

    A prompt that the calibration lacks, or all without one, is compared with the mean of the batch's other drafts of it.
    """
    prompts = situation.prompts
    calibrated = calibration.baselines() if calibration is not None else {}
    if all(p in calibrated and calibrated[p].teacher_mean is not None for p in prompts) and prompts:
        means = [float(calibrated[p].teacher_mean or 0.0) for p in prompts]
        return replace(expected_gain(scores, means, gain), note="The gain is over the teacher's average for the prompt.")
    baselines = [calibrated[p].mean if p in calibrated else _mean_of_others(i, scores, prompts) for i, p in enumerate(prompts)]
    missing = next((p for p, baseline in zip(prompts, baselines, strict=True) if math.isnan(baseline)), None)
    if missing is not None:
        raise ValueError(
            f"There is no baseline for the prompt '{missing}': calibrate with this prompt and at least two drafts a prompt, or "
            f"draw at least two drafts of it in this batch."
        )
    source = "calibration's" if all(p in calibrated for p in prompts) else "batch's own"
    return replace(expected_gain(scores, baselines, gain), note=f"The gain is over the {source} average draft of the prompt.")


def _mean_of_others(index: int, scores: Sequence[float], prompts: Sequence[str]) -> float:
    others = [s for i, s in enumerate(scores) if i != index and prompts[i] == prompts[index] and math.isfinite(s)]
    if others:
        return sum(others) / len(others)
    # Where the other drafts of the prompt have no score there is nothing to gain over.
    return -math.inf if prompts.count(prompts[index]) > 1 else math.nan


def _one_prompt(mode: str, calibration: Calibration | None, situation: Situation) -> bool:
    """Whether this comparison stays within one prompt."""
    others = set(calibration.prompts) if calibration is not None and mode == "percentile" else set()
    published = calibration is not None and calibration.published and mode == "percentile"
    return mode not in ("running", "guaranteed") and not published and len(set(situation.prompts) | others) <= 1


def _baselines_for_incomparable(mode: str, calibration: Calibration | None, situation: Situation) -> list[float]:
    """Each picture's baseline, where an oracle's scores can only be compared after taking it off.

    Raises:
        ValueError: The mode means nothing for such an oracle, or a prompt has no baseline.
    """
    name = situation.oracle_name
    if mode in ("absolute", "guaranteed"):
        raise ValueError(
            f"Scores of {name} mean something else for every prompt, so one threshold for several prompts would mean nothing: "
            f"choose 'expected gain', or an oracle that is comparable across prompts, instead of '{mode}'."
        )
    baselines = calibration.baselines() if calibration is not None else {}
    missing = next((prompt for prompt in situation.prompts if prompt not in baselines), None)
    if missing is not None:
        raise ValueError(
            f"Scores of {name} mean something else for every prompt, and there is no baseline for '{missing}': connect a "
            f"calibration that holds this prompt with at least two drafts a prompt, or judge pictures of one prompt at a time."
        )
    return [baselines[prompt].mean for prompt in situation.prompts]


def _relative(calibration: Calibration | None) -> Calibration | None:
    """The calibration's scores with each prompt's baseline taken off; prompts without one are left out."""
    if calibration is None:
        return None
    baselines = calibration.baselines()
    rows = [(s - baselines[p].mean, p) for s, p in zip(calibration.scores, calibration.prompts, strict=True) if p in baselines]
    scores, prompts = tuple(score for score, _ in rows), tuple(prompt for _, prompt in rows)
    return replace(calibration, scores=scores, prompts=prompts, teacher_scores=())


def judge(
    gate: Gate, scores: Sequence[float], prompts: Sequence[str], *, oracle: str, fingerprint: str, mode: str, value: float,
    seeds: Sequence[int] | None = None, nfe: Sequence[float] | None = None, keys: Sequence[str] | None = None,
    overrides: Mapping[str, str] | None = None, stopped: bool = False,
) -> Verdict:  # fmt: skip
    """The VERDICT of a gate and of the artist, whose word stands above it.

    Args:
        seeds: The seed that drew each picture, where known.
        nfe: What each draft cost, where known.
        keys: The pictures' names, for ``overrides`` (see ``gate.overrides``).
        stopped: See ``Verdict``.
    """
    keys = keys or [""] * len(scores)
    accepted, words = decided(gate, keys, overrides or {})
    judgements = [
        Judgement(
            index=i, score=float(score), threshold=gate.threshold_of(i), accepted=accepted[i], prompt=prompts[i],
            seed=seeds[i] if seeds is not None else None, nfe=nfe[i] if nfe is not None else None, override=words[i], key=keys[i],
        )
        for i, score in enumerate(scores)
    ]  # fmt: skip
    return Verdict(tuple(judgements), oracle, fingerprint, mode, float(value), gate.note, stopped)


def keep_better(
    verdict: Verdict, improved: dict[int, float], margin: float, teacher_nfe: Sequence[float] | None = None,
    draft_nfe: Sequence[float] | None = None, draft_seed: int | None = None, note: str = "",
) -> Verdict:  # fmt: skip
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
