"""Learning from pairs: Diffusion-DPO's loss, its closed forms, and runs that are resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.benchmarks import control_toy as toy
from comfyui_apprentice.training.control import Process
from comfyui_apprentice.training.loop import Watch
from comfyui_apprentice.training.preference import (
    Player,
    Preferences,
    PreferenceSettings,
    expected_errors,
    implicit_reward,
    prefer,
    preference_loss,
)
from comfyui_apprentice.training.run_folder import RunFolder
from torch import Tensor


def test_the_loss_is_diffusion_dpos_on_paper() -> None:
    """Errors of eps are errors of D over (b / a)^2: -log sigmoid(-beta / 2 (better's rise of error - worse's))."""
    generator = torch.Generator().manual_seed(0)
    x0, noise, eps, base = (torch.randn(4, 3, 2, generator=generator, dtype=torch.float64) for _ in range(4))
    a, b, beta = 0.8, 0.6, 3.0
    x = a * x0 + b * noise
    rise = ((eps - noise).square() - (base - noise).square()).mean((1, 2))
    official = -torch.nn.functional.logsigmoid(-0.5 * beta * (rise[:2] - rise[2:]))
    after, before = ((x - b * e) / a for e in (eps, base))
    rewards = implicit_reward(after, before, x0, torch.full((4,), (b / a) ** 2, dtype=torch.float64))
    torch.testing.assert_close(preference_loss(rewards[:2], rewards[2:], beta), official)


def test_expected_errors_are_a_gaussians_posterior_variance() -> None:
    v = expected_errors(Process.edm([80.0, 0.5, 0.01, 0.0]), 0.5)
    assert v.tolist() == pytest.approx([0.25, 0.125, 1e-4, 0.0], rel=1e-3)
    assert expected_errors(Process.flow([0.5, 0.0]), 1.0).tolist() == pytest.approx([0.5, 0.0])


def test_of_gaussians_the_implicit_reward_is_the_change_of_the_log_density() -> None:
    """p = N(0, s^2), D of N(m, s^2): s(x0), summed over v's own scale of levels, is log q / p up to a constant."""
    s, m, sigma = 0.7, 0.4, 0.9
    x0 = torch.linspace(-2, 2, 5, dtype=torch.float64)
    noise = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    x, gain = x0[:, None] + sigma * noise, s**2 / (s**2 + sigma**2)
    rewards = implicit_reward(
        (m + gain * (x - m)).reshape(-1, 1), (gain * x).reshape(-1, 1), x0.repeat_interleave(20_000)[:, None],
        torch.full((100_000,), s**2 * sigma**2 / (s**2 + sigma**2), dtype=torch.float64),
    ).view(5, -1).mean(1)  # fmt: skip
    log_ratio = (m * x0 - m**2 / 2) / s**2
    share = sigma**2 / (s**2 + sigma**2)  # of the whole log ratio, that this level tells
    torch.testing.assert_close(rewards, 2 * share * log_ratio, atol=1e-3, rtol=1e-3)


def _player(seed: int = 0, process: Process | None = None) -> Player:
    network = toy.Control(seed)
    return Player(toy.denoise, network, network, process or toy.levels(12), 1.5)


def _given(known: bool = True) -> Preferences:
    """Sixteen pictures of the toy, half of them on the right, which is liked better."""
    generator = torch.Generator().manual_seed(3)
    pictures = torch.cat([torch.randn(8, 1, generator=generator) * 0.5 + 2, torch.randn(8, 1, generator=generator) * 0.6 - 2])
    noise = torch.randn(16, 1, generator=generator) if known else torch.full((16, 1), torch.nan)
    return Preferences(pictures, noise, torch.zeros(16, dtype=torch.long), [(i, i + 8) for i in range(8)])


SETTINGS = PreferenceSettings(beta=1.0, updates=60, batch=16, learning_rate=1e-2, ema_half_life=200)


def right(player: Player) -> float:
    """Of 2,000 pictures, how many the tuned network draws on the right."""
    from comfyui_apprentice.training.control import rollout

    generator = torch.Generator().manual_seed(5)
    start = torch.randn(2000, 1, generator=generator) * toy.SIGMA_MAX
    drawn = rollout(toy.levels(12), player.tuned, start, lambda: torch.randn(2000, 1, generator=generator))[-1]
    return float((drawn > 0).float().mean())


@pytest.mark.parametrize("own", [True, False])
def test_what_was_liked_is_drawn_more_often_and_a_high_beta_holds_it_back(tmp_path: Path, own: bool) -> None:
    before, player = right(_player()), _player()
    prefer(player, _given(), replace(SETTINGS, own_noise=own), RunFolder(tmp_path / "free"))
    losses = RunFolder(tmp_path / "free").losses()
    assert right(player) > before + 0.15 and losses[-1]["loss"] < 0.69
    held = _player()
    prefer(held, _given(), replace(SETTINGS, own_noise=own, beta=300.0), RunFolder(tmp_path / "held"))
    assert before - 0.05 < right(held) < right(player)


def test_a_run_resumes_to_the_bit_and_parts_change_nothing(tmp_path: Path) -> None:
    few = replace(SETTINGS, updates=12)
    whole, cut, resumed, parted = (_player(seed) for seed in (0, 0, 4, 0))
    shadow = prefer(whole, _given(), few, RunFolder(tmp_path / "whole")).shadow
    steps = iter(range(1000))
    with pytest.raises(KeyboardInterrupt):
        prefer(cut, _given(), few, RunFolder(tmp_path / "cut"), watch=Watch(interrupted=lambda: next(steps) == 9))
    again = prefer(resumed, _given(), few, RunFolder(tmp_path / "cut")).shadow
    assert all(torch.equal(shadow[key], again[key]) for key in shadow)
    parts = prefer(parted, _given(), replace(few, part=3), RunFolder(tmp_path / "parts")).shadow
    assert all(torch.allclose(shadow[key], parts[key], atol=1e-4) for key in shadow)


def _noises(tmp_path: Path, given: Preferences, process: Process) -> list[tuple[Tensor, Tensor]]:
    """What the network was asked at: x over the level, and the place of the picture."""
    asked: list[tuple[Tensor, Tensor]] = []

    def base(x: Tensor, sigma: Tensor, which: Tensor) -> Tensor:
        noise = (x - given.pictures[which]) / sigma[:, None]
        asked.append((noise, which))
        return toy.denoise(x, sigma)

    player = replace(_player(process=process), base=base)
    prefer(player, given, replace(SETTINGS, updates=1, batch=4), RunFolder(tmp_path))
    return asked


def test_pictures_are_noised_by_their_own_noise_where_that_is_known(tmp_path: Path) -> None:
    given = _given()
    for noise, which in _noises(tmp_path / "own", given, toy.levels(12)):
        torch.testing.assert_close(noise, given.noise[which], atol=1e-3, rtol=1e-3)
    for noise, _which in _noises(tmp_path / "fresh", _given(known=False), toy.levels(12)):
        better, worse = noise.chunk(2)
        torch.testing.assert_close(better, worse, atol=1e-3, rtol=1e-3)
    assert given.known == 16 and _given(known=False).known == 0


def test_a_pair_of_a_one_step_student_shares_the_noise_of_one_of_the_two(tmp_path: Path) -> None:
    given = _given()
    ((noise, which),) = _noises(tmp_path, given, Process.edm([3.0, 0.0]))
    better, worse = noise.chunk(2)
    torch.testing.assert_close(better, worse, atol=1e-3, rtol=1e-3)
    own = given.noise[which].view(2, -1)
    assert all(min(abs(better[i, 0] - own[0, i]), abs(better[i, 0] - own[1, i])) < 1e-3 for i in range(4))


