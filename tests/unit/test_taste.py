"""A taste from clicks: what is learned, what is held out, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from comfyui_apprentice.training.taste import in_words, learn, wilson

TRUE = np.array([2.0, -1.0, 0.0, 0.0])


Clicked = tuple[np.ndarray, list[tuple[int, int]], list[str]]


def clicks(count: int, temperature: float = 1.0, utility: Any = None, seed: int = 0, more: int = 0) -> Clicked:
    """Pictures in pairs of one prompt each, clicked by an artist of known taste (Bradley-Terry at a temperature)."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(2 * count, 4 + more))
    values = features[:, :4] @ TRUE if utility is None else utility(features)
    first = rng.random(count) < 1 / (1 + np.exp(-(values[0::2] - values[1::2]) / temperature))
    pairs = [(2 * i, 2 * i + 1) if takes else (2 * i + 1, 2 * i) for i, takes in enumerate(first)]
    return features, pairs, [f"prompt {i // 2}" for i in range(2 * count)]


def test_the_artists_weights_come_back_as_clicks_grow() -> None:
    """Maximum likelihood is consistent: with many clicks the weights themselves, not just their direction."""
    errors = []
    for count in (40, 400, 4000):
        features, pairs, prompts = clicks(count)
        errors.append(float(np.abs(learn(features, None, pairs, prompts).weight - TRUE).max()))
    assert errors[2] < 0.15 and errors[2] < errors[0]


def test_held_out_accuracy_is_what_new_clicks_show() -> None:
    features, pairs, prompts = clicks(300, temperature=2.0)
    taste = learn(features, None, pairs, prompts)
    new, fresh, _ = clicks(4000, temperature=2.0, seed=1)
    better, worse = (new[list(side)] for side in zip(*fresh, strict=True))
    actual = float(((better - worse) @ taste.weight > 0).mean())
    assert taste.lo < actual < taste.hi and 0.6 < actual < 0.95


def test_clicks_at_random_are_no_better_than_a_coin_and_said_to_be_so() -> None:
    features, pairs, prompts = clicks(60, utility=lambda x: np.zeros(len(x)))
    taste = learn(features, None, pairs, prompts)
    assert taste.lo < 0.5 < taste.hi
    assert "not clearly better than a coin" in in_words(taste)


def test_few_clicks_leave_the_say_to_a_published_judge_that_is_right_and_many_take_it_from_one_that_is_wrong() -> None:
    features, pairs, prompts = clicks(20, seed=3, more=96)
    right = learn(features, features[:, :4] @ TRUE, pairs, prompts)
    assert right.shares[1] > 0.5 and right.accuracy > 0.8
    features, pairs, prompts = clicks(400, seed=3)
    wrong = learn(features, -(features @ TRUE), pairs, prompts)
    assert wrong.published == 0 and wrong.shares == (1.0, 0.0) and wrong.published_accuracy < 0.3 < wrong.accuracy


def test_the_mix_can_be_set_by_hand() -> None:
    features, pairs, prompts = clicks(100)
    noise = np.random.default_rng(5).normal(size=len(features))
    for mix in (0.0, 0.5, 1.0):
        taste = learn(features, noise + features @ TRUE, pairs, prompts, mix=mix)
        assert taste.shares[1] == pytest.approx(mix, abs=0.15)


def test_the_threshold_is_where_the_artist_keeps_the_draft_as_often_as_not() -> None:
    """Drafts are kept with probability sigma(score - 1), whatever the teacher's picture looks like."""
    rng = np.random.default_rng(0)
    features, _, prompts = clicks(600)
    features[1::2] = 0.0  # the teacher's pictures: all alike
    score = features[0::2] @ TRUE
    kept = rng.random(600) < 1 / (1 + np.exp(-(score - 1)))
    pairs = [(2 * i, 2 * i + 1) if keep else (2 * i + 1, 2 * i) for i, keep in enumerate(kept)]
    taste = learn(features, None, pairs, prompts, [bool(i % 2) for i in range(1200)])
    draft = features[0::2] @ taste.weight
    at = float(kept[np.argsort(np.abs(draft - taste.threshold))[:80]].mean())
    assert 0.35 < at < 0.65, "near the threshold about half are kept"
    assert kept[draft < taste.threshold - 1].mean() < 0.4 < 0.6 < kept[draft > taste.threshold + 1].mean()


def test_there_is_no_threshold_without_both_answers() -> None:
    features, pairs, prompts = clicks(50)
    assert math.isnan(learn(features, None, pairs, prompts).threshold)
    always = [(2 * i + 1, 2 * i) for i in range(50)]
    taste = learn(features, None, always, prompts, [bool(i % 2) for i in range(100)])
    assert math.isnan(taste.threshold) and "no threshold of yours yet" in in_words(taste)


@pytest.mark.parametrize("count", [0, 14])
def test_too_few_clicks_are_refused(count: int) -> None:
    features, pairs, prompts = clicks(max(count, 1))
    with pytest.raises(ValueError, match=f"There are {count} clicks, and a taste takes at least 15"):
        learn(features, None, pairs[:count], prompts)


def test_clicks_on_one_prompt_are_held_out_by_what_is_compared() -> None:
    features, pairs, _ = clicks(40)
    assert learn(features, None, pairs, ["one"] * 80).accuracy > 0.6
    chain = [(i, i + 1) for i in range(30)]
    with pytest.raises(ValueError, match="all compared with each other"):
        learn(features, None, chain, ["one"] * 80)


def test_wilsons_interval_is_the_published_one() -> None:
    """Newcombe (1998), Table I: 81 of 263, and 0 of 20, without continuity correction."""
    assert wilson(81 / 263, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert wilson(0.0, 20) == (pytest.approx(0.0, abs=1e-9), pytest.approx(0.1611, abs=1e-4))


def test_clicks_on_pictures_without_a_score_are_left_out_and_too_many_of_them_are_named() -> None:
    features, pairs, prompts = clicks(60)
    published = features @ TRUE
    published[:4] = np.nan
    taste = learn(features, published, pairs, prompts)
    assert taste.clicks == 58 and math.isfinite(taste.mean) and math.isfinite(taste.published) and np.isfinite(taste.weight).all()
    with pytest.raises(ValueError, match="gives no score to 120 of the 120 clicked pictures"):
        learn(features, np.full(120, np.nan), pairs, prompts)
