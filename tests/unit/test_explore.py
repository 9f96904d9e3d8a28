"""Explore: beliefs, reservation values and the stop rule against closed forms and brute force."""

from __future__ import annotations

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
from comfyui_apprentice.gate.selection import choose_together, newcomers_levels
from comfyui_apprentice.samplers.beliefs import (
    Prior,
    excess,
    fit_gain,
    fit_prior,
    predictive,
    reservation,
    tail,
)
from comfyui_apprentice.samplers.explore import Search, Source, Teacher
from scipy import stats


def _run(search: Search, draw) -> None:
    for _ in range(10_000):
        tries = search.wanted()
        if not tries:
            return
        search.tell(tries, [draw(t) for t in tries])
    raise AssertionError("the search never ends")


# ------------------------------------------------------------------------------------------------ the two integrals


@pytest.mark.parametrize("dof", [2.5, 5.0, 40.0])
@pytest.mark.parametrize("z", [-3.0, 0.0, 0.7, 4.0])
def test_the_excess_is_the_integral_of_the_tail(z, dof):
    from scipy.integrate import quad

    wanted, _ = quad(lambda x: stats.t.sf(x, dof), z, math.inf)
    assert excess(np.array(z), np.array(dof)) == pytest.approx(wanted, rel=1e-6)
    assert tail(np.array(z), np.array(dof)) == pytest.approx(stats.t.sf(z, dof), rel=1e-9)


def test_with_many_degrees_of_freedom_the_excess_is_the_normal_expected_improvement():
    z = np.linspace(-3, 3, 7)
    wanted = stats.norm.pdf(z) - z * stats.norm.sf(z)
    np.testing.assert_allclose(excess(z, np.array(1e8)), wanted, rtol=1e-6)


def test_the_reservation_value_is_where_another_look_is_just_worth_its_cost():
    cost, location, scale, dof = np.array([1e-4, 0.1, 0.5, 7.0]), 3.0, 2.0, np.array(6.0)
    z = reservation(cost, np.array(location), np.array(scale), dof)
    np.testing.assert_allclose(scale * excess((z - location) / scale, dof), cost, rtol=1e-6)
    assert reservation(np.array(0.0), np.array(location), np.array(scale), dof) == np.inf


def test_a_cost_above_all_hope_makes_the_reservation_value_the_mean_less_the_cost():
    z = reservation(np.array(50.0), np.array(3.0), np.array(0.1), np.array(30.0))
    assert z == pytest.approx(3.0 - 50.0, abs=1e-6)


# ------------------------------------------------------------------------------------------------------- beliefs


def test_with_one_source_the_posterior_is_the_textbooks_normal_gamma():
    """Murphy 2007, "Conjugate Bayesian analysis of the Gaussian distribution", eq. 85 to 89 and 100."""
    scores, mean, within, kappa, a = np.array([2.0, 3.5, 1.0]), 1.0, 2.0, 0.5, 3.0
    prior = Prior(np.array([mean]), np.array([within]), np.array([[1 / kappa]]), a)
    got = predictive(prior, np.array([[3.0]]), np.array([[scores.mean()]]), np.array([[((scores - scores.mean()) ** 2).sum()]]))
    n, b = 3, (a - 1) * within**2
    kappa_n, a_n = kappa + n, a + n / 2
    location = (kappa * mean + n * scores.mean()) / kappa_n
    b_n = b + ((scores - scores.mean()) ** 2).sum() / 2 + kappa * n * (scores.mean() - mean) ** 2 / (2 * kappa_n)
    assert got.location[0, 0] == pytest.approx(location)
    assert got.scale[0, 0] == pytest.approx(math.sqrt(b_n * (kappa_n + 1) / (a_n * kappa_n)))
    assert got.dof[0, 0] == pytest.approx(2 * a_n)


def test_a_source_learns_from_another_only_as_far_as_they_agree():
    counts, means, squares = np.array([[4.0, 0.0]]), np.array([[-3.0, 0.0]]), np.zeros((1, 2))
    strangers = Prior(np.zeros(2), np.ones(2), np.eye(2))
    twins = Prior(np.zeros(2), np.ones(2), np.ones((2, 2)))
    assert predictive(strangers, counts, means, squares).location[0, 1] == 0
    own, other = predictive(twins, counts, means, squares).location[0]
    assert other == pytest.approx(own) and own < -2


def test_the_prior_by_moments_recovers_the_model_that_made_the_scores():
    rng, between = np.random.default_rng(0), np.array([[1.5, 1.0], [1.0, 1.2]])
    tables: list[dict[str, list[float]]] = [{}, {}]
    for prompt in range(600):
        variance = 1 / rng.gamma(4, 1 / 3)
        effect = rng.multivariate_normal([0, 0], variance * between)
        for s in range(2):
            tables[s][str(prompt)] = list(10 * s + (1 + s) * (effect[s] + math.sqrt(variance) * rng.normal(size=5)))
    prior = fit_prior(tables)
    np.testing.assert_allclose(prior.mean, [0, 10], atol=0.25)
    np.testing.assert_allclose(prior.within, [1, 2], rtol=0.1)
    np.testing.assert_allclose(prior.between, between, atol=0.35)
    assert 3 < prior.shape < 6


def test_scores_that_mean_something_else_for_every_prompt_teach_nothing_before_a_try():
    prior = Prior(np.zeros(1), np.ones(1), np.ones((1, 1))).apart()
    before = predictive(prior, np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)))
    after = predictive(prior, np.ones((1, 1)), np.full((1, 1), 300.0), np.zeros((1, 1)))
    assert before.scale[0, 0] > 100
    assert after.location[0, 0] == pytest.approx(300, abs=0.1) and after.scale[0, 0] < 3


def test_a_teachers_gain_is_learned_from_pairs():
    rng = np.random.default_rng(1)
    drafts = rng.normal(size=20_000)
    gain = fit_gain(list(drafts), list(1.0 + 0.4 * drafts + 0.5 * rng.normal(size=20_000)))
    assert gain is not None
    got = gain.improvement(np.array([-2.0, 0.0, 3.0]))
    wanted = [np.maximum(1 + 0.4 * x + 0.5 * rng.normal(size=200_000) - x, 0).mean() for x in (-2.0, 0.0, 3.0)]
    np.testing.assert_allclose(got, wanted, atol=0.02)
    assert fit_gain([1.0, 2.0, math.nan], [2.0, 3.0, 4.0]) is None


# ------------------------------------------------------------------------------------------------- Pandora's problem


def _calibrated(rng: np.random.Generator, mean: float, sd: float) -> dict[str, list[float]]:
    """Scores of a source that draws all prompts alike."""
    return {str(p): list(mean + sd * rng.normal(size=40)) for p in range(60)}


def test_at_a_price_the_rule_earns_what_the_theory_says():
    """With boxes without end the best that can be earned, score less costs, is the reservation value itself."""
    rng, price, cost = np.random.default_rng(2), 0.05, 2.0
    source = Source(cost, scores=_calibrated(rng, 1.0, 1.5))
    search = Search([source], range(1000), price=price)
    _run(search, lambda t: 1.0 + 1.5 * rng.normal())
    earned = search.in_hand - price * search.spent
    best = reservation(np.array(price * cost), np.array(1.0), np.array(1.5), np.array(1e8))
    assert earned.mean() == pytest.approx(float(best), abs=0.1)
    dearer = Search([source], range(500), price=0.5)
    _run(dearer, lambda t: 1.0 + 1.5 * rng.normal())
    assert dearer.spent.mean() < search.spent.mean() / 2


def test_of_two_sources_the_one_with_the_higher_index_is_opened():
    rng = np.random.default_rng(3)
    steady, wild = _calibrated(rng, 1.0, 0.2), _calibrated(rng, 0.5, 2.0)
    cheap = Search([Source(1.0, scores=steady), Source(1.0, scores=wild)], [0], price=0.01)
    assert cheap.wanted()[0].source == 1  # there is time to wait for a lucky one
    dear = Search([Source(1.0, scores=steady), Source(1.0, scores=wild)], [0], price=2.0)
    assert dear.wanted()[0].source == 0


@pytest.mark.parametrize("budget", [1.0, 3.0, 7.5])
def test_a_budget_is_an_average_that_is_used_and_never_passed(budget):
    rng = np.random.default_rng(4)
    level = 3 * rng.normal(size=40)
    search = Search([Source(1.0)], range(40), budget=budget)
    _run(search, lambda t: level[t.row] + rng.normal())
    assert search.spent.mean() <= budget
    assert search.spent.mean() > budget - 1 / 40 - 1e-9
    assert search.spent.min() >= 1


def test_a_limit_holds_for_every_picture():
    rng = np.random.default_rng(5)
    search = Search([Source(1.0)], range(6), budget=5.0, most=6.0)
    _run(search, lambda t: rng.normal() - 100 * (t.row == 0))
    assert search.spent.max() <= 6


def test_a_lucky_draft_ends_the_search_for_its_picture_and_an_unlucky_one_does_not():
    rng = np.random.default_rng(6)
    search = Search([Source(1.0)], range(30), budget=5.0)
    _run(search, lambda t: 3.0 if t.row < 10 and t.number == 0 else rng.normal())
    assert search.spent[:10].mean() < search.spent[10:].mean() / 2


def test_a_source_that_nobody_knows_is_tried_and_then_judged_by_what_it_did():
    rng = np.random.default_rng(7)
    search = Search([Source(1.0), Source(1.0)], range(20), budget=8.0)
    _run(search, lambda t: rng.normal() + 3.0 * (t.source == 1))
    counts = search.seen.sum(0)
    assert 8 <= counts[0] <= 40 and counts[1] > 2 * counts[0]


def test_a_source_of_finished_pictures_runs_dry():
    search = Search([Source(0.0, drafts=2)], range(3), price=1e-6)
    _run(search, lambda t: float(t.number))
    assert search.seen.tolist() == [[2], [2], [2]]


def test_a_picture_without_a_score_is_tried_again_and_no_score_is_ever_lost():
    search = Search([Source(1.0)], [0, 1], budget=4.0)
    _run(search, lambda t: math.nan if t.number == 0 else float(t.row))
    assert search.in_hand.tolist() == [0.0, 1.0]


def test_nothing_is_wanted_for_an_empty_batch():
    assert Search([Source(1.0)], [], budget=4.0).wanted() == []
    assert Search([Source(1.0)], [], budget=4.0, teacher=Teacher(9.0)).for_teacher() == []


def test_a_budget_below_one_draft_is_refused_in_words():
    with pytest.raises(ValueError, match="doesn't reach for one draft, which takes 2"):
        Search([Source(2.0)], [0], budget=1.0)


def test_pictures_of_one_group_keep_the_best_of_all_their_drafts_each_its_own_where_it_can():
    rng = np.random.default_rng(14)
    search = Search([Source(1.0)], [0, 0, 0, 1], budget=4.0)
    _run(search, lambda t: rng.normal() + 5.0 * (t.row == 1))
    best = sorted((t.score for t in search.tries if t.row < 3), reverse=True)[:3]
    assert sorted(search.in_hand[:3], reverse=True) == best
    assert len({*search.held.tolist()}) == 4
    first = max(range(len(search.tries)), key=lambda i: search.tries[i].score)
    assert search.tries[first].row == 1 and search.held[1] in [i for i, t in enumerate(search.tries) if t.row == 1]


# ------------------------------------------------------------------------------------------------------- the teacher


def _pairs(slope: float, intercept: float, noise: float = 0.1) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(8)
    drafts = rng.normal(size=200)
    return list(drafts), list(intercept + slope * drafts + noise * rng.normal(size=200))


def test_a_teacher_that_is_not_better_than_the_draft_in_hand_is_never_called():
    rng = np.random.default_rng(9)
    search = Search([Source(1.0)], range(16), price=0.05, teacher=Teacher(10.0, fit_gain(*_pairs(0.0, -3.0))))
    _run(search, lambda t: rng.normal())
    assert search.for_teacher() == []


def test_a_teacher_far_better_than_the_student_is_called_after_one_draft():
    rng = np.random.default_rng(10)
    source = Source(1.0, scores=_calibrated(rng, 0.0, 1.0))
    search = Search([source], range(16), price=0.05, teacher=Teacher(10.0, fit_gain(*_pairs(0.0, 9.0))))
    _run(search, lambda t: rng.normal())
    assert search.spent.tolist() == [1.0] * 16
    assert sorted(search.for_teacher()) == list(range(16))


def test_the_teacher_gets_the_weak_ones_that_the_budget_pays_for():
    rng = np.random.default_rng(11)
    search = Search([Source(1.0)], range(20), budget=5.0, teacher=Teacher(10.0, fit_gain(*_pairs(0.0, 0.0))))
    _run(search, lambda t: 0.1 * rng.normal() - 4.0 * (t.row < 6))
    rows = search.for_teacher()
    assert rows and set(rows) <= set(range(6))
    assert search.spent.sum() + 10 * len(rows) <= 100


def test_a_teacher_of_unknown_gain_is_tried_on_the_weakest():
    search = Search([Source(1.0)], range(16), budget=4.0, teacher=Teacher(10.0))
    _run(search, lambda t: float(t.row))
    assert search.for_teacher() == [0, 1]


def test_everyone_gets_a_draft_before_anything_is_kept_for_a_teacher_to_be_learned():
    search = Search([Source(1.0)], range(16), budget=1.0, teacher=Teacher(4.0))
    _run(search, lambda t: float(t.row))
    assert search.held.min() >= 0 and search.for_teacher() == []


def test_a_limit_of_drafts_below_the_teachers_cost_does_not_keep_it_from_the_weakest():
    rng = np.random.default_rng(15)
    search = Search([Source(1.0)], range(16), budget=12.0, most=8.0, teacher=Teacher(40.0))
    _run(search, lambda t: rng.normal() - 9 * (t.row < 2))
    assert search.for_teacher() == sorted([0, 1], key=lambda row: search.in_hand[row]) and search.spent.max() <= 8


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_a_slow_source_that_nobody_knows_takes_half_the_budget_at_most():
    rng = np.random.default_rng(16)
    search = Search([Source(1.0), Source(40.0)], range(40), budget=8.0)
    _run(search, lambda t: rng.normal() - 5 * (t.source == 1))
    assert search.seen[:, 1].sum() == 4
    never = Search([Source(1.0), Source(100.0)], range(4), budget=8.0)
    _run(never, lambda t: rng.normal() - 30)  # nothing is hoped of whom nobody knows, where scores are far from 0, too
    assert never.seen[:, 1].sum() == 0 and never.spent.sum() == 32


def test_drafts_without_a_score_do_not_make_a_source_known():
    rng = np.random.default_rng(17)
    search = Search([Source(1.0), Source(1.0)], range(8), budget=9.0)
    _run(search, lambda t: math.nan if t.source == 1 and t.number == 0 and t.row % 2 else rng.normal() - 9 * (t.source == 1))
    assert sum(t.source == 1 and math.isfinite(t.score) for t in search.tries) == 8


def test_a_draft_that_takes_no_evaluation_is_refused_and_not_drawn_forever():
    with pytest.raises(ValueError, match="takes no evaluation could be drawn forever"):
        Search([Source(0.0)], [0], budget=1.0)


@pytest.mark.parametrize("score", [math.nan, math.inf, 0.0, 30.0, 1e30])
@pytest.mark.parametrize("spent", [{"budget": 4.0}, {"price": 0.01, "most": 6.0}])
@pytest.mark.parametrize("comparable", [True, False])
def test_scores_that_say_nothing_end_the_search_without_a_warning(score, spent, comparable):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = Search([Source(1.0), Source(2.0)], range(24), comparable=comparable, **spent)
        _run(search, lambda t: score)
    assert search.held.min() >= 0 and search.spent.max() <= 96


def test_scores_of_each_prompts_own_level_move_all_sources_by_the_same_score():
    prior = Prior(np.zeros(2), np.array([1.0, 4.0]), np.eye(2)).apart()
    after = predictive(prior, np.array([[1.0, 0.0]]), np.array([[300.0, 0.0]]), np.zeros((1, 2)))
    assert after.location[0] == pytest.approx([300, 300], abs=0.5)


# ---------------------------------------------------------------------------------------------------- choose together


def _distances(rng: np.random.Generator, count: int) -> np.ndarray:
    features = rng.normal(size=(count, 5))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return 1 - features @ features.T


def _value(scores, distances, chosen, variety) -> float:
    return sum(scores[i] for i in chosen) + variety * sum(distances[a, b] for a, b in combinations(chosen, 2))


@pytest.mark.parametrize("variety", [0.0, 0.5, 10.0])
def test_a_few_pictures_are_chosen_exactly(variety):
    rng = np.random.default_rng(12)
    scores, distances = list(rng.normal(size=9)), _distances(rng, 9)
    chosen = choose_together(scores, distances, 4, variety)
    best = max(_value(scores, distances, c, variety) for c in combinations(range(9), 4))
    assert _value(scores, distances, chosen, variety) == pytest.approx(best)


def test_of_many_the_choice_is_one_that_no_swap_betters():
    rng = np.random.default_rng(13)
    scores, distances = list(rng.normal(size=60)), _distances(rng, 60)
    chosen = choose_together(scores, distances, 12, 0.7)
    value = _value(scores, distances, chosen, 0.7)
    swaps = (
        _value(scores, distances, [*(c for c in chosen if c != out), new], 0.7)
        for out in chosen for new in range(60) if new not in chosen
    )  # fmt: skip
    assert len(set(chosen)) == 12 and max(swaps) <= value + 1e-9


def test_variety_gives_up_a_double():
    distances = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert choose_together([3.0, 2.9, 2.0], distances, 2, 0.0) == [0, 1]
    assert choose_together([3.0, 2.9, 2.0], distances, 2, 1.0) == [0, 2]


def test_a_picture_without_a_score_is_chosen_only_where_nothing_else_is_left():
    distances = np.ones((3, 3)) - np.eye(3)
    assert choose_together([math.nan, 1.0, 2.0], distances, 2, 5.0) == [1, 2]
    assert choose_together([math.nan, 1.0, math.nan], distances, 2, 5.0) == [0, 1]


def test_the_level_of_a_newcomer_is_where_a_swap_is_worth_nothing() -> None:
    """With all distances alike the level is the score; one chosen for its distance is not weak, whatever it scores."""
    alike = np.ones((4, 4)) - np.eye(4)
    assert newcomers_levels([3.0, 2.0, 1.0, 0.0], alike, [0, 1], 10.0) == pytest.approx([3.0, 2.0])
    apart = np.array([[0, 0.1, 1.0], [0.1, 0, 1.0], [1.0, 1.0, 0]])
    levels = newcomers_levels([3.0, 2.9, 2.0], apart, [0, 2], 2.0)
    assert levels == pytest.approx([3.0 + 2 * (1 - 0.7), 2.0 + 2 * (1 - 0.7)])


def test_a_source_that_the_budget_cannot_make_familiar_is_not_taken_for_one_that_never_varies() -> None:
    prior = fit_prior([{"a": [1.0, 3.0], "b": [0.0, 2.0]}, {"a": [5.0]}, {}])
    assert prior.within[1] == pytest.approx(prior.within[0]) and prior.known.tolist() == [True, True, False]
    rng = np.random.default_rng(15)
    search = Search([Source(1.0), Source(30.0)], range(4), budget=5.0)
    _run(search, lambda t: rng.normal())
    assert search.seen.sum(0).tolist() == [20, 0]
    assert np.isneginf(search.indices()[:, 1]).all()
