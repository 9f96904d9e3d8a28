"""Picking the best, and how far two oracles agree."""

from __future__ import annotations

import math

import pytest
import torch
from comfyui_apprentice.charts.comparison import comparison_chart
from comfyui_apprentice.gate.selection import agreement, best_of

NAN = math.nan


def test_the_best_come_first_equals_in_order_and_nan_last() -> None:
    assert best_of([0.2, 0.9, NAN, 0.9, 0.5], 3) == [1, 3, 4]
    assert best_of([NAN, NAN, 0.1], 2) == [2, 0]
    assert best_of([0.1, 0.2], 9) == [1, 0]
    assert best_of([], 2) == []


def test_the_best_of_each_prompt() -> None:
    assert best_of([0.1, 0.9, 0.5, 0.7], 1, ["a", "b", "a", "b"]) == [2, 1]
    assert best_of([0.1, 0.9, 0.5, NAN], 2, ["a", "b", "a", "b"]) == [2, 0, 1, 3]


def test_picking_none_is_refused() -> None:
    with pytest.raises(ValueError, match="picks 1 picture or more, not 0"):
        best_of([0.1], 0)


def test_rank_correlations_in_closed_form() -> None:
    """rho = 1 - 6 sum d^2 / (n (n^2 - 1)); tau = (agreeing - opposed pairs) / all pairs."""
    found = agreement([4.0, 3.0, 2.0, 1.0], [30.0, 40.0, 20.0, 10.0])
    assert found.spearman == pytest.approx(1 - 6 * 2 / (4 * 15)) and found.kendall == pytest.approx((5 - 1) / 6)
    assert found.ranks_a == (1, 2, 3, 4) and found.ranks_b == (2, 1, 3, 4)
    assert found.disagreements() == [0, 1]
    assert agreement([1.0, 2.0], [5.0, 4.0]).spearman == pytest.approx(-1)


def test_pictures_without_a_score_and_constant_scores_have_defined_answers() -> None:
    found = agreement([1.0, NAN, 3.0, 2.0], [1.0, 9.0, 3.0, 2.0])
    assert found.spearman == pytest.approx(1) and math.isnan(found.ranks_a[1]) and found.disagreements() == []
    assert math.isnan(agreement([1.0, 1.0], [1.0, 2.0]).spearman)
    assert math.isnan(agreement([], []).kendall) and agreement([], []).ranks_a == ()


def test_scores_of_different_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="One oracle scored 2 pictures and the other 3"):
        agreement([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("scores", [([0.1, 0.5, 0.9], [0.9, 0.5, 0.1]), ([NAN] * 3, [1.0, 2.0, 3.0]), ([1.0] * 3, [1.0] * 3)])
def test_every_batch_has_a_chart(scores: tuple[list[float], list[float]]) -> None:
    chart = comparison_chart(torch.rand(3, 20, 30, 3), scores, ("a very long name " * 9, "b"), agreement(*scores))
    assert chart.ndim == 4 and chart.shape[0] == 1 and chart.shape[-1] == 3
    assert chart.min() >= 0 and chart.max() <= 1


def test_the_chart_frames_what_the_oracles_differ_on() -> None:
    from comfyui_apprentice.charts.comparison import ACCENT

    def red(scores: tuple[list[float], list[float]]) -> int:
        chart = comparison_chart(torch.ones(3, 20, 20, 3), scores, ("a", "b"), agreement(*scores))
        return int(((chart[0] * 255).round().int() == torch.tensor(ACCENT)).all(-1).sum())

    assert red(([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])) > 500 and red(([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])) == 0
