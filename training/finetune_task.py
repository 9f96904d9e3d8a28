"""What is tuned by an oracle, and how: the settings of a run, and the network, its reward and its prompts as one problem."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import control
from .control import Problem, Process
from .fdivergence import divergence
from .loop import Schedule
from .optimisers import ADAM

ALGORITHMS = ("adjoint_matching", "path_kl", "weighted_regression", "preview", "direct", "diffusion_nft")
BLACK_BOX = ("weighted_regression", "diffusion_nft")  # which ask an oracle for scores alone
ONE_STEP = ("direct", "diffusion_nft")  # which tune one-step students
STRENGTHS = ("alpha", "target KL", "target reward gain")
_FEWEST = 64  # base rewards a prompt, below which lambda is a guess

Labels = Any
Labelled = Callable[[Tensor, Tensor, Labels], Tensor]
"""D(x [N, ...], sigma or time [N], labels of N pictures)."""


@dataclass(frozen=True)
class Settings:
    """A run's settings.

    Attributes:
        algorithm: One of ``ALGORITHMS``.
        divergence: See ``fdivergence.divergence``; diffusion_nft's is always forward_kl, see ``priced``.
        strength: What ``value`` means, one of ``STRENGTHS``. alpha is in units of the reward and per picture.
        value: alpha; or nats a picture; or by how much the mean reward shall rise.
        updates: Optimiser steps.
        batch: Pictures a step.
        part: Pictures in memory at a time; 0 for the whole batch.
        count: Steps of the process that are regressed on, 0 for all; ``last`` of them are the last.
        clip: Largest norm of a step's gradient.
        base_draws: Pictures of the base for each prompt, whose rewards give lambda and the strength.
        rounds: Of weighted regression: each draws ``pool`` pictures for each prompt.
        optimiser: One of ``OPTIMISERS``.
    """

    algorithm: str = "adjoint_matching"
    divergence: str = "kl"
    strength: str = "alpha"
    value: float = 1.0
    updates: int = 200
    batch: int = 8
    part: int = 0
    count: int = 8
    last: int = 3
    learning_rate: float = 1e-4
    clip: float = 1.0
    base_draws: int = _FEWEST
    rounds: int = 4
    pool: int = 64
    ema_half_life: float = 500.0
    seed: int = 0
    optimiser: str = ADAM

    def check(self) -> None:
        """Whether the choices exist.

        Raises:
            ValueError: One doesn't.
        """
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"There is no algorithm '{self.algorithm}'; choose one of: {', '.join(ALGORITHMS)}.")
        if self.strength not in STRENGTHS:
            raise ValueError(f"There is no strength '{self.strength}'; choose one of: {', '.join(STRENGTHS)}.")
        if not self.value > 0:
            raise ValueError(f"The strength's value is {self.value:g}; it must be above 0.")
        divergence(self.divergence)

    @property
    def priced(self) -> str:
        """The divergence that a change is paid for in."""
        return "forward_kl" if self.algorithm == "diffusion_nft" else self.divergence

    @property
    def draws(self) -> int:
        """Pictures of the base for each prompt: few, where neither strength nor divergence nor weights follow from them."""
        alone = self.strength == "alpha" and self.divergence == "kl" and self.algorithm != "weighted_regression"
        return min(self.base_draws, 8) if alone else self.base_draws

    @property
    def schedule(self) -> Schedule:
        """Warm-up, constant, a cosine at the end."""
        return Schedule(self.updates * self.batch, self.batch, self.learning_rate, warmup=0.05, decay=0.5)


@dataclass
class Task:
    """What is tuned.

    Attributes:
        base: The network as it was, without guidance.
        tuned: The same network with what is learned.
        learned: What is learned: a LoRA, mostly.
        reward: (pictures or latents [B, ...], numbers of their prompts [B]) -> rewards [B].
        labels: Numbers of prompts [N] -> the network's conditions.
        prompts: How many there are.
        process: How pictures are drawn.
        shape: Of one picture or latent.
        differentiable: Whether the reward is.
        spread: Standard deviation of a picture or latent, the unit of what ``direct`` pays for.
        start_scale: Of the noise that drawing starts from, over the process's own.
        facts: Who draws and who judges, for what is kept on disk: network, oracle, prompts, size, as JSON can hold them.
        drawn_at_once, judged_at_once: Pictures in memory at a time where nothing is learned, which takes far less of it.
    """

    base: Labelled
    tuned: Labelled
    learned: nn.Module
    reward: Callable[[Tensor, Tensor], Tensor]
    labels: Callable[[Tensor], Labels]
    prompts: int
    process: Process
    shape: tuple[int, ...]
    device: torch.device | str = "cpu"
    differentiable: bool = True
    spread: float = 1.0
    start_scale: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    drawn_at_once: int = 32
    judged_at_once: int = 32

    def key(self, **more: Any) -> str:
        """Names what follows from the facts and from ``more``: kept files carry it, and are made anew where it differs."""
        levels = [value.tolist() for value in (self.process.a, self.process.b, self.process.times)]
        facts = [dict(self.facts), self.prompts, self.shape, levels, self.process.eta, self.start_scale, more]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def problem(
        self, rows: Tensor, alpha: float, reward: Callable[[Tensor, Tensor], Tensor] | None = None, seeds: Tensor | None = None
    ) -> Problem:
        """The control problem of a batch with these prompts [B].

        Args:
            seeds: [B] of all noise of each picture, so that it doesn't depend on who is drawn beside it.
        """
        judged = reward or self.reward
        sources = [torch.Generator().manual_seed(int(seed)) for seed in seeds] if seeds is not None else []

        def noise(generator: torch.Generator, like: Tensor) -> Tensor:
            if not sources:
                return control.unit_noise(generator, like)
            return torch.stack([torch.randn(like.shape[1:], generator=source) for source in sources]).to(like)

        def with_labels(network: Labelled) -> control.Denoise:
            return lambda x, time, which: network(x, time, self.labels(rows[which.to(rows.device)]))

        def start(generator: torch.Generator, count: int) -> Tensor:
            unit = noise(generator, torch.zeros(count, *self.shape, device=self.device))
            return unit * (float(self.process.b[0]) * self.start_scale)

        return Problem(
            with_labels(self.base), with_labels(self.tuned), lambda x: judged(x, rows), alpha, self.process, start, noise
        )

    def draw(
        self, rows: Tensor, generator: torch.Generator, tuned: bool = True, step: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        """Pictures of these prompts [B], by the tuned network or the base; how many at once changes nothing.

        Args:
            step: Told after every step of some of them how those look.
        """
        return self.draw_from(rows, torch.randint(2**62, (len(rows),), generator=generator), tuned, step)

    def draw_from(
        self, rows: Tensor, seeds: Tensor, tuned: bool = True, step: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        """``draw`` with the seeds [B] of all noise of each picture."""
        drawn, unused = [], torch.Generator()
        for r, s in zip(rows.split(self.drawn_at_once), seeds.split(self.drawn_at_once), strict=True):
            problem = self.problem(r, 1.0, seeds=s)
            if step is not None:
                problem = replace(problem, base=_telling(problem.base, step), tuned=_telling(problem.tuned, step))
            drawn.append(problem.draw(unused, len(r), tuned)[-1])
        return torch.cat(drawn)

    @torch.no_grad()
    def judge(self, pictures: Tensor, rows: Tensor) -> Tensor:
        """Rewards [B], float32 on the CPU."""
        parts = zip(pictures.split(self.judged_at_once), rows.split(self.judged_at_once), strict=True)
        return torch.cat([self.reward(x, r).float().cpu() for x, r in parts])


def _telling(network: control.Denoise, step: Callable[[Tensor], None]) -> control.Denoise:
    """``network``, telling what it answers."""

    def denoise(x: Tensor, time: Tensor, which: Tensor) -> Tensor:
        denoised = network(x, time, which)
        step(denoised)
        return denoised

    return denoise
