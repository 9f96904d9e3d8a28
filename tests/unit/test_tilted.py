"""SiD towards the tilted teacher: closed forms of a Gaussian, what NaN and parts of a batch can't change."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_apprentice.training.sid import EdmLevels, TimestepLevels, add_noise
from comfyui_apprentice.training.sid_iteration import Draws, Objective, Players, generator_objective
from comfyui_apprentice.training.tilted import LEAST, Levels, Tilt, kl_weight, noise_to_picture
from comfyui_apprentice.training.variety import ANCHOR, CONSISTENCY, Variety, karras_path, variety_loss, variety_of
from scipy.special import ndtri
from torch import Tensor

Reward = Callable[[Tensor, Any], Tensor]
EVEN = TimestepLevels(torch.linspace(0.001, 0.999, 1000), 1, 1000)


def flow(images: Tensor, time: Tensor, noise: Tensor) -> Tensor:
    return (1 - time) * images + time * noise


def gaussian(mean: Tensor, deviation: Tensor) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """The exact denoiser of N(mean, deviation^2)."""
    return lambda x, sigma, _labels: (deviation**2 * x + sigma**2 * mean) / (deviation**2 + sigma**2)


def learned(
    reward: Reward, price: float, alpha: float, tilted: bool = True, variety: Variety | None = None
) -> tuple[float, float]:
    """Mean and deviation that a generator mean + deviation z comes to, from the teacher N(0, 1), its fake score always exact."""
    mean, log = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    optimiser = torch.optim.Adam([mean, log], lr=0.05)
    points = torch.quasirandom.SobolEngine(3, scramble=True, seed=1)
    for step in range(250):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 250)
        u = points.draw(2048, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        z, noise = (torch.from_numpy(ndtri(u[:, i].numpy())).float().view(-1, 1, 1, 1) for i in (0, 1))
        fake = gaussian(mean.detach(), log.detach().exp())
        players = Players(
            gaussian(torch.zeros(()), torch.ones(())), fake, lambda x, sigma, _labels: mean + log.exp() * x / sigma, [], []
        )
        objective = Objective(alpha, generator_scale=1.0, tilt=Tilt(reward, price) if tilted else None, variety=variety)
        draws = Draws(z, noise, u[:, 2].float().view(-1, 1, 1, 1))
        optimiser.zero_grad()
        generator_objective(players, objective, draws).total.div(len(z)).backward()
        optimiser.step()
    return float(mean.detach()), float(log.detach().exp())


def rewards(linear: float, quadratic: float) -> Reward:
    return lambda x, _labels: linear * x.flatten(1).sum(1) - quadratic * x.flatten(1).square().sum(1) / 2


@pytest.mark.parametrize(("linear", "quadratic", "price"), [(1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 0.25)])
def test_a_gaussian_generator_reaches_the_tilted_law(linear: float, quadratic: float, price: float) -> None:
    """N(0, 1) exp(r / price) is N(linear / price / precision, 1 / precision), precision = 1 + quadratic / price."""
    precision = 1 + quadratic / price
    mean, deviation = learned(rewards(linear, quadratic), price, alpha=0.5)
    assert mean == pytest.approx(linear / price / precision, abs=0.03)
    assert deviation == pytest.approx(precision**-0.5, abs=0.02)


def test_at_alpha_one_a_shift_is_exact_and_a_narrowing_is_so_to_first_order() -> None:
    mean, deviation = learned(rewards(1.0, 0.0), 1.0, alpha=1.0)
    assert mean == pytest.approx(1, abs=0.03) and deviation == pytest.approx(1, abs=0.02)
    assert learned(rewards(0.0, 1.0), 1.0, alpha=1.0)[1] == pytest.approx(0.738, abs=0.02)  # exact: 0.707
    assert learned(rewards(0.0, 0.1), 1.0, alpha=1.0)[1] == pytest.approx(1.1**-0.5, abs=0.01)


@pytest.mark.parametrize(("levels", "noising"), [(EdmLevels(tmax=1000), add_noise), (EVEN, flow)])
def test_weighed_so_the_fisher_divergences_of_all_levels_are_the_kl(levels: Levels, noising: Any) -> None:
    """N(0, v) and N(m, v): KL = m^2 / (2 v), and |D_p - D_q| = m s^2 / (v + s^2)."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    s = noise_to_picture(noising, levels.of_generator(u))
    for m, v in ((0.7, 1.0), (1.5, 4.0)):
        twice = float((kl_weight(levels, noising, u) * (m * s**2 / (v + s**2)) ** 2).mean())
        assert twice == pytest.approx(m**2 / v, rel=0.015)


def test_below_the_least_noise_weights_grow_no_more() -> None:
    u = torch.tensor([0.0, 0.05, 0.1])
    sigma = EdmLevels().of_generator(u)
    assert float(sigma.max()) < LEAST
    slopes = kl_weight(EdmLevels(), add_noise, u) * LEAST**3 / 2
    assert float(slopes.max()) < 1 and float(slopes[2]) == pytest.approx(7 * float(sigma[2]) ** (6 / 7) * 1.4584 * 0.8, rel=0.05)


def pieces(seed: int = 0, batch: int = 6) -> tuple[Players, Draws, Tensor]:
    """Players whose generator is z times a learned number a pixel."""
    rng = torch.Generator().manual_seed(seed)
    learned = torch.ones(1, 2, 2, 2, requires_grad=True)
    players = Players(
        gaussian(torch.zeros(()), torch.ones(())), gaussian(torch.tensor(0.3), torch.tensor(0.8)),
        lambda x, sigma, _labels: learned * x / sigma, [], [learned],
    )  # fmt: skip
    z, noise = (torch.randn(batch, 2, 2, 2, generator=rng) for _ in range(2))
    return players, Draws(z, noise, torch.rand(batch, 1, 1, 1, generator=rng), torch.arange(batch)), learned


def gradient_of(objective: Objective, part: int, draws: Draws, players: Players, learned: Tensor) -> tuple[Tensor, int]:
    learned.grad, dropped = None, 0
    for rows in draws.split(part):
        loss = generator_objective(players, objective, rows)
        dropped += loss.dropped
        if loss.dropped < len(rows):
            (loss.total / len(draws)).backward()
    assert learned.grad is not None
    return learned.grad.clone(), dropped


def test_the_price_scales_the_reward_alone_and_labels_reach_it() -> None:
    players, draws, learned = pieces()
    seen: list[Tensor] = []

    def reward(images: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return images.flatten(1).sum(1) * (labels + 1)

    objective = Objective(generator_scale=2.0, tilt=Tilt(reward, 1.0))
    at = [gradient_of(replace(objective, tilt=Tilt(reward, price)), 6, draws, players, learned)[0] for price in (1.0, 0.5, 1e9)]
    assert torch.equal(seen[0], torch.arange(6))
    expected = -2.0 * (draws.z * (draws.labels + 1).view(-1, 1, 1, 1)).sum(0) / 6  # type: ignore[operator]
    assert torch.allclose(at[0] - at[2], expected[None], atol=1e-4)
    assert torch.allclose(at[1] - at[2], 2 * expected[None], atol=1e-4)


def test_parts_of_a_batch_give_the_whole_s_gradient_and_a_nan_is_dropped() -> None:
    players, draws, learned = pieces()

    def reward(images: Tensor, labels: Tensor) -> Tensor:
        return torch.where(labels == 2, math.nan, images.square().flatten(1).sum(1))

    objective = Objective(tilt=Tilt(reward, 0.5))
    (whole, lost), (parted, lost_too) = (gradient_of(objective, part, draws, players, learned) for part in (6, 1))
    assert lost == lost_too == 1 and whole.isfinite().all()
    assert torch.allclose(whole, parted, rtol=1e-4, atol=1e-4)
    kept = torch.tensor([0, 1, 3, 4, 5])
    others = Draws(draws.z[kept], draws.noise[kept], draws.level[kept], kept)
    assert torch.allclose(whole, gradient_of(objective, 6, others, players, learned)[0] * 5 / 6, rtol=1e-4, atol=1e-4)


def test_a_picture_whose_score_has_no_finite_gradient_is_dropped_and_spoils_no_other() -> None:
    """sqrt at 0, or a network that overflows: its NaN would come to every weight of the generator."""
    players, draws, learned = pieces()

    def reward(images: Tensor, labels: Tensor) -> Tensor:
        score = images.square().flatten(1).sum(1)
        return score + torch.where(labels == 2, score - score.detach(), 1.0).sqrt()

    (whole, lost), (parted, lost_too) = (
        gradient_of(Objective(tilt=Tilt(reward, 0.5)), part, draws, players, learned) for part in (6, 1)
    )
    assert lost == 1 and whole.isfinite().all()
    assert lost_too == 1 and torch.allclose(whole, parted, rtol=1e-4, atol=1e-4)


def test_a_score_that_looks_at_no_picture_changes_nothing() -> None:
    players, draws, learned = pieces()
    found = [
        gradient_of(Objective(tilt=Tilt(lambda _images, _labels, to=to: torch.full((6,), to), 0.5)), 6, draws, players, learned)
        for to in (0.0, 3.0)
    ]
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == 0


# ------------------------------------------------------------------------------------------- beside a loss of variety


def test_an_anchor_takes_a_tenth_from_what_a_one_step_student_shifts() -> None:
    """Of a shift m the anchor's slope is 2 x 0.05 m / |m|, and the KL's is m: so m = slope of the reward / price - 0.1."""
    anchor = variety_of(ANCHOR, (2.5,), karras_path)
    assert learned(rewards(1.0, 0.0), 1.0, alpha=0.5, variety=anchor)[0] == pytest.approx(0.9, abs=0.02)
    assert learned(rewards(0.5, 0.0), 1.0, alpha=0.5, variety=anchor)[0] == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("sigmas", [(2.5,), (2.5, 0.8)])
@pytest.mark.parametrize("kind", [ANCHOR, CONSISTENCY])
def test_a_reward_and_a_variety_add_up_and_of_two_steps_an_anchor_s_is_the_first_alone(
    kind: str, sigmas: tuple[float, ...]
) -> None:
    """By hand, with a generator that has one number a level: scale (KL - r / price + the variety's loss)."""
    _players, draws, _learned = pieces()
    draws = replace(draws, between=[draws.z.flip(0)] * 2)
    by_level = {level: torch.full((), 0.7 + 0.1 * i, requires_grad=True) for i, level in enumerate((2.5, 0.8))}

    def generator(x: Tensor, sigma: Tensor, _labels: Any) -> Tensor:
        rows = [by_level[min(by_level, key=lambda level: abs(level - float(s)))] for s in sigma.flatten()]
        return torch.stack(rows).view(-1, 1, 1, 1) * x / sigma

    teacher, fake = gaussian(torch.zeros(()), torch.ones(())), gaussian(torch.tensor(0.3), torch.tensor(0.8))
    players, price, scale, alpha = Players(teacher, fake, generator, [], []), 0.3, 2.0, 0.5
    reward = rewards(1.0, 0.5)
    variety = variety_of(kind, sigmas, karras_path)
    objective = Objective(alpha, sigmas, generator_scale=scale, tilt=Tilt(reward, price), variety=variety)
    found = generator_objective(players, objective, draws).total

    images = by_level[2.5] * draws.z
    if len(sigmas) > 1:
        images = by_level[0.8] * (images.detach() + 0.8 * draws.between[0]) / 0.8
    level = objective.levels.of_generator(draws.level)
    x = images + level * draws.noise
    real, false = teacher(x, level, None), fake(x, level, None)
    kl = kl_weight(objective.levels, add_noise, draws.level) * (real - false) * (real - images - alpha * (real - false))
    beside = anchored(by_level[2.5] * draws.z, draws.z, variety, teacher) if kind == ANCHOR else variety_loss(
        variety, generator, teacher, None, None, 1.0, add_noise, draws.z, draws.noise, draws.level, images, len(sigmas)
    ).sum()  # fmt: skip
    expected = scale * (kl.sum() - reward(images, None).sum() / price + beside)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    used = [by_level[level] for level in sigmas]
    slopes = [torch.stack(torch.autograd.grad(loss, used, retain_graph=True)) for loss in (found, expected)]
    assert torch.allclose(*slopes, rtol=1e-3)
    if kind == ANCHOR and len(sigmas) > 1:
        (alone,) = torch.autograd.grad(scale * beside, used[:1])
        assert slopes[0][0].item() == pytest.approx(alone.item(), rel=1e-3), "the first step learns of the anchor alone"


def anchored(said: Tensor, z: Tensor, variety: Variety, teacher: Any) -> Tensor:
    """0.05 (said - target)^2 / mean |said - target|, summed; the target by Euler's steps of the teacher, and the line's end."""
    x, path = 2.5 * z, variety.path
    for high, low in zip(path, path[1:], strict=False):
        x = x + (low - high) * (x - teacher(x, torch.tensor(high), None)) / high
    target = x - path[-1] * (2.5 * z - x) / (2.5 - path[-1])
    scales = (said - target).detach().abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    return 0.05 * ((said - target) ** 2 / scales).sum()


def test_a_price_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Tilt(rewards(1, 0), 0.0)
