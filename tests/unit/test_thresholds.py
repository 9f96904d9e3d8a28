"""Thresholds on synthetic scores whose law is known: percentiles, expected gain, guarantees, and the running controller."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from comfyui_apprentice.gate import controller
from comfyui_apprentice.gate.calibration import Calibration
from comfyui_apprentice.gate.controller import FileController, State, step
from comfyui_apprentice.gate.decision import Situation, gate_scores, judge
from comfyui_apprentice.gate.thresholds import (
    MODES,
    UNITS,
    certified_threshold,
    expected_gain,
    guaranteed,
    is_worse,
    pairs_needed,
    percentile,
    unit_note,
)

NAN, INF = math.nan, math.inf
REPETITIONS = 1000


def binomial_interval(p: float, tail: float = 0.0005) -> tuple[int, int]:
    """Between which counts of REPETITIONS a rate of ``p`` lies, all but ``tail`` on either side."""
    log = [math.lgamma(REPETITIONS + 1) - math.lgamma(k + 1) - math.lgamma(REPETITIONS - k + 1) for k in range(REPETITIONS + 1)]
    masses = [math.exp(c + k * math.log(p) + (REPETITIONS - k) * math.log1p(-p)) for k, c in enumerate(log)]
    total, low, high = 0.0, 0, REPETITIONS
    for k, mass in enumerate(masses):
        total += mass
        if total < tail:
            low = k + 1
        if total <= 1 - tail:
            high = k + 1
    return low, high


def test_modes_keep_their_order_because_workflows_name_them() -> None:
    assert MODES == ("absolute", "worst share", "percentile", "budget", "expected gain", "running", "guaranteed")


# ------------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("mode", "value", "scores", "says"),
    [
        ("percentile", 0.5, [0.2, 0.4], "for a share of 0.5 set 50"),
        ("absolute", 0.5, [21.0, 22.5, 20.1], "far from all scores here (20.1 to 22.5)"),  # PickScore
        ("absolute", 0.5, [0.25, 0.27, 0.26], "value is a score"),  # HPSv2
        ("absolute", 50, [0.2], "far from all scores here (0.2)"),
        ("absolute", 0.5, [21.3], "far"),
        ("expected gain", 0.5, [0.25, 0.27, 0.26, NAN], "A gain of 0.5 is more than twice"),
    ],
)
def test_a_number_of_another_modes_unit_is_named(mode: str, value: float, scores: list[float], says: str) -> None:
    prompts = Situation(["a prompt"] * max(len(scores), 2))
    assert says in unit_note(mode, value, scores)
    if len(scores) > 1:
        assert gate_scores(scores, mode, value, situation=prompts).note.endswith(unit_note(mode, value, scores))


@pytest.mark.parametrize(
    ("mode", "value", "scores"),
    [
        ("percentile", 30, [0.2, 0.4]), ("percentile", 0, [0.2, 0.4]), ("percentile", 1, [0.2, 0.4]),
        ("absolute", 0.5, [0.1, 0.9]), ("absolute", 0.5, [0.7, 0.9]), ("absolute", 0.5, [0.1]), ("absolute", 0.0, [-0.3, 0.4]),
        ("absolute", 0.5, [NAN, NAN]), ("absolute", 0.5, []), ("absolute", 6.5, [5.5]), ("expected gain", 0.01, [0.25, 0.27]),
        ("worst share", 0.5, [20.0, 21.0]), ("running", 0.5, [20.0]), ("absolute", 0.5, [0.4, 0.4]),
    ],
)  # fmt: skip
def test_a_number_that_may_be_meant_is_left_alone(mode: str, value: float, scores: list[float]) -> None:
    assert unit_note(mode, value, scores) == ""


@pytest.mark.parametrize("mode", ["worst share", "guaranteed", "running"])
def test_a_percentage_where_a_share_is_meant_is_answered_with_the_share(mode: str, tmp_path: Path) -> None:
    pairs = Calibration((0.1, 0.2), "o", "o", teacher_scores=(0.1, 0.2), prompts=("a", "b"))
    situation = Situation(["a"] * 3, controller=FileController(tmp_path / "c.json"), keys=["x", "y", "z"])
    with pytest.raises(ValueError, match=r"not 30; for 30 of 100 set 0\.3"):
        gate_scores([0.1, 0.2, 0.3], mode, 30, pairs, situation=situation)


def test_a_calibrations_scores_tell_the_scale_too() -> None:
    calibration = Calibration(tuple(i / 100 for i in range(100)), "o", "o")
    assert gate_scores([0.9, 0.91], "absolute", 0.1).note and not gate_scores([0.9, 0.91], "absolute", 0.1, calibration).note


@pytest.mark.parametrize("mode", [mode for mode, unit in UNITS.items() if unit.default is not None])
def test_the_default_of_every_mode_is_in_its_range_and_draws_no_remark(mode: str) -> None:
    unit = UNITS[mode]
    assert unit.default is not None and unit.low <= unit.default <= unit.high
    assert unit_note(mode, unit.default, [0.25, 0.27, 20.0]) == ""


# -------------------------------------------------------------------------------------------------- percentile


@pytest.mark.parametrize("k", [10, 30, 75])
def test_a_new_draft_falls_below_the_percentile_as_often_as_its_law_says(k: int) -> None:
    """Of n uniform scores the interpolated quantile is on average (1 + q (n - 1)) / (n + 1)."""
    rng, n, q = random.Random(k), 60, k / 100
    rejected = sum(
        not percentile([rng.random()], k, [rng.random() for _ in range(n)]).accepted[0] for _ in range(REPETITIONS)
    )
    low, high = binomial_interval((1 + q * (n - 1)) / (n + 1))
    assert low <= rejected <= high


def test_percentile_of_one_score_of_constant_scores_and_of_nan() -> None:
    assert percentile([1.0, 0.9], 50, [1.0]).accepted == (True, False)
    assert percentile([2.0, 2.0, 1.9], 50, [2.0] * 20).accepted == (True, True, False)
    assert percentile([NAN], 50, [1.0, NAN]).accepted == (False,)
    with pytest.raises(ValueError, match="no finite score"):
        percentile([1.0], 50, [NAN])


# ------------------------------------------------------------------------------------------------ expected gain


def test_expected_gain_compares_a_draft_only_with_its_own_prompt() -> None:
    gate = expected_gain([0.5, 10.5, 0.5, NAN], [1.0, 10.0, 0.6, 0.0], 0.2)
    assert gate.accepted == (False, True, True, False)
    assert gate.thresholds == (0.8, 9.8, 0.6 - 0.2, -0.2) and math.isnan(gate.threshold)


def several(prompts: dict[str, list[float]], teacher: dict[str, float] | None = None) -> Calibration:
    rows = [(p, s) for p, scores in prompts.items() for s in scores]
    answers = tuple(teacher[p] for p, _ in rows) if teacher else ()
    return Calibration(tuple(s for _, s in rows), "f", "shy", tuple(p for p, _ in rows), answers)


CALIBRATION = several({"cat": [1.0, 3.0], "dog": [101.0, 103.0]})


def test_the_baseline_is_the_teachers_where_it_is_known_else_the_students() -> None:
    here = Situation(["cat", "dog"])
    assert gate_scores([1.9, 102.1], "expected gain", 0, CALIBRATION, situation=here).accepted == (False, True)
    paired = several({"cat": [1.0, 3.0], "dog": [101.0, 103.0]}, {"cat": 2.5, "dog": 109.0})
    gate = gate_scores([2.6, 102.1], "expected gain", 1, paired, situation=here)
    assert gate.accepted == (True, False) and gate.thresholds == (1.5, 108.0) and "teacher" in gate.note


def test_without_a_calibration_the_batchs_other_drafts_are_the_baseline() -> None:
    gate = gate_scores([1.0, 3.0, 50.0, 40.0], "expected gain", 0, situation=Situation(["cat", "cat", "dog", "dog"]))
    assert gate.accepted == (False, True, True, False) and "batch's own" in gate.note
    with pytest.raises(ValueError, match="no baseline for the prompt 'dog': calibrate with this prompt"):
        gate_scores([1.0, 3.0, 50.0], "expected gain", 0, situation=Situation(["cat", "cat", "dog"]))
    assert gate_scores([NAN, 3.0], "expected gain", 0, situation=Situation(["cat", "cat"])).accepted == (False, True)


SHY = Situation(["cat", "dog"], comparable=False, oracle_name="shy")


@pytest.mark.parametrize("mode", ["absolute", "guaranteed"])
def test_an_incomparable_oracle_gets_no_common_threshold(mode: str) -> None:
    with pytest.raises(ValueError, match=r"Scores of shy mean something else for every prompt.*'expected gain'"):
        gate_scores([1.0, 2.0], mode, 0.5, CALIBRATION, situation=SHY)


def test_an_incomparable_oracle_is_gated_by_score_minus_baseline() -> None:
    """A dog's bad 101.5 is worse than a cat's good 2.5, though the number is larger."""
    gate = gate_scores([2.5, 101.5], "worst share", 0.5, CALIBRATION, situation=SHY)
    assert gate.accepted == (True, False) and gate.thresholds == (2.5, 102.5) and "baseline" in gate.note
    assert gate_scores([2.5, 101.5], "worst share", 0.5, situation=Situation(["cat", "dog"])).accepted == (False, True)
    verdict = judge(gate, [2.5, 101.5], ["cat", "dog"], oracle="shy", fingerprint="f", mode="worst share", value=0.5)
    assert [j.threshold for j in verdict] == [2.5, 102.5]
    # scores less baselines are -1, 1, -1, 1: their median is 0
    assert gate_scores([2.1, 101.9], "percentile", 50, CALIBRATION, situation=SHY).accepted == (True, False)
    assert gate_scores([2.5, 101.5], "budget", 10, CALIBRATION, 4, 12, SHY).accepted == (True, False)


def test_an_incomparable_oracle_without_baselines_is_refused_but_for_one_prompt() -> None:
    for calibration in (None, several({"cat": [1.0, 3.0]})):
        with pytest.raises(ValueError, match=r"there is no baseline for '(cat|dog)': connect a calibration"):
            gate_scores([1.0, 2.0], "worst share", 0.5, calibration, situation=SHY)
    one = Situation(["cat", "cat"], comparable=False)
    assert gate_scores([1.0, 2.0], "absolute", 1.5, situation=one).accepted == (False, True)
    assert gate_scores([1.0, 2.0], "worst share", 0.5, situation=one).accepted == (False, True)
    # A calibration of other prompts makes it several prompts again: compare above each one's baseline (2 for the cat).
    assert gate_scores([1.5, 2.5], "percentile", 50, CALIBRATION, situation=one).accepted == (False, True)


# --------------------------------------------------------------------------------------------------- guaranteed


Law = Callable[[random.Random], tuple[float, bool]]
ALPHA, CONFIDENCE, PAIRS = 0.1, 0.9, 800  # enough for five starts, whose levels must add up


def falling(rng: random.Random) -> tuple[float, bool]:
    """P(worse | s) = 0.6 (1 - s), so R(t) = 0.3 (1 - t): below alpha for t >= 2/3."""
    s = rng.random()
    return s, rng.random() < 0.6 * (1 - s)


def risk_falling(t: float) -> float:
    return 0.3 * (1 - max(t, 0.0))


def flat(rng: random.Random) -> tuple[float, bool]:
    """Just above alpha everywhere: whatever is promised is wrong, so this is where the level is spent."""
    return rng.random(), rng.random() < ALPHA + 1e-6


def risk_flat(t: float) -> float:
    return ALPHA + 1e-6


def wavy(rng: random.Random) -> tuple[float, bool]:
    """P(worse) alternates between 0.02 and 0.25 in blocks, so that R crosses alpha several times."""
    s = rng.random()
    return s, rng.random() < (0.02, 0.25)[int(s * 10) % 2]


def risk_wavy(t: float) -> float:
    steps = [(i + 0.5) / 20000 for i in range(20000)]
    above = [(0.02, 0.25)[int(s * 10) % 2] for s in steps[max(0, math.ceil(max(t, 0.0) * 20000)) :]]
    return sum(above) / len(above) if above else 0.0


def tied(rng: random.Random) -> tuple[float, bool]:
    """Five scores; P(worse | s) = 0.4, 0.3, 0.2, 0.1, 0."""
    s = rng.randrange(5)
    return float(s), rng.random() < 0.4 - 0.1 * s


def risk_tied(t: float) -> float:
    passing = [s for s in range(5) if s >= t]
    return sum(0.4 - 0.1 * s for s in passing) / len(passing) if passing else 0.0


def draw(law: Law, rng: random.Random, count: int = PAIRS) -> tuple[list[float], list[float]]:
    rows = [law(rng) for _ in range(count)]
    return [s for s, _ in rows], [s + 1 if worse else s for s, worse in rows]


LAWS = [(falling, risk_falling), (flat, risk_flat), (wavy, risk_wavy), (tied, risk_tied)]


@pytest.mark.parametrize(("law", "risk"), LAWS, ids=lambda f: f.__name__)
def test_the_promise_is_broken_at_most_as_often_as_the_confidence_allows(law: Law, risk: Callable[[float], float]) -> None:
    rng = random.Random(5)
    thresholds = [certified_threshold(*draw(law, rng), ALPHA, CONFIDENCE) for _ in range(REPETITIONS)]
    broken = sum(t < INF and risk(t) > ALPHA for t in thresholds)
    assert broken <= binomial_interval(1 - CONFIDENCE)[1]


def test_the_promise_is_neither_empty_nor_free() -> None:
    """It accepts a good part of what could be accepted, and spends its level where the law is hardest."""
    rng = random.Random(6)
    found = [certified_threshold(*draw(falling, rng, 1000), ALPHA, CONFIDENCE) for _ in range(200)]
    assert sum(t < INF for t in found) > 0.7 * 200
    assert sum(1 - max(t, 0.0) for t in found if t < INF) / len(found) > 0.4 * (1 / 3)
    hard = [certified_threshold(*draw(flat, rng), ALPHA, CONFIDENCE) for _ in range(REPETITIONS)]
    assert sum(t < INF for t in hard) > 0.02 * REPETITIONS


def test_taking_the_measured_share_at_its_word_would_break_the_promise() -> None:
    """The same check on the rule without the finite-sample correction: it must notice."""
    rng, broken = random.Random(7), 0
    for _ in range(REPETITIONS):
        drafts, teachers = draw(falling, rng)
        order = sorted(zip(drafts, teachers, strict=True), reverse=True)
        worse, best = 0, INF
        for m, (d, t) in enumerate(order, 1):
            worse += is_worse(d, t)
            best = d if worse <= ALPHA * m else best
        broken += best < INF and risk_falling(best) > ALPHA
    assert broken > binomial_interval(1 - CONFIDENCE)[1]


def test_guarantee_on_few_constant_broken_and_perfect_scores() -> None:
    assert pairs_needed(0.1, 0.9) == 22
    few = guaranteed([9.0], [1.0] * 21, [0.0] * 21, 0.1)
    assert few.threshold == INF and few.accepted == (False,) and "at least 22 good pairs" in few.note
    assert certified_threshold([1.0] * 22, [1.0] * 22, 0.1) == -INF
    assert certified_threshold([1.0] * 400, [2.0] * 400, 0.1) == INF
    assert certified_threshold([], [], 0.1) == INF and certified_threshold([NAN] * 50, [0.0] * 50, 0.1) == INF
    assert certified_threshold([1.0] * 22, [NAN] * 22, 0.1) == -INF
    assert guaranteed([NAN, 1.0], [1.0] * 22, [1.0] * 22, 0.1).accepted == (False, True)
    assert certified_threshold([1.0] * 500, [1.0] * 500, 0.0) == INF and certified_threshold([1.0], [2.0], 1.0) == -INF
    # The threshold lies above the tested score: a tie with it was not certified.
    drafts = [2.0] * 40 + [1.0] * 40
    gate = guaranteed([2.0, 1.0], drafts, [2.0] * 40 + [9.0] * 40, 0.1)
    assert gate.accepted == (True, False) and gate.threshold > 1.0


@pytest.mark.parametrize(
    ("alpha", "confidence", "message"), [(1.5, 0.9, "from 0 to 1, not 1.5"), (0.1, 1.0, "between 0 and 1, such as 0.9")]
)
def test_impossible_promises_are_one_sentence(alpha: float, confidence: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certified_threshold([1.0], [1.0], alpha, confidence)


def test_guaranteed_mode_needs_pairs_and_takes_one_a_prompt() -> None:
    with pytest.raises(ValueError, match="needs a calibration with paired drafts"):
        gate_scores([1.0], "guaranteed", 0.1)
    with pytest.raises(ValueError, match="no pictures of a teacher"):
        gate_scores([1.0], "guaranteed", 0.1, CALIBRATION)
    repeated = several({"cat": [1.0] * 100}, {"cat": 1.0})
    assert gate_scores([1.0], "guaranteed", 0.1, repeated).threshold == INF
    many = several({f"p{i}": [1.0, 1.0] for i in range(40)}, {f"p{i}": 1.0 for i in range(40)})
    assert gate_scores([1.0], "guaranteed", 0.1, many, situation=Situation(confidence=0.9)).accepted == (True,)
    assert gate_scores([1.0], "guaranteed", 0.1, many, situation=Situation(confidence=0.999)).accepted == (False,)


# ------------------------------------------------------------------------------------------------------ running


def drifting(rng: random.Random, pictures: int = 200) -> list[float]:
    """Easy prompts, then hard ones."""
    return [rng.gauss(2.0 if i < pictures // 2 else -2.0, 0.5) for i in range(pictures)]


def run(scores: list[float], target: float, batch: int, state: State | None = None) -> tuple[State, list[bool]]:
    state, accepted = state or State(), []
    for start in range(0, len(scores), batch):
        part = scores[start : start + batch]
        state, gate = step(state, part, [f"{start + i}" for i in range(len(part))], target)
        accepted += gate.accepted
    return state, accepted


@pytest.mark.parametrize("batch", [1, 8, 200])
@pytest.mark.parametrize("target", [0.05, 0.3, 0.5, 0.9])
def test_the_reject_share_is_within_five_points_after_200_pictures_of_drift(target: float, batch: int) -> None:
    for seed in range(10):
        state, accepted = run(drifting(random.Random(seed)), target, batch)
        assert abs(accepted.count(False) / 200 - target) <= 0.05
        assert state.pictures == 200 and state.rejected == accepted.count(False)


def test_a_fixed_percentile_would_be_far_off_under_the_same_drift() -> None:
    scores = drifting(random.Random(0))
    fixed = percentile(scores, 30, [random.Random(1).gauss(2.0, 0.5) for _ in range(500)])
    assert abs(fixed.accepted.count(False) / 200 - 0.3) > 0.2


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_the_share_holds_for_scores_that_could_not_be_worse(target: float) -> None:
    """Proposition 4.1 asks nothing of the scores: constant, ever falling, ever rising, exploding."""
    for scores in (
        [1.0] * 200, [-float(i) for i in range(200)], [float(i) for i in range(200)], [(-3.0) ** (i % 40) for i in range(200)]
    ):  # fmt: skip
        _, accepted = run(scores, target, 1)
        assert abs(accepted.count(False) / 200 - target) <= (1 + controller.GAIN) / (controller.GAIN * 200)


def test_the_rejected_are_the_weak_ones() -> None:
    rng = random.Random(3)
    scores = [rng.gauss(0, 1) for _ in range(1000)]
    _, accepted = run(scores, 0.3, 4)
    weak = sorted(range(1000), key=lambda i: scores[i])[:300]
    assert sum(not accepted[i] for i in weak) > 0.75 * 300
    assert all(accepted[i] for i in sorted(range(1000), key=lambda i: scores[i])[-200:] if i > 100)


def test_nan_is_rejected_and_moves_nothing() -> None:
    state, _ = run([1.0, 2.0, 3.0], 0.3, 3)
    after, gate = step(state, [NAN], ["n"], 0.3)
    assert gate.accepted == (False,)
    assert (after.level, after.pictures, after.recent) == (state.level, state.pictures, state.recent)


def test_one_picture_and_no_picture() -> None:
    state, gate = step(State(), [1.0], ["a"], 0.3)
    assert gate.accepted == (True,) and state.pictures == 1
    assert step(state, [], [], 0.3)[0] == state


def test_the_same_pictures_are_judged_the_same_and_counted_once() -> None:
    state, first = step(State(), [3.0, 1.0, 2.0], ["a", "b", "c"], 0.5)
    again, second = step(state, [3.0, 1.0, 2.0], ["a", "b", "c"], 0.5)
    assert again == state and second == first
    later, _ = run([5.0, 6.0, 7.0, 8.0], 0.5, 2, state)
    moved, third = step(later, [2.0, 3.0, 9.0], ["c", "a", "new"], 0.5)
    assert third.thresholds[:2] == (first.thresholds[2], first.thresholds[0])
    assert moved.pictures == later.pictures + 1


def test_the_last_batch_with_another_target_takes_its_step_back() -> None:
    before, _ = run([float(i % 7) for i in range(20)], 0.5, 5)
    keys = ["x", "y", "z"]
    once, _ = step(before, [1.0, 3.0, 5.0], keys, 0.5)
    retried, gate = step(once, [1.0, 3.0, 5.0], keys, 0.9)
    direct, expected = step(before, [1.0, 3.0, 5.0], keys, 0.9)
    assert gate == expected
    assert (retried.level, retried.recent, retried.pictures) == (direct.level, direct.recent, direct.pictures)
    # An older batch can't be taken back: it is judged by today's threshold and not counted.
    later, _ = step(once, [2.0], ["w"], 0.5)
    again, gate = step(later, [1.0, 3.0, 5.0], keys, 0.9)
    assert again.recent == later.recent and set(gate.thresholds) == {later.threshold()}


def test_the_controllers_file_can_be_read_continued_and_deleted(tmp_path) -> None:
    path = tmp_path / "controllers" / "portraits.json"
    scores = drifting(random.Random(9), 60)
    for start in range(0, 60, 6):
        keys = [str(start + i) for i in range(6)]
        gate = FileController(path).judge(scores[start : start + 6], keys, 0.3, "abc", "tiny")
    direct, _ = run(scores, 0.3, 6)
    assert controller.load(path).level == direct.level and controller.load(path).recent == direct.recent
    told = json.loads(path.read_text())
    assert told["pictures"] == 60 and told["target"] == 0.3 and "Delete this file" in told["about"]
    assert f"rejected {told['rejected']} of 60 pictures" in gate.note
    assert controller.reset(path) and not controller.reset(path)
    FileController(path).judge([1.0], ["a"], 0.3, "abc", "tiny")
    assert controller.load(path).pictures == 1


def test_a_repeated_batch_leaves_the_file_untouched(tmp_path) -> None:
    path = tmp_path / "c.json"
    first = FileController(path).judge([3.0, 1.0, NAN], ["a", "b", "c"], 0.5, "abc", "tiny")
    content = path.read_bytes()
    second = FileController(path).judge([3.0, 1.0, NAN], ["a", "b", "c"], 0.5, "abc", "tiny")
    assert path.read_bytes() == content and second.accepted == first.accepted and second.thresholds == first.thresholds


def test_a_calibration_gives_a_new_controller_its_first_scores(tmp_path) -> None:
    known = Calibration(tuple(float(i) for i in range(100)), "abc")
    here = Situation(["p"], controller=FileController(tmp_path / "c.json"), keys=["k"], oracle="abc", oracle_name="tiny")
    gate = gate_scores([10.0], "running", 0.5, known, situation=here)
    assert gate.accepted == (False,) and gate.threshold == 49.5


def test_running_refuses_another_oracle_a_missing_controller_and_a_wrong_share(tmp_path) -> None:
    keeper = FileController(tmp_path / "c.json")
    keeper.judge([1.0], ["a"], 0.3, "abc", "tiny")
    with pytest.raises(ValueError, match=r"followed the scores of tiny \(abc\), but the judge uses other \(def\)"):
        keeper.judge([1.0], ["b"], 0.3, "def", "other")
    with pytest.raises(ValueError, match="needs a controller"):
        gate_scores([1.0], "running", 0.3)
    with pytest.raises(ValueError, match="share to reject is a number from 0"):
        step(State(), [1.0], ["a"], 30)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: "{", "is damaged: it is no valid JSON"),
        (lambda c: json.dumps({**c, "version": 99}), "written by a newer Apprentice .version 99"),
        (lambda c: json.dumps({k: v for k, v in c.items() if k != "level"}), "it has no 'level'"),
        (lambda c: json.dumps({**c, "recent_scores": ["high"]}), "'high' is no number"),
        (lambda c: json.dumps({**c, "rejected": 7}), "7 of 1 pictures were rejected"),
        (lambda c: json.dumps({**c, "format": "other"}), "another kind of file"),
    ],
)
def test_a_broken_controller_file_is_one_sentence(tmp_path, damage, message) -> None:
    path = tmp_path / "c.json"
    FileController(path).judge([1.0], ["a"], 0.3)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        FileController(path).judge([1.0], ["b"], 0.3)
