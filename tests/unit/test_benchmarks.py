"""The benchmarks' statistics, and that the docs say what was measured."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from comfyui_apprentice.benchmarks.adaptive import Pool, best_of, route, route_at_random, share_for
from comfyui_apprentice.benchmarks.draw import Sleeper, in_one_process, single_nodes
from comfyui_apprentice.benchmarks.figures import bootstrap
from comfyui_apprentice.bulk.items import Item
from comfyui_apprentice.bulk.workflow import Policy, Template
from comfyui_apprentice.world.recipe.frechet import frechet
from harness import ROOT
from make_figures import DOCS, PLOTS, digest, drawn, filled


@pytest.mark.parametrize("name", ["results.md", "models.md"])
def test_docs_say_what_was_measured(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    assert filled(name, text) == text, "run: python scripts/make_figures.py"
    row = next(line for line in text.splitlines() if line.startswith("| ") and "`" in line)
    assert filled(name, text.replace(row, "| 1 |")) == text, "what stands between the markers is written anew"


@pytest.mark.parametrize("name", PLOTS)
def test_plots_show_what_was_measured(name: str) -> None:
    assert drawn(name) == digest(PLOTS[name][0]()), "run: python scripts/make_figures.py"


def test_claims_have_intervals() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "adaptive.json").read_text())
    assert set(results) >= {"machine", "settings", "rows", "claims"}
    for name in (
        "adaptive_minus_random", "adaptive_minus_student", "adaptive_minus_teacher", "adaptive_minus_best_of_n",
        "frechet_ratio_to_teacher", "nfe_ratio_at_equal_quality", "share_of_better_drafts",
    ):  # fmt: skip
        claim = results["claims"][name]
        assert claim["lo"] <= claim["value"] <= claim["hi"]


def test_drawing_in_bulk_costs_at_most_a_twentieth() -> None:
    claims = json.loads((ROOT / "benchmarks" / "results" / "draw.json").read_text())["claims"]
    assert all(claims[name]["value"] <= 0.05 for name in ("draw_overhead", "draw_ray_overhead"))


def test_the_engine_that_sleeps_drafts_judges_and_improves() -> None:
    draw = in_one_process(Sleeper(0.02, 0.01, 0.03, 32, 4).run, Template(single_nodes(), 8, Policy()))
    began = time.monotonic()
    made = draw([Item(number, f"prompt {number}") for number in range(8)], 0)
    assert [judgement.decision for judgement in made.verdict] == ["improved"] * 4 + ["accepted"] * 4
    assert made.pictures.shape == (8, 32, 32, 3) and time.monotonic() - began >= 8 * 0.03 + 4 * 0.03


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    """|m|^2 + sum (a_i - b_i)^2 for diagonal covariances a^2 and b^2."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T  # exactly standard
    scaled = x * [2.0, 1.0, 0.5] + [1.0, 0.0, 0.0]
    assert frechet(scaled, np.zeros(3), np.diag([1.0, 1.0, 1.0])) == pytest.approx(1 + 1 + 0 + 0.25, abs=1e-6)
    assert frechet(x, np.zeros(3), np.eye(3)) == pytest.approx(0, abs=1e-6)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(1), 0
    for trial in range(100):
        values = rng.normal(1.0, 2.0, 60)
        claim = bootstrap(lambda i, v=values: float(v[i].mean()), 60, draws=400, seed=trial)
        hits += claim.lo <= 1.0 <= claim.hi
    assert 86 <= hits <= 100


def pool(gate: list[float], quality: list[float], nfe: float) -> Pool:
    return Pool(np.array(gate), np.array(quality), np.zeros((len(gate), 2)), nfe, None, np.zeros(len(gate)))


DRAFTS = pool([0.9, 0.1, 0.5, 0.3], [9.0, 1.0, 5.0, 3.0], 2)
TEACHER = pool([0.8, 0.7, 0.6, 0.2], [8.0, 7.0, 6.0, 2.0], 10)


def test_routing_sends_the_worst_and_counts_every_evaluation() -> None:
    half = route(DRAFTS, TEACHER, 0.5, keep_better=False)
    assert half.quality.tolist() == [9, 7, 5, 2] and half.nfe == 7
    kept = route(DRAFTS, TEACHER, 0.5, keep_better=True)
    assert kept.quality.tolist() == [9, 7, 5, 3] and kept.nfe == 7
    assert route(DRAFTS, TEACHER, 0.0, True).nfe == 2 and route(DRAFTS, TEACHER, 1.0, False).quality.tolist() == [8, 7, 6, 2]


def test_random_routing_is_an_expectation_and_best_of_n_takes_the_gates_favourite() -> None:
    assert route_at_random(DRAFTS, TEACHER, 0.5, False).quality.tolist() == [8.5, 4.0, 5.5, 2.5]
    assert route_at_random(DRAFTS, TEACHER, 0.5, True).quality.tolist() == [9.0, 4.0, 5.5, 3.0]
    best = best_of([DRAFTS, TEACHER], 2)
    assert best.quality.tolist() == [9, 7, 6, 3] and best.nfe == 4
    assert share_for(7, DRAFTS, TEACHER) == 0.5


def test_dialled_scores_order_as_often_as_they_say() -> None:
    from comfyui_apprentice.benchmarks.oracles import dialled

    rng = np.random.default_rng(0)
    quality = rng.standard_normal(4000) * 3 + 20
    for accuracy in (0.5, 0.65, 0.85, 1.0):
        scores = dialled(quality, accuracy, rng)
        pairs = rng.integers(4000, size=(20000, 2))
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        right = (scores[pairs[:, 0]] > scores[pairs[:, 1]]) == (quality[pairs[:, 0]] > quality[pairs[:, 1]])
        assert right.mean() == pytest.approx(accuracy, abs=0.02)


def test_every_threshold_gates_by_a_perfect_oracle_and_none_gains_by_guessing_alone() -> None:
    from comfyui_apprentice.benchmarks.oracles import Pictures, gates

    rng = np.random.default_rng(1)
    draft = rng.standard_normal(400)
    teacher = draft * 0.2 + rng.standard_normal(400) + 0.5
    pictures = Pictures([f"p{i // 2}" for i in range(400)], draft, teacher, (2.0, 18.0))
    perfect, guess = ({r["threshold"]: r for r in gates(pictures, a, repeats=6)} for a in (1.0, 0.5))
    for mode in ("absolute", "worst share", "percentile", "budget", "running"):
        assert perfect[mode]["gain (judge)"] > guess[mode]["gain (judge)"] + 0.1
        assert perfect[mode]["share to the teacher"] == pytest.approx(0.5, abs=0.1)
    assert perfect["guaranteed"]["accepted worse than teacher"] <= 0.3
    assert guess["guaranteed"]["share to the teacher"] > 0.9, "nothing can be promised of guesses"
