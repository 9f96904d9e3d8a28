"""Thresholds, verdicts, and which picture stays."""

from __future__ import annotations

import math

import pytest
from comfyui_apprentice.gate.calibration import Calibration
from comfyui_apprentice.gate.decision import gate_scores, judge, keep_better
from comfyui_apprentice.gate.thresholds import absolute, budget, budget_share, percentile, quantile, worst_share
from comfyui_apprentice.gate.verdict import Judgement, Verdict, summary, table
from comfyui_apprentice.samplers.adaptive import is_better

NAN = math.nan


def test_absolute_accepts_what_reaches_the_threshold() -> None:
    assert absolute([0.1, 0.5, 0.9, NAN], 0.5).accepted == (False, True, True, False)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_worst_share_rejects_exactly_that_share(share: float) -> None:
    scores = [0.3, 0.1, 0.4, 0.2]
    gate = worst_share(scores, share)
    rejected = {s for s, ok in zip(scores, gate.accepted, strict=True) if not ok}
    assert rejected == set(sorted(scores)[: int(share * 4)])


def test_worst_share_breaks_ties_to_the_exact_count_and_always_rejects_nan() -> None:
    assert worst_share([0.5, 0.5, 0.5, 0.5], 0.5).accepted == (True, True, False, False)
    assert worst_share([NAN, 0.1, 0.2, 0.3], 0.25).accepted == (False, True, True, True)
    assert worst_share([NAN, NAN, 0.2, 0.3], 0.25).accepted == (False, False, True, True)
    assert worst_share([], 0.5).accepted == ()


def test_percentile_is_of_the_reference_and_reaches_both_ends() -> None:
    reference = [i / 100 for i in range(101)]
    gate = percentile([0.29, 0.31], 30, reference)
    assert gate.threshold == pytest.approx(0.3) and gate.accepted == (False, True)
    assert percentile([-9.0], 0, reference).accepted == (True,)
    assert percentile([9.0], 100, reference).accepted == (False,)
    assert quantile([3.0, 1.0, NAN, 2.0], 0.25) == 1.5


def test_budget_affords_what_the_equation_says() -> None:
    assert budget_share(10, 4, 24) == 0.25
    gate = budget([0.1, 0.2, 0.3, 0.4], 10, 4, 24)
    assert gate.accepted == (False, True, True, True)
    assert "25%" in gate.note and "1 of 4" in gate.note
    assert budget_share(2, 4, 24) == 0.0 and budget_share(100, 4, 24) == 1.0


@pytest.mark.parametrize(
    ("mode", "value", "message"),
    [
        ("worst share", 2.0, "a number from 0"),
        ("percentile", 101.0, "from 0 to 100"),
        ("budget", 10.0, "connect the student sampler's drafts"),
        ("other", 0.0, "is one of absolute"),
    ],
)
def test_wrong_gate_settings_are_one_sentence(mode: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate_scores([0.1, 0.2], mode, value)


def test_calibration_gates_by_its_own_distribution_and_refuses_another_oracle() -> None:
    calibration = Calibration(tuple(i / 10 for i in range(11)), "abc")
    assert gate_scores([0.45, 0.55], "percentile", 50, calibration).accepted == (False, True)
    calibration.require_oracle("abc")
    with pytest.raises(ValueError, match="was made with oracle abc"):
        calibration.require_oracle("def")


@pytest.mark.parametrize(
    ("draft", "improved", "margin", "better"),
    [(0.5, 0.6, 0.0, True), (0.5, 0.5, 0.0, False), (0.5, 0.6, 0.2, False), (0.5, 0.4, -0.2, True),
     (NAN, 0.1, 0.0, True), (0.1, NAN, -9.0, False), (NAN, NAN, 0.0, False)],
)  # fmt: skip
def test_the_better_picture_stays(draft: float, improved: float, margin: float, better: bool) -> None:
    assert is_better(draft, improved, margin) is better


def verdict_of(scores: list[float], threshold: float = 0.5, **more) -> Verdict:
    gate = absolute(scores, threshold)
    return judge(
        gate, scores, [f"p{i}" for i in range(len(scores))], oracle="o", fingerprint="f", mode="absolute", value=threshold, **more
    )


def test_keep_better_adds_up_costs_and_remembers_the_draft() -> None:
    verdict = verdict_of([0.9, 0.1, 0.2], seeds=[5, 5, 5], nfe=[4, 4, 4])
    after = keep_better(verdict, {1: 0.7, 2: 0.1}, 0.0, [0, 20, 20], note="n")
    assert [j.decision for j in after] == ["accepted", "improved", "draft kept"]
    assert [j.score for j in after] == [0.9, 0.7, 0.2]
    assert [j.nfe for j in after] == [4, 24, 24] and after.mean_nfe == pytest.approx(52 / 3)
    assert [j.draft_score for j in after] == [None, 0.1, 0.2]


def test_unknown_costs_stay_unknown_and_are_never_guessed() -> None:
    after = keep_better(verdict_of([0.9, 0.1]), {1: 0.7}, 0.0, [0, 20])
    assert [j.nfe for j in after] == [None, None] and after.mean_nfe is None


def test_table_has_a_line_a_picture_and_the_totals() -> None:
    text = table(verdict_of([0.9, NAN], nfe=[4, 4]))
    assert len(text.splitlines()) == 6 and text.startswith("| picture | score")
    assert "2 pictures: 1 accepted, 1 rejected" in summary(verdict_of([0.9, NAN]))


def test_a_verdict_refuses_another_batch() -> None:
    with pytest.raises(ValueError, match="about 2 pictures, but images has 3"):
        verdict_of([0.1, 0.2]).require_batch(3, "images")
    assert Judgement(0, 0.1, 0.5, False).decision == "rejected"
