"""DiffusionNFT: the official loss, its closed forms, and the law that a run comes to rest at."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import control_toy as toy
from comfyui_apprentice.training import diffusion_nft
from comfyui_apprentice.training.baseline import Baseline, baseline
from comfyui_apprentice.training.control import Process
from comfyui_apprentice.training.diffusion_nft import CLIP, ForwardProcess, advantages, nft_loss, scored
from comfyui_apprentice.training.fdivergence import solve_dual
from comfyui_apprentice.training.finetune import finetune
from comfyui_apprentice.training.finetune_task import Settings, Task
from comfyui_apprentice.training.loop import Watch
from comfyui_apprentice.training.processes import Processes
from comfyui_apprentice.training.run_folder import RunFolder
from torch import Tensor
from toy_task import right, task

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "nft" / "loss.json").read_text())


def recorded(name: str) -> Tensor:
    return torch.tensor(GOLDEN[name], dtype=torch.float64).view(GOLDEN["shape"])


@pytest.mark.parametrize("run", GOLDEN["runs"], ids=["published", "with the KL term"])
def test_the_loss_is_the_official_one_whose_velocities_are_ours_denoisers(run: dict[str, float]) -> None:
    x0, noise, t = recorded("x0"), recorded("noise"), torch.tensor(GOLDEN["t"], dtype=torch.float64)
    times = t.view(-1, 1, 1, 1)
    x, forward = (1 - times) * x0 + times * noise, recorded("forward").requires_grad_()
    after, before, base = (x - times * v for v in (forward, recorded("old"), recorded("ref")))
    optimality = (1 + (torch.tensor(GOLDEN["advantages"]).double() / CLIP).clamp(-1, 1)) / 2
    # Their KL term is of velocities: ours of denoisers, over t^2.
    losses = nft_loss(after, before, base, x0, optimality, run["kl_weight"] / t**2, adaptive=True, beta=run["beta"], clip=CLIP)
    losses.mean().backward()
    assert losses.mean().item() == pytest.approx(run["loss"], rel=1e-9)
    torch.testing.assert_close(forward.grad.flatten(), torch.tensor(run["gradient"]).double(), rtol=1e-7, atol=1e-9)


def test_its_optimum_is_the_papers_improvement() -> None:
    """D_old + (2 / beta) Cov(r, x0 | x), for x0 of N(0, s^2), r a sigmoid of it, at one x."""
    s, sigma, x, beta = 0.8, 0.6, 0.5, 0.7
    mean, deviation = x * s**2 / (s**2 + sigma**2), s * sigma / (s**2 + sigma**2) ** 0.5
    x0 = mean + deviation * torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    r, old, ones = torch.sigmoid(2 * x0), torch.full((20_000, 1), mean, dtype=torch.float64), torch.ones(20_000)
    after = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
    losses = nft_loss(after.expand(20_000, 1), old, old, x0[:, None], r, 0 * ones, beta=beta)
    (slope,) = torch.autograd.grad(losses.mean(), after, create_graph=True)
    (bend,) = torch.autograd.grad(slope, after)
    found = after.item() - slope.item() / bend.item()  # a parabola's lowest point
    covariance = float(((r - r.mean()) * (x0 - mean)).mean())
    assert found == pytest.approx(mean + 2 / beta * covariance, abs=1e-9)


def _gradient_at_rest(x0: Tensor, q: Tensor, base: Tensor, rewards: Tensor, price: Tensor, x: float, sigma: float) -> Tensor:
    """The loss's mean gradient by D at (x, sigma), where D is q's own denoiser; all laws on the grid x0."""
    likelihood = torch.exp(-((x - x0) ** 2) / (2 * sigma**2))
    here = q * likelihood / (q * likelihood).sum()
    before = (base * likelihood * x0).sum() / (base * likelihood).sum()
    after = (here @ x0).clone().requires_grad_()
    advantage, many = rewards - q @ rewards, (len(x0), 1)
    optimality = (1 + advantage / CLIP) / 2
    losses = nft_loss(after.expand(many), after.detach().expand(many), before.expand(many), x0[:, None], optimality, price)
    (gradient,) = torch.autograd.grad(here @ losses, after)
    return gradient


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
def test_its_rest_is_the_forward_kl_law_at_every_level(sigma: float) -> None:
    """Eq. 4 on the toy's mixture, alpha 0.5, where the tilt is far from small; a fixed price misses it."""
    alpha, x0 = 0.5, torch.linspace(-6, 6, 6001, dtype=torch.float64)
    variance = toy.STDS.double() ** 2
    p = (toy.WEIGHTS.double() / variance.sqrt() * torch.exp(-((x0[:, None] - toy.MEANS) ** 2) / (2 * variance))).sum(1)
    p, rewards = p / p.sum(), toy.reward(x0[:, None])
    q = p * solve_dual(rewards, alpha, "forward_kl", p).weights
    assert float((q * (x0 > 0)).sum()) > 0.6, "from 0.3"
    advantage = rewards - q @ rewards
    exact, fixed, none = (
        max(abs(float(_gradient_at_rest(x0, q, p, rewards, price, x, sigma))) for x in (-3.0, 0.0, 2.0))
        for price in (alpha - advantage, torch.full_like(x0, alpha), 0 * x0)
    )
    assert exact < 1e-9 and min(fixed, none) > 1e-3
    assert (alpha - advantage).min() > 0, "no picture pays less than nothing"


def test_one_price_for_all_rests_at_the_exact_mean_shift_of_a_gaussian() -> None:
    """p = N(0, s^2), R = g x0: q = N(s^2 g / alpha, s^2) is p exp(R / alpha), for any alpha."""
    s, g, alpha = 0.7, 1.3, 0.4
    x0 = torch.linspace(-8, 10, 18_001, dtype=torch.float64)
    p, q = (torch.exp(-((x0 - mean) ** 2) / (2 * s**2)) for mean in (0.0, s**2 * g / alpha))
    p, q = p / p.sum(), q / q.sum()
    for x, sigma in ((0.0, 0.3), (1.5, 1.0), (-2.0, 20.0)):
        gradient = _gradient_at_rest(x0, q, p, g * x0, torch.full_like(x0, alpha), x, sigma)
        assert abs(float(gradient)) < 1e-6
        away = _gradient_at_rest(x0, p, p, g * x0, torch.full_like(x0, alpha), x, sigma)
        assert float(away) < -1e-2, "and the base is not at rest"


def _one_step(network: torch.nn.Module, base: Any, **changes: Any) -> ForwardProcess:
    """Updates of a one-step student in two values, by the score 1.5 x - 0.5 y."""
    direction = torch.tensor([1.5, -0.5])
    made = Task(
        lambda x, _time, _rows: base(x), lambda x, _time, _rows: network(x), network, lambda x, _rows: x @ direction,
        lambda rows: rows, 1, Process.edm([2.0, 0.0]), (2,), differentiable=False,
    )  # fmt: skip
    settings = Settings(algorithm="diffusion_nft", batch=40_000, base_draws=8, **changes)
    base_of = Baseline(torch.tensor([[0.0, 10.0]]), settings.value, [], "forward_kl")  # far apart, so that nothing is clipped
    return ForwardProcess(made, settings, base_of, Processes(), Watch())


@pytest.mark.parametrize("near", [0.2, 0.9])
def test_a_one_step_student_rests_at_the_exact_mean_shift_whatever_its_neighbours_are(
    near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G(z) = s z + m: the law N(0, s^2) tilted by exp(g x / alpha) is N(s^2 g / alpha, s^2)."""
    monkeypatch.setattr(diffusion_nft, "NEAR", near)
    s, alpha, shift = 0.6, 2.0, torch.nn.Parameter(torch.zeros(2))
    network = torch.nn.Module()
    network.shift = shift
    network.forward = lambda x: x / 2.0 * s + shift  # type: ignore[method-assign]
    exact = s**2 * torch.tensor([1.5, -0.5]) / alpha
    gradients = []
    for at in (torch.zeros(2), exact):
        shift.data, shift.grad = at.clone(), None
        _one_step(network, lambda x: x / 2.0 * s, value=alpha).step(0, torch.Generator().manual_seed(3))
        gradients.append(shift.grad)
    assert torch.nn.functional.cosine_similarity(-gradients[0], exact, 0) > 0.99
    assert gradients[1].norm() < 0.03 * gradients[0].norm()


def test_advantages_are_told_among_others_of_the_prompt_and_sum_to_nothing() -> None:
    told = advantages(torch.tensor([1.0, 2.0, 3.0, 6.0, 10.0, 14.0]), 4)
    assert told.tolist() == pytest.approx([1 - 11 / 3, 2 - 10 / 3, 0.0, 4.0, -4.0, 4.0])
    with pytest.raises(ValueError, match="compares pictures of one prompt"):
        advantages(torch.zeros(5), 4)


NFT = Settings(
    algorithm="diffusion_nft", value=0.5, updates=60, batch=48, count=6, learning_rate=2e-2, base_draws=8, ema_half_life=500
)


def test_an_oracle_without_gradient_teaches_and_the_run_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = task(differentiable=False)
    before = right(whole)
    finetune(whole, NFT, RunFolder(tmp_path / "whole"), save_every=1000)
    assert before < 0.35 and 0.5 < right(whole) < 0.9
    cut, steps = task(differentiable=False), iter(range(10_000))
    with pytest.raises(KeyboardInterrupt):
        finetune(cut, NFT, RunFolder(tmp_path / "cut"), watch=Watch(interrupted=lambda: next(steps) == 40), save_every=1000)
    resumed = task(False, seed=5)
    finetune(resumed, NFT, RunFolder(tmp_path / "cut"), save_every=1000)
    assert all(torch.equal(a, b) for a, b in zip(whole.learned.parameters(), resumed.learned.parameters(), strict=True))


def test_how_many_are_in_memory_at_a_time_changes_nothing(tmp_path: Path) -> None:
    weights = []
    for part in (0, 5):
        settings = replace(NFT, updates=3, batch=12, count=4, part=part)
        weights.append(finetune(task(), settings, RunFolder(tmp_path / str(part)))[0].shadow)
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-4) for key in weights[0])


def test_targets_are_told_in_its_own_price(tmp_path: Path) -> None:
    settings = replace(NFT, updates=1, strength="target reward gain", value=0.1, base_draws=64)
    _ema, base = finetune(task(False), settings, RunFolder(tmp_path))
    assert base.name == "forward_kl"
    assert base.summary()["target_reward"] == pytest.approx(float(base.rewards.mean()) + 0.1, abs=1e-5)
    with pytest.raises(ValueError, match="its price is forward_kl"):
        finetune(task(False), replace(settings, divergence="js2"), RunFolder(tmp_path / "other"))


def test_few_base_pictures_without_an_optimum_of_their_own_hold_nothing_up(tmp_path: Path) -> None:
    """Of eight pictures the best one may be above alpha from all others: no law of theirs is optimal, but the model's is."""
    settings = replace(NFT, updates=1, value=1e-3)
    with pytest.raises(ValueError, match="No density is optimal for forward_kl"):
        finetune(task(), replace(settings, algorithm="adjoint_matching", divergence="forward_kl"), RunFolder(tmp_path / "other"))
    _ema, base = finetune(task(False), settings, RunFolder(tmp_path / "nft"))
    assert base.name == "kl" and base.alpha == 1e-3
    asked = replace(settings, strength="target KL", value=1.0)
    assert baseline(base.rewards, asked).summary()["target_kl"] == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(ValueError, match=r"can.t be seen on 8 samples"):
        baseline(base.rewards, replace(asked, value=99.0))


def test_a_picture_without_a_score_has_its_group_s_and_none_at_all_is_told() -> None:
    nan = math.nan
    assert scored(torch.tensor([1.0, nan, 3.0, nan, nan, 5.0]), 3).tolist() == [1, 2, 3, 5, 5, 5]
    assert scored(torch.tensor([nan, nan, 4.0, 6.0]), 2).tolist() == [5, 5, 4, 6]
    assert float(advantages(scored(torch.tensor([1.0, nan, 3.0]), 3), 3)[1]) == 0
    with pytest.raises(FloatingPointError, match="scores none of the pictures"):
        scored(torch.tensor([nan, math.inf]), 2)
