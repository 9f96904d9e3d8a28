"""The 1-D problem of arXiv 2402.15194's kind that has an exact answer: a mixture of two Gaussians, a bump of a reward.

Prior 0.7 N(-2, 0.6^2) + 0.3 N(2, 0.5^2), r = exp(-((x - 2.4) / 0.9)^2 / 2). The base score is exact; what is learned is a small
network on top of it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ..training.control import Problem, Process, chosen_steps
from ..training.control_losses import draw_targets, regress
from ..training.fdivergence import solve_dual, surrogate_reward
from ..training.finetune import finetune
from ..training.finetune_task import Settings, Task
from ..training.run_folder import RunFolder

WEIGHTS, MEANS, STDS = torch.tensor([0.7, 0.3]), torch.tensor([-2.0, 2.0]), torch.tensor([0.6, 0.5])
SIGMA_MAX, SIGMA_MIN, SPREAD = 60.0, 0.02, 1.5


def reward(x: Tensor) -> Tensor:
    """[B, 1] -> [B]."""
    return torch.exp(-(((x[:, 0] - 2.4) / 0.9) ** 2) / 2)


def denoise(x: Tensor, sigma: Tensor, _which: Tensor | None = None) -> Tensor:
    """E[x0 | x0 + sigma eps = x] of the mixture, exact; x [B, 1]."""
    variance = STDS**2 + sigma[:, None] ** 2
    gap = x - MEANS
    mine = (WEIGHTS.log() - variance.log() / 2 - gap**2 / (2 * variance)).softmax(1)
    return (mine * (MEANS + gap * STDS**2 / variance)).sum(1, keepdim=True)


def levels(steps: int) -> Process:
    """Even in the angle of noise to picture, then clean: with the exact control half as far off as levels even in log sigma."""
    high, low = (math.atan(sigma / SPREAD) for sigma in (SIGMA_MAX, SIGMA_MIN))
    sigmas = SPREAD * torch.linspace(high, low, steps, dtype=torch.float64).tan()
    return Process.edm(torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)]))


class Control(nn.Module):
    """The tuned denoised x of (x, sigma): the exact base's, and what is learned."""

    def __init__(self, seed: int, width: int = 32) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, sigma: Tensor, _which: Tensor | None = None) -> Tensor:
        """[B, 1] -> [B, 1]."""
        s = sigma[:, None]
        base, scale = denoise(x, sigma), (s * s + 1).sqrt()
        seen = torch.cat([x / (s * s + 4).sqrt(), s.log() / 2, base, base * base / 4, (base - x) / scale, 1 / scale], 1)
        tuned: Tensor = base + self.net(seen) * (s / scale) ** 2
        return tuned


@dataclass(frozen=True)
class Outcome:
    """The tuned law, by its samples, and what it took."""

    samples: Tensor
    seconds: float


def exact_quantiles(alpha: float, divergence: str, count: int) -> Tensor:
    """The middle quantiles [count] of the exact optimum."""
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    variance = STDS.double() ** 2
    density = (WEIGHTS.double() / variance.sqrt() * torch.exp(-((x[:, None] - MEANS) ** 2) / (2 * variance))).sum(1)
    p = density / density.sum()
    cumulative = (p * solve_dual(reward(x[:, None]), alpha, divergence, p).weights).cumsum(0)
    places = torch.searchsorted(cumulative, (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return x[places.clamp(max=len(x) - 1)]


def wasserstein(samples: Tensor, alpha: float, divergence: str) -> float:
    """W1 between samples [N] and the exact optimum."""
    return float((samples.double().sort().values - exact_quantiles(alpha, divergence, len(samples))).abs().mean())


def adjoint_matching(
    problem: Problem, parameters: list[Tensor], updates: int, batch: int, rate: float, generator: torch.Generator, *,
    passes: int = 1, averaged: float = 0.0,
) -> None:  # fmt: skip
    """Adjoint Matching (arXiv 2409.08861) at all steps, by Adam, its rate falling as a cosine.

    Args:
        updates: Rounds of ``batch`` fresh draws.
        passes: Adam's steps a round, each on another part of the draws' rows: more than one where networks are cheaper than
            draws.
        averaged: Part of the run, at its end, whose parameters are averaged; the mean is what is left.
    """
    mean, first = [p.detach().clone() for p in parameters], updates - round(averaged * updates)
    optimiser = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for number in range(updates):
        targets, _rewards = draw_targets(problem, generator, batch, chosen_steps(problem.process, 0, 0, generator))
        order = torch.randperm(len(targets), generator=generator)
        for rows in order.chunk(passes):
            optimiser.zero_grad(set_to_none=True)
            regress(problem, targets.rows(rows), batch * len(rows) / len(order))
            optimiser.step()
        schedule.step()
        if number >= first:
            for total, parameter in zip(mean, parameters, strict=True):
                total.lerp_(parameter.detach(), 1 / (number - first + 1))
    if averaged:
        with torch.no_grad():
            for total, parameter in zip(mean, parameters, strict=True):
                parameter.copy_(total)


def solve(
    alpha: float, divergence: str, *, steps: int = 80, updates: int = 2000, batch: int = 512, rate: float = 1e-2, seed: int = 0,
    passes: int = 2, draws: int = 100_000,
) -> Outcome:  # fmt: skip
    """Tune, and draw; CPU seconds are those of the tuning."""
    started, process = time.process_time(), levels(steps)
    rng, control = torch.Generator().manual_seed(seed), Control(seed)

    def start(generator: torch.Generator, size: int) -> Tensor:
        return torch.randn(size, 1, generator=generator) * SIGMA_MAX

    tilted = reward
    if divergence != "kl":
        x0 = Problem(denoise, denoise, reward, alpha, process, start).draw(rng, 20_000, tuned=False)[-1]
        lam = solve_dual(reward(x0), alpha, divergence).lam
        tilted = lambda x: surrogate_reward(reward(x), lam, alpha, divergence)  # noqa: E731
    problem = Problem(denoise, control, tilted, alpha, process, start)
    adjoint_matching(problem, list(control.parameters()), updates, batch, rate, rng, passes=passes, averaged=0.3)
    seconds = time.process_time() - started
    return Outcome(problem.draw(torch.Generator().manual_seed(seed + 1), draws)[-1][:, 0], seconds)


def solve_by_scores(alpha: float, *, steps: int = 20, updates: int = 1200, batch: int = 256, seed: int = 0) -> Outcome:
    """Tune by DiffusionNFT, which asks for scores alone and comes to rest at forward KL's law; and draw."""
    started, control = time.process_time(), Control(seed)
    task = Task(
        denoise, control, control, lambda x, _rows: reward(x).detach(), lambda rows: rows, 1, levels(steps), (1,),
        differentiable=False, drawn_at_once=4096,
    )  # fmt: skip
    settings = Settings(
        algorithm="diffusion_nft", value=alpha, updates=updates, batch=batch, count=6, learning_rate=1e-2, base_draws=8,
        ema_half_life=20_000, seed=seed,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        ema, _base = finetune(task, settings, RunFolder(Path(folder)), save_every=updates)
    control.load_state_dict(ema.shadow)
    seconds = time.process_time() - started
    drawn = task.draw(torch.zeros(100_000, dtype=torch.long), torch.Generator().manual_seed(seed + 1))
    return Outcome(drawn[:, 0], seconds)
