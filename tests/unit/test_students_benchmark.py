"""``apprentice bench students``: shares by quarter, choices of two, and the curvature of known curves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.benchmarks import students as bench
from comfyui_apprentice.benchmarks.figures import Claim
from comfyui_apprentice.benchmarks.students import Drawings, Measured
from comfyui_apprentice.world.recipe.sampling import curvature

PROMPTS, SEEDS = 60, 3


def drawings(name: str, steps: int, scores: np.ndarray, turn: float = 0.0) -> Drawings:
    """A network whose oracle is the judge; its features are turned by ``turn`` times a number of each picture."""
    angle = turn * np.linspace(0, 1, scores.size).reshape(scores.shape)
    return Drawings(name, steps, steps, scores, scores, np.stack([np.cos(angle), np.sin(angle)], -1))


def normal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((PROMPTS, SEEDS))


def test_a_straight_trajectory_has_no_curvature_whatever_its_steps() -> None:
    times = torch.tensor([80.0, 30.0, 5.0, 0.5, 0.0])
    start, velocity = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    points = start + times.view(-1, 1, 1, 1) * velocity
    assert curvature(points, times).shape == (3,) and curvature(points, times).abs().max() < 1e-12
    slower = curvature(points[[0, 2, 1, 3, 4]], times)
    assert (slower > 1).all(), "straight, but not at one speed"


@pytest.mark.parametrize(("turn", "expected"), [(math.pi, 1 - 4 / math.pi**2), (2 * math.pi, 1.0)])
def test_the_curvature_of_a_circle(turn: float, expected: float) -> None:
    """At unit speed C dim = 1 - |chord|^2 / T^2: the mean square of a velocity about its mean."""
    times = torch.linspace(0, turn, 2001, dtype=torch.float64)
    points = torch.stack([times.cos(), times.sin()], -1)[:, None]
    assert float(2 * curvature(points, times)) == pytest.approx(expected, abs=1e-5)
    assert curvature(points.flip(0), times.flip(0)) == pytest.approx(curvature(points, times))
    assert curvature(3 * points, times) == pytest.approx(9 * curvature(points, times))


def test_quarters_hold_a_quarter_each_and_equal_values_lie_together() -> None:
    values = np.random.default_rng(0).permutation(100).reshape(25, 4).astype(float)
    group = bench.quarters(values)
    assert np.bincount(group.ravel()).tolist() == [25] * 4
    assert all(values[group == q].max() < values[group == q + 1].min() for q in range(3))
    words = np.array([4.0] * 50 + [5.0] * 45 + [7.0] * 5)
    assert [np.unique(words[bench.quarters(words) == q]).tolist() for q in range(4)] == [[4], [], [5], [7]]


def test_shares_by_quarter_and_their_trend_are_those_put_in() -> None:
    values = np.arange(PROMPTS * SEEDS, dtype=float).reshape(PROMPTS, SEEDS)
    better = (values >= 90).astype(float)
    better[-15:] = np.arange(SEEDS) < 2  # of the last quarter two thirds
    parts = bench.share_by_quarter(better, values, draws=50)
    assert [part["share"] for part in parts] == pytest.approx([0, 0, 1, 2 / 3], abs=0.03)
    assert [part["pictures"] for part in parts] == [45] * 4 and parts[0]["about"] == pytest.approx(22, abs=1)
    found = bench.trend(better, values, draws=200)
    assert found.value == pytest.approx(parts[3]["share"] - parts[0]["share"])
    assert 0.4 < found.lo <= found.value <= found.hi <= 1


def test_a_share_is_uncertain_by_prompt_not_by_picture() -> None:
    """Seeds that always agree with each other are no more pictures than prompts."""
    agreeing = np.repeat(normal(0)[:, :1] > 0, SEEDS, 1).astype(float)
    single, many = (bench.share_within(won, np.ones_like(won), 500) for won in (agreeing[:, :1], agreeing))
    assert (many.lo, many.hi) == pytest.approx((single.lo, single.hi))


def test_a_rank_correlation_is_spearmans() -> None:
    a, b = normal(0), normal(1) + normal(0)
    from scipy.stats import spearmanr

    found = bench.rank_correlation(a, np.exp(b), draws=100)
    assert found.value == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert found.lo < found.value < found.hi


def test_the_oracle_chooses_and_the_judge_tells_what_that_was_worth() -> None:
    one, other = ([1.0, 5.0], [10.0, 20.0]), ([2.0, 4.0], [-1.0, 99.0])
    assert bench.chosen(*((np.array(o), np.array(j)) for o, j in (one, other))).tolist() == [-1.0, 20.0]


def test_networks_that_are_good_at_other_prompts_complement_and_equal_ones_do_not() -> None:
    """Scores 0 and 2, by turns: two of one give 1 on average, one of each 2 always. Equal networks gain nothing."""
    turns = np.tile([[2.0], [0.0]], (PROMPTS // 2, SEEDS))
    teacher, opposite = drawings("teacher", 24, turns), drawings("sid", 1, 2 - turns)
    two = bench.twos(opposite, teacher)
    assert (two["two of the student"].mean(), two["two of the teacher"].mean()) == (1.0, 1.0)
    assert (two["one of each"] == 2).all() and (two["one of each, one noise"] == 2).all()
    gain = bench.complement(two, draws=200)
    assert gain.value == 1.0 and bench.verdict(gain, Claim(0, -1, 1)) == "complements it"
    assert bench.complement(bench.twos(teacher, teacher), draws=50).value == pytest.approx(0)
    strong = bench.complement(bench.twos(drawings("sid", 1, normal(0) + 9), drawings("teacher", 24, normal(1))), draws=50)
    assert strong.hi < 0 and bench.verdict(strong, Claim(9, 8, 10)) == "is ahead of it"
    assert bench.verdict(strong, Claim(-9, -10, -8)) == "is behind it"


def test_of_equal_networks_none_is_said_to_be_better() -> None:
    """But for one in twenty or so, by luck; the difference to the better by luck would say so more often."""
    verdicts = []
    for seed in range(40):
        student, teacher = drawings("sid", 1, normal(seed)), drawings("teacher", 24, normal(100 + seed))
        gain = bench.complement(bench.twos(student, teacher), draws=500)
        verdicts.append(bench.verdict(gain, bench.mean_of((student.judge - teacher.judge).mean(1))))
    assert verdicts.count("complements it") == 0 and verdicts.count("equals it") >= 34, verdicts


def test_a_perfect_oracle_chooses_as_the_judge() -> None:
    blind = replace(drawings("sid", 1, normal(0)), oracle=np.zeros((PROMPTS, SEEDS)))
    two = bench.twos(bench.perfectly(blind), bench.perfectly(blind))
    pairs = [np.maximum(blind.judge[:, a], blind.judge[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert two["two of the student"] == pytest.approx(np.mean(pairs, 0))
    assert bench.twos(blind, blind)["two of the student"].mean() < two["two of the student"].mean()


def test_a_picture_with_more_to_see_takes_more_bytes() -> None:
    plain, half = torch.full((64, 64, 3), 0.5), torch.full((64, 64, 3), 0.5)
    half[:, 32:] = torch.rand(64, 32, 3, generator=torch.Generator().manual_seed(0))
    noisy = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    sizes = bench.jpeg_bytes(torch.stack([plain, half, noisy]))
    assert sizes[0] < 0.5 * sizes[1] < sizes[1] < 0.7 * sizes[2]


def test_the_table_has_a_line_and_the_plot_a_line_for_every_network(tmp_path: Path) -> None:
    students = [
        drawings("consistency", 1, normal(1), 1.0),
        drawings("sid", 2, normal(2) + 3, 2.0),
        drawings("teacher", 9, normal(3), 0.5),
    ]
    measured = Measured(students, drawings("teacher", 24, normal(0)), normal(4).round(), normal(5), normal(6))
    figures = bench.compare(measured)
    assert [row["network"] for row in figures.rows] == ["consistency, 1 step", "sid, 2 steps", "teacher, 9 steps"]
    share = figures.claims["sid_2_share"]
    assert share.value == pytest.approx((students[1].judge > measured.teacher.judge).mean()) and share.lo > 0.9
    assert figures.claims["sid_2_complement"].hi < 0 < figures.claims["sid_2_gain"].lo
    assert all(isinstance(claim, Claim) and claim.lo <= claim.value <= claim.hi for claim in figures.claims.values())
    bench.draw_plot(figures, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 20_000


def test_two_prompts_are_drawn_and_measured_on_the_tiny_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TEACHER_STEPS", 4)
    monkeypatch.setattr(bench, "CHEAP_STEPS", 3)
    found = bench.measure(["flat panda on blue", "noto red heart on green"], 2, lambda _text: None)
    assert [s.label for s in found.students] == [
        "consistency, 1 step", "consistency, 2 steps", "sid, 1 step", "sid, 2 steps", "teacher, 3 steps",
    ]  # fmt: skip
    assert found.words.tolist() == [[4, 4], [5, 5]] and (found.complexity > 300).all() and (found.curvature > 0).all()
    factors = found.factors(found.students[0])
    assert (factors["distance"] > 1e-4).all() and set(factors) == set(bench.FACTORS)
    assert found.factors(found.teacher)["distance"] == pytest.approx(np.zeros((2, 2)), abs=1e-6)
