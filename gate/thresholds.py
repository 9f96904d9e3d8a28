"""From scores to a gate: which drafts are good enough (arXiv 2312.10835, Algorithm 1, line 4).

Every function is pure; NaN never passes, and an empty batch gives an empty answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Unit:
    """What the artist's number is in one mode.

    Attributes:
        words: For people; what the number decides, and its range.
        default: A good one to begin with; None where it depends on the oracle's scale: then the last verdict's threshold.
        low, high: What it may be.
    """

    words: str
    default: float | None
    low: float = -math.inf
    high: float = math.inf


UNITS: dict[str, Unit] = {
    "absolute": Unit("a score", None),
    "worst share": Unit("part of the batch (0-1); of a single picture, of those judged so far", 0.3, 0, 1),
    "percentile": Unit("of the student's scores (0-100)", 30, 0, 100),
    "budget": Unit("average network evaluations a picture", 16, 0),
    "expected gain": Unit("what the teacher must promise to gain, in score", 0),
    "running": Unit("share to reject over time (0-1)", 0.3, 0, 1),
    "guaranteed": Unit("share of accepted drafts that may be worse than the teacher's (0-1)", 0.1, 0, 1),
}
MODES = tuple(UNITS)


@dataclass(frozen=True)
class Gate:
    """What was decided: a threshold and who passes it. ``accepted`` has one entry a score.

    Attributes:
        threshold: The one threshold; NaN where every picture has its own.
        thresholds: One a picture, where they differ; otherwise empty.
    """

    threshold: float
    accepted: tuple[bool, ...]
    note: str = ""
    thresholds: tuple[float, ...] = ()

    def threshold_of(self, index: int) -> float:
        """What picture ``index`` was compared with."""
        return self.thresholds[index] if self.thresholds else self.threshold


def with_thresholds(scores: Sequence[float], thresholds: Sequence[float], note: str = "") -> Gate:
    """Accept what reaches its own threshold."""
    common = thresholds[0] if len(set(thresholds)) == 1 else math.nan
    accepted = tuple(score >= threshold for score, threshold in zip(scores, thresholds, strict=True))
    return Gate(common, accepted, note, tuple(thresholds))


def absolute(scores: Sequence[float], threshold: float) -> Gate:
    """Accept what reaches ``threshold``."""
    return Gate(threshold, tuple(score >= threshold for score in scores))


def worst_share(scores: Sequence[float], share: float) -> Gate:
    """Reject the worst ``share`` (0..1) of this batch, to the nearest count; ties fall to the later picture.

    Raises:
        ValueError: The share is not in 0..1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"The worst share is a number from 0 (nobody) to 1 (everybody), not {share:g}{of_hundred(share)}.")
    count = math.floor(share * len(scores) + 0.5)
    # NaN counts as the worst of all.
    order = sorted(range(len(scores)), key=lambda i: (_rank(scores[i]), -i))
    rejected = set(order[:count]) | {i for i, score in enumerate(scores) if math.isnan(score)}
    kept = [scores[i] for i in range(len(scores)) if i not in rejected]
    threshold = min(kept) if kept else math.inf
    note = ""
    if len(scores) == 1 and 0 < share < 1:
        note = (
            f"A share of one picture is all or nothing: {share:g} {'rejects' if count else 'accepts'} it whatever it scores; "
            "for single pictures take running, percentile with a calibration, or absolute."
        )
    elif abs(count - share * len(scores)) > 1e-9:
        note = f"{share:g} of {len(scores)} pictures is {count}, to the nearest count."
    return Gate(threshold, tuple(i not in rejected for i in range(len(scores))), note)


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
    if nfe < student_nfe:
        note += f" The draft alone costs more than {nfe:g}: with 'budget', value is network evaluations a picture."
    if len(scores) == 1 and 0 < share < 1:
        note += f" A single picture's budget is all or nothing; for single pictures take running with {share:.2g}."
    return Gate(gate.threshold, gate.accepted, note)


def expected_gain(scores: Sequence[float], baselines: Sequence[float], gain: float) -> Gate:
    """Send a draft to the teacher if that promises to gain more than ``gain``: accept score >= baseline - gain.

    ``baselines`` has, for each picture, what another picture of the same prompt is expected to score. Only pictures of one
    prompt are compared with each other, so this is right for oracles whose scores mean something else for every prompt.
    """
    return with_thresholds(scores, [baseline - gain for baseline in baselines])


def above_baselines(gate: Gate, scores: Sequence[float], baselines: Sequence[float]) -> Gate:
    """A gate on score minus baseline, told in the scores themselves: every picture gets its own threshold."""
    thresholds = tuple(gate.threshold_of(i) + baseline for i, baseline in enumerate(baselines))
    # What the gate decided stays; a second comparison could round otherwise.
    return Gate(thresholds[0] if len(set(thresholds)) == 1 else math.nan, gate.accepted, gate.note, thresholds)


def guaranteed(
    scores: Sequence[float], drafts: Sequence[float], teachers: Sequence[float], alpha: float, confidence: float = 0.9
) -> Gate:
    """Accept where at most ``alpha`` of the accepted drafts are worse than the teacher's picture would have been.

    See ``certified_threshold`` for what exactly is guaranteed.

    Args:
        drafts: Scores of the calibration's drafts.
        teachers: Scores of the teacher's pictures of the same prompts, in the same order.
    """
    threshold = certified_threshold(drafts, teachers, alpha, confidence)
    passing = [(d, t) for d, t in zip(drafts, teachers, strict=True) if d >= threshold]
    worse = sum(is_worse(d, t) for d, t in passing)
    if threshold == math.inf:
        note = (
            f"No threshold is certain enough: with {confidence:.0%} confidence and at most {alpha:.1%} worse drafts it takes at "
            f"least {pairs_needed(alpha, confidence)} good pairs, and of the calibration's {len(drafts)} pairs, however high the "
            f"threshold, too many drafts are worse than the teacher; all go to the teacher."
        )
    else:
        note = (
            f"With {confidence:.0%} confidence at most {alpha:.1%} of the accepted drafts are worse than the teacher's picture "
            f"would be ({worse} of the {len(passing)} that pass among the calibration's {len(drafts)} pairs), for prompts and a "
            f"teacher like the calibration's."
        )
    gate = absolute(scores, threshold)
    return Gate(gate.threshold, gate.accepted, note)


def is_worse(draft: float, teacher: float) -> bool:
    """Whether the draft scores below the teacher's picture; a teacher's picture without a score is not better."""
    return not math.isnan(teacher) and not draft >= teacher


def certified_threshold(
    drafts: Sequence[float], teachers: Sequence[float], alpha: float, confidence: float = 0.9
) -> float:
    """The lowest threshold t such that, with ``confidence``, P(worse | score >= t) <= ``alpha``; infinity if there is none.

    Theorem. Let the pairs (S_i, W_i), i = 1..n, and a new pair (S, W) be independent draws from one law, S a draft's score
    without atoms (or with atoms, if R below falls as t rises) and W whether the draft is worse than its teacher's picture.
    Let R(t) = P(W | S > t), delta = 1 - confidence. Then P(R(t_hat) <= alpha) >= 1 - delta, the outer probability over the
    n pairs, whatever the law. (So it is the share among *accepted* drafts, with a confidence for the calibration: a bound on
    P(worse and accepted) alone would be met by accepting little, and says nothing of what the artist gets to see.)

    This is Learn then Test (Angelopoulos et al., arXiv 2110.01052, Theorem 1: an algorithm that controls the family-wise
    error of the hypotheses H_t: R(t) > alpha returns only t with R(t) <= alpha, with probability 1 - delta), with its
    Algorithm 1, fixed sequence testing from |J| starts at level delta / |J| each. The p-value of H_t is the binomial tail

        p(t) = P(Bin(m, alpha) <= k),   m = #{S_i > t},   k = #{S_i > t, W_i}:

    given m, k is Bin(m, R(t)), so p(t) is super-uniform under H_t; p(t) <= delta is a Clopper-Pearson bound below alpha.

    The scale of scores is unknown, so a sequence starts at a rank instead: at t = the (j+1)-th highest score, j fixed by n
    alone, and goes down through all t until a p(t) exceeds delta / |J|. Given that start the pairs above it are still
    independent draws above it, so a false first step has probability <= delta / |J|. Otherwise the first false hypothesis is
    met at a boundary b, where R passes alpha; R is alpha at every boundary, hence also between two of them, so given how many
    pairs lie above b (and above the boundary before), k is Bin(m, alpha), and p(b) <= delta / |J| has probability at most
    that. A false hypothesis is accepted only by passing one of these two. The |J| sequences add up to delta.

    Several drafts of one prompt are not independent; hand in one pair a prompt.

    Raises:
        ValueError: ``alpha`` is not in 0..1 or ``confidence`` not between 0 and 1, or the counts differ.
    """
    _check_promise(alpha, confidence)
    if len(drafts) != len(teachers):
        raise ValueError(f"There are {len(drafts)} drafts, but {len(teachers)} pictures of the teacher; they must be pairs.")
    if alpha >= 1:
        return -math.inf
    pairs = sorted(((d, is_worse(d, t)) for d, t in zip(drafts, teachers, strict=True) if math.isfinite(d)), reverse=True)
    worse_above = [0]
    for _, worse in pairs:
        worse_above.append(worse_above[-1] + worse)
    starts, level = _starts(len(pairs), alpha, 1 - confidence)
    lowest = min((_descend([s for s, _ in pairs], worse_above, start, alpha, level) for start in starts), default=math.inf)
    return lowest if math.isinf(lowest) else math.nextafter(lowest, math.inf)  # accept above, not at, the tested score


def pairs_needed(alpha: float, confidence: float) -> int:
    """How many pairs without one worse draft it takes at least: the smallest m with (1 - alpha)^m <= 1 - confidence.

    Raises:
        ValueError: As ``certified_threshold``.
    """
    _check_promise(alpha, confidence)
    return 0 if alpha >= 1 else math.ceil(math.log(1 - confidence) / math.log1p(-alpha) - 1e-9) if alpha > 0 else 10**9


def _check_promise(alpha: float, confidence: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"The share of accepted drafts that may be worse is a number from 0 to 1, not {alpha:g}{of_hundred(alpha)}."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"The confidence is a number between 0 and 1, such as 0.9, not {confidence:g}.")


def _starts(count: int, alpha: float, delta: float) -> tuple[list[int], float]:
    """Ranks where sequences start (all, half, a quarter… of the pairs), and the level that each may spend.

    A start with too few pairs to ever pass is left out, so that it costs the others nothing.
    """
    ranks: list[int] = []
    for halvings in range(6):
        rank = count >> halvings
        if rank < 1 or most_worse(rank, alpha, delta / (len(ranks) + 1)) < 0:
            break
        ranks.append(rank)
    return ranks, delta / max(len(ranks), 1)


def _descend(scores: list[float], worse_above: list[int], start: int, alpha: float, level: float) -> float:
    """The lowest t that one sequence reaches, from the ``start``-th of the falling ``scores`` down; infinity for none."""
    reached, rank = math.inf, start
    while True:
        t = scores[rank] if rank < len(scores) else -math.inf
        above = rank
        while above > 0 and above <= len(scores) and scores[above - 1] == t:
            above -= 1  # tied with t: not above it
        if worse_above[above] > most_worse(above, alpha, level):
            return reached
        reached = t
        while rank < len(scores) and scores[rank] == t:
            rank += 1
        if t == -math.inf:
            return reached


@lru_cache(maxsize=65536)
def most_worse(m: int, alpha: float, level: float) -> int:
    """The largest k with P(Bin(m, alpha) <= k) <= level; -1 if there is none."""
    from scipy.stats import binom  # which takes a second to import, and only a promise needs it

    if alpha <= 0:
        return -1
    least = int(binom.ppf(level, m, alpha))  # the smallest k that reaches the level
    return least if binom.cdf(least, m, alpha) <= level else least - 1


def of_hundred(share: float) -> str:
    """What to add to the refusal of a share above 1 that was meant as a percentage."""
    return f"; for {share:g} of 100 set {share / 100:g}" if 1 < share <= 100 else ""


def unit_note(mode: str, value: float, scores: Sequence[float]) -> str:
    """What to say of a number that looks like another mode's, as after a change of the mode alone; nothing of one that doesn't.

    Args:
        scores: Of the batch, and of the calibration where there is one.
    """
    finite = [score for score in scores if math.isfinite(score)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    range_ = f"{low:.3g} to {high:.3g}" if high > low else f"{low:.3g}"
    if mode == "percentile" and 0 < value < 1:
        return f"Percentile {value:g} is {value:g} of 100; for a share of {value:g} set {100 * value:g}."
    if mode == "absolute" and finite and _far(value, low, high):
        return (
            f"The threshold {value:g} is far from all scores here ({range_}), so it says the same of each: with 'absolute', "
            f"value is a score."
        )
    if mode == "expected gain" and high > low and value > 2 * (high - low):
        return f"A gain of {value:g} is more than twice what lies between all scores here ({range_}): nothing is sent for it."
    return ""


def _far(value: float, low: float, high: float) -> bool:
    """Whether a threshold is nowhere near scores from ``low`` to ``high``."""
    if high > low:
        return not low - 2 * (high - low) <= value <= high + 2 * (high - low)
    small, large = sorted((abs(value), abs(low)))  # one score alone tells little: ten times as large is no coincidence
    return large > 1 and large > 10 * small


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile (0..1) of the finite ``values``, linear between ranks.

    Raises:
        ValueError: There is no finite value.
    """
    ordered = sorted(v for v in values if math.isfinite(v))
    if not ordered:
        raise ValueError("There is no finite score to take a percentile of; calibrate again.")
    # Not numpy.quantile, which rounds differently: the last digit decides about a picture that scores exactly this.
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _rank(score: float) -> float:
    return -math.inf if math.isnan(score) else score
