"""Fine-tuning runs: resumed to the bit, strengths by targets, lambdas for each prompt, oracles without gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.training.baseline import Baseline, base_rewards, baseline
from comfyui_apprentice.training.fdivergence import solve_dual
from comfyui_apprentice.training.finetune import card, check, finetune
from comfyui_apprentice.training.finetune_task import Settings
from comfyui_apprentice.training.loop import Watch
from comfyui_apprentice.training.run_folder import RunFolder
from toy_task import right, task

QUICK: dict[str, Any] = {
    "value": 0.5, "updates": 12, "batch": 32, "count": 6, "last": 2, "learning_rate": 1e-2, "base_draws": 64, "pool": 64,
    "rounds": 3,
}  # fmt: skip


@pytest.mark.parametrize("algorithm", ["adjoint_matching", "path_kl", "weighted_regression"])
def test_every_algorithm_tilts_towards_the_reward_and_resumes_to_the_bit(tmp_path: Path, algorithm: str) -> None:
    updates = {"adjoint_matching": 60, "path_kl": 24, "weighted_regression": 400}[algorithm]
    settings = Settings(**{**QUICK, "algorithm": algorithm, "updates": updates, "pool": 500})
    whole = task()
    before = right(whole)
    ema, _base = finetune(whole, settings, RunFolder(tmp_path / "whole"), save_every=1000)
    assert right(whole) > before + 0.05
    cut, steps = task(), iter(range(10_000))
    with pytest.raises(KeyboardInterrupt):
        finetune(cut, settings, RunFolder(tmp_path / "cut"), watch=Watch(interrupted=lambda: next(steps) == 40), save_every=1000)
    assert (tmp_path / "cut" / "checkpoint.pt").exists()
    resumed = task(seed=5)
    again, _base = finetune(resumed, settings, RunFolder(tmp_path / "cut"), save_every=1000)
    assert all(torch.equal(ema.shadow[key], again.shadow[key]) for key in ema.shadow)
    assert all(torch.equal(a, b) for a, b in zip(whole.learned.parameters(), resumed.learned.parameters(), strict=True))


@pytest.mark.parametrize("algorithm", ["adjoint_matching", "path_kl", "weighted_regression"])
def test_how_many_are_in_memory_at_a_time_changes_nothing(tmp_path: Path, algorithm: str) -> None:
    weights = []
    for part in (0, 5):
        settings = Settings(**{**QUICK, "algorithm": algorithm, "updates": 3, "part": part})
        weights.append(finetune(task(), settings, RunFolder(tmp_path / str(part)))[0].shadow)
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-4) for key in weights[0])


def test_a_batch_that_has_nothing_to_compare_is_refused_before_the_base_draws() -> None:
    for batch in (1, 5):
        with pytest.raises(ValueError, match="compares pictures of one prompt"):
            check(Settings(algorithm="diffusion_nft", batch=batch), 4, True)
        check(Settings(algorithm="diffusion_nft", batch=batch), 1, True)
    check(Settings(algorithm="diffusion_nft", batch=6), 4, True)


def test_an_oracle_without_gradient_is_sent_to_weighted_regression(tmp_path: Path) -> None:
    made = task(differentiable=False)
    with pytest.raises(ValueError, match="choose the algorithm 'diffusion_nft' or 'weighted_regression'"):
        finetune(made, Settings(**QUICK), RunFolder(tmp_path))
    finetune(made, Settings(**{**QUICK, "algorithm": "weighted_regression"}), RunFolder(tmp_path))
    assert len(list(tmp_path.glob("pool_*.safetensors"))) == 3


def test_base_rewards_are_drawn_once_and_survive_an_interruption(tmp_path: Path) -> None:
    made, asked, settings = task(), iter([False, True]), Settings(**{**QUICK, "strength": "target KL"})
    with pytest.raises(KeyboardInterrupt):
        base_rewards(made, settings, tmp_path / "r.json", lambda: next(asked))
    first = base_rewards(made, settings, tmp_path / "r.json", lambda: False)
    assert first.shape == (2, 64)
    fresh = base_rewards(replace(task(), drawn_at_once=7), settings, tmp_path / "fresh.json", lambda: False)
    torch.testing.assert_close(first, fresh)
    assert base_rewards(task(), Settings(**QUICK), tmp_path / "few.json", lambda: False).shape == (2, 8)


def test_base_pictures_are_drawn_in_batches_and_told_of_however_few_are_learned_from(tmp_path: Path) -> None:
    made, settings = task(), Settings(**{**QUICK, "strength": "target KL", "part": 1})
    steps, told, sizes = made.process.steps, [], []
    draw = replace(made, base=lambda x, *more: sizes.append(len(x)) or made.base(x, *more))
    base_rewards(draw, settings, tmp_path / "r.json", lambda: False, lambda *now: told.append((*now[:2], now[2].shape)))
    assert sizes == [32] * (4 * steps)  # two prompts, two batches each
    assert told[0] == (32, 128 * steps, (32, 1)) and told[-1][:2] == (128 * steps, 128 * steps)
    taken = []
    base_rewards(made, settings, tmp_path / "r.json", lambda: False, lambda *now: taken.append(now))
    assert taken == []


def test_an_oracle_without_scores_is_told_before_anything_is_learned() -> None:
    with pytest.raises(ValueError, match="no score for 1 of 8 pictures"):
        baseline(torch.tensor([[1.0, math.nan, 2, 3], [1, 2, 3, 4]]), Settings())


@pytest.mark.parametrize("name", ["kl", "half_chi2", "js2"])
def test_the_strength_follows_from_a_target(name: str) -> None:
    rewards = torch.rand(4, 400, generator=torch.Generator().manual_seed(0)) + torch.arange(4)[:, None]
    for strength, value, told in (("target KL", 0.1, "target_kl"), ("target reward gain", 0.1, "target_reward")):
        base = baseline(rewards, Settings(strength=strength, value=value, divergence=name))
        wanted = value if told == "target_kl" else float(rewards.mean()) + value
        assert base.summary()[told] == pytest.approx(wanted, abs=1e-5)


def test_every_prompt_has_its_own_lambda_and_rounds_multiply_to_the_weights() -> None:
    rewards = torch.rand(3, 200, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1.0], [2.0], [0.5]])
    base = baseline(rewards, Settings(value=0.6, divergence="half_chi2_kl"))
    rows = torch.arange(3).repeat_interleave(200)
    whole = base.weights(rewards.flatten(), rows, 1).view(3, 200)
    for prompt in range(3):
        expected = solve_dual(rewards[prompt], 0.6, "half_chi2_kl").weights.float()
        torch.testing.assert_close(whole[prompt], expected, atol=1e-5, rtol=1e-4)
    third = base.weights(rewards.flatten(), rows, 3).view(3, 200)
    cubed = third**3 / (third**3).mean(1, keepdim=True)
    torch.testing.assert_close(cubed, whole, atol=1e-4, rtol=1e-3)
    surrogate = base.surrogate(rewards.flatten(), rows).view(3, 200)
    torch.testing.assert_close((surrogate / 0.6).exp(), whole, atol=1e-5, rtol=1e-4)


def test_kl_leaves_the_reward_as_it_is_and_the_card_tells_all() -> None:
    rewards = torch.rand(2, 64, generator=torch.Generator().manual_seed(2))
    base: Baseline = baseline(rewards, Settings(value=0.5))
    values = torch.rand(4)
    assert base.surrogate(values, torch.tensor([0, 1, 0, 1])) is values
    facts = card(Settings(value=0.5), base, "the teacher", "an oracle")
    assert facts["algorithm"] == "adjoint_matching" and facts["oracle"] == "an oracle" and float(facts["alpha"]) == 0.5
    assert math.isfinite(float(facts["ess"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm": "magic"}, "There is no algorithm 'magic'"), ({"strength": "force"}, "There is no strength 'force'"),
        ({"value": 0.0}, "must be above 0"), ({"divergence": "tv"}, "There is no divergence 'tv'"),
        ({"algorithm": "preview", "divergence": "js2"}, "has a price of its own"),
        ({"algorithm": "direct"}, "is for one-step students"),
        ({"algorithm": "direct", "strength": "target KL"}, "only 'alpha' can be its strength"),
    ],
)  # fmt: skip
def test_wrong_settings_are_told_in_words(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        finetune(task(), Settings(**{**QUICK, **changes}), RunFolder(tmp_path))
