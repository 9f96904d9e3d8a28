"""SiD towards the tilted teacher on ``control_toy``'s mixture, where the tilted law is known exactly.

Teacher and fake score are exact: the latter is the posterior mean over fresh pictures of the generator. What learns is a
one-step generator, a small network that begins as the teacher's own law.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..training.sid import EdmLevels
from ..training.sid_iteration import Draws, Objective, Players, generator_objective
from ..training.tilted import Tilt
from . import control_toy as toy
from .control_toy import Outcome

BANK = 4096  # pictures that the fake score is of
LEVELS = EdmLevels(tmax=800)
OURS, HALF, BESIDE = "tilted, SiD's alpha 1", "tilted, SiD's alpha 0.5", "reward beside SiD's own weights"


class Generator(nn.Module):
    """z [B, 1] to x [B, 1]."""

    def __init__(self, seed: int, width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                nn.Linear(width, 1),
            )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """[B, 1] -> [B, 1]."""
        drawn: Tensor = self.net(2 * z)
        return drawn


def begin(generator: Generator, seed: int, updates: int = 1500) -> None:
    """Teach it the teacher's own law: the quantile of x for that of z."""
    z = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)[:, None].float()
    x = toy.exact_quantiles(1e9, "kl", 4000)[:, None].float()
    rng, optimiser = torch.Generator().manual_seed(seed), torch.optim.Adam(generator.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        rows = torch.randint(len(z), (256,), generator=rng)
        optimiser.zero_grad(set_to_none=True)
        (generator(z[rows]) - x[rows]).abs().mean().backward()
        optimiser.step()
        schedule.step()


def posterior_mean(bank: Tensor) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """The exact denoiser of the law of a sample [N, 1]: the fake score network that has learned all there is."""

    def denoise(x: Tensor, sigma: Tensor, _labels: Any) -> Tensor:
        return (-((x - bank[:, 0]) ** 2) / (2 * sigma**2)).softmax(1) @ bank

    return denoise


def solve(
    alpha: float, way: str, *, updates: int = 600, batch: int = 512, rate: float = 1e-3, seed: int = 0, draws: int = 100_000
) -> Outcome:
    """Distil towards the law tilted at price ``alpha``, and draw; CPU seconds are those of the updates."""
    generator, rng = Generator(seed), torch.Generator().manual_seed(seed)
    begin(generator, seed)
    started, reward = time.process_time(), lambda x, _labels: toy.reward(x)
    tilt = None if way == BESIDE else Tilt(reward, alpha)
    objective = Objective(0.5 if way == HALF else 1.0, levels=LEVELS, generator_scale=1.0, tilt=tilt)
    optimiser = torch.optim.Adam(generator.parameters(), rate, (0.0, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        z, noise, bank = (torch.randn(count, 1, generator=rng) for count in (batch, batch, BANK))
        with torch.no_grad():
            fake = posterior_mean(generator(bank))
        players = Players(
            lambda x, sigma, _labels: toy.denoise(x, sigma[:, 0]), fake, lambda x, sigma, _labels: generator(x / sigma), [], []
        )
        optimiser.zero_grad(set_to_none=True)
        loss = generator_objective(players, objective, Draws(z, noise, torch.rand(batch, 1, generator=rng))).total
        if tilt is None:
            loss = loss - toy.reward(generator(z)).sum() / alpha
        (loss / batch).backward()
        optimiser.step()
        schedule.step()
    seconds = time.process_time() - started
    with torch.no_grad():
        samples = generator(torch.randn(draws, 1, generator=torch.Generator().manual_seed(seed + 1)))[:, 0]
    return Outcome(samples, seconds)
