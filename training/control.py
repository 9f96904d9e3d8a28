"""Raising a reward while staying close to the pre-trained law: entropy-regularised fine-tuning as stochastic control.

Conventions, here, in ``control_losses`` and in ``fdivergence``: reward r, higher is better; strength alpha > 0. A picture is
noised as x = a x0 + b eps; drawing goes from noise to b = 0. The equations (arXiv 2402.15194; with proofs 2403.06279, sec. 3):

    (1) q* = argmax E_q[r] - alpha KL(q || p),  so  q* ∝ p exp(r / alpha)        other divergences by a surrogate reward
    (2) v(t, x) = alpha log E_p[exp(r(x0) / alpha) | x_t = x]                    the value function
    (3) u* = g^2 grad v / alpha                                                  added to the reverse SDE's drift; g its diffusion
    (4) score* - score = grad v / alpha,         denoised* - denoised = (b^2 / a) grad v / alpha,
        eps* - eps = -b grad v / alpha,          velocity* - velocity = -(t / (1 - t)) grad v / alpha  (flows: a = 1 - t, b = t)
    (5) nu* ∝ nu exp(v(T, .) / alpha)                                            where drawing starts
    (6) x' = A x + B D(x) + s z                                                  a step, in discrete time
    (7) KL of a step = |B (D_tuned - D)|^2 / (2 s^2)                             what its control costs, exactly

The law q* is reached only from the right start. Fine-tuning doesn't change where drawing starts, so how a run ends must not
depend on it: the process must be memoryless (eta 1; arXiv 2409.08861, Theorem 1), or else the start has to be tuned as well
(``tilted_choice``). With the start left as it is, J* - E[v(T, .)] = alpha KL(nu || nu*) is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""D(x [N, ...], time [N], which [N]) -> the expected clean picture, like x; ``which`` picture of the batch a row is of, for
networks that are told more of each."""
Steps = Mapping[int, float]
"""Steps of a process, and how many steps each of them stands for; see ``chosen_steps``."""
Reward = Callable[[Tensor], Tensor]
"""Clean pictures [B, ...] -> rewards [B], higher is better."""


# --------------------------------------------------------------------------------------------------------- process


@dataclass(frozen=True)
class Process:
    """How pictures are drawn: levels from noise to clean, and the noise between them.

    Attributes:
        a: [K + 1] factor of the clean picture, rising to 1.
        b: [K + 1] standard deviation of the noise, falling to 0.
        times: [K + 1] what the network is told of each level.
        eta: 1 for the memoryless process (DDPM's posterior), 0 for DDIM without noise.
    """

    a: Tensor
    b: Tensor
    times: Tensor
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not (self.a.shape == self.b.shape == self.times.shape) or self.a.ndim != 1 or len(self.a) < 2:
            raise ValueError("A process needs two levels or more, with an a, a b and a time for each.")
        ratio = self.b / self.a
        if not bool((ratio[1:] < ratio[:-1]).all()) or float(self.b[-1]) != 0.0:
            raise ValueError("A process goes from noise to clean: b / a must fall from level to level, to 0 at the end.")

    @classmethod
    def edm(cls, sigmas: Sequence[float] | Tensor, eta: float = 1.0) -> Process:
        """x = x0 + sigma eps; ``sigmas`` [K + 1] fall to 0. ComfyUI's models see all but flows this way."""
        b = torch.as_tensor(sigmas, dtype=torch.float64)
        return cls(torch.ones_like(b), b, b, eta)

    @classmethod
    def flow(cls, times: Sequence[float] | Tensor, eta: float = 1.0) -> Process:
        """x = (1 - t) x0 + t eps; ``times`` [K + 1] fall from below 1 to 0."""
        t = torch.as_tensor(times, dtype=torch.float64)
        return cls(1 - t, t, t, eta)

    def ending_at(self, least: float) -> Process:
        """Without the levels of less noise than ``least`` (b / a), the last step going from there to clean.

        Down there little is left to decide, and a network that is tuned at all levels at once pays many nats for changes that
        nobody sees: the price of a step goes as 1 / b^2. Two steps are always left.
        """
        ratio = self.b / self.a
        kept = (ratio >= least) | (ratio == 0) | (torch.arange(len(ratio)) < 2)
        return Process(self.a[kept], self.b[kept], self.times[kept], self.eta)

    @property
    def steps(self) -> int:
        """K."""
        return len(self.a) - 1

    def step(self, k: int) -> tuple[float, float, float]:
        """(A, B, s) of eq. 6 from level k to k + 1.

        s is eta times the standard deviation of x' given x and x0 under the noising (DDPM's posterior); the rest of b' goes
        along the present noise (DDIM, arXiv 2010.02502, eq. 12 and 16).
        """
        a, b, a2, b2 = (float(v) for v in (self.a[k], self.b[k], self.a[k + 1], self.b[k + 1]))
        s = self.eta * b2 * math.sqrt(max(1 - (a * b2 / (a2 * b)) ** 2, 0.0))
        along = math.sqrt(max(b2 * b2 - s * s, 0.0)) / b
        return along, a2 - a * along, s

    def realised_share(self) -> float:
        """Which part of a linear reward's shift is reached when the start is left as it is: 1 - alpha_bar^(eta^2).

        For data of unit variance, where drawing at noise eta is an Ornstein-Uhlenbeck process whose end has the correlation
        alpha_bar^(eta^2 / 2) with its start; alpha_bar = a^2 / (a^2 + b^2) there is near 0 from noise, larger at a partial
        denoise. On SD1.5's schedule (alpha_bar = 0.0047): 0.995 at eta 1, 0.739 at 0.5, 0 at 0.
        """
        a, b = float(self.a[0]), float(self.b[0])
        return 1.0 - (a * a / (a * a + b * b)) ** (self.eta**2)

    def time(self, k: int, like: Tensor) -> Tensor:
        """The time of level k for every row of ``like``."""
        return self.times[k].to(like.device, like.dtype).expand(len(like))


def rollout(process: Process, denoise: Denoise, start: Tensor, noise: Callable[[], Tensor]) -> list[Tensor]:
    """The states x_0 .. x_K of a draw, without gradient; the last is the picture.

    Args:
        start: [B, ...] at the first level.
        noise: Gives unit noise like ``start``, once a step.
    """
    states, which = [start], torch.arange(len(start), device=start.device)
    with torch.no_grad():
        for k in range(process.steps):
            forward, pull, s = process.step(k)
            x = states[-1]
            x = forward * x + pull * denoise(x, process.time(k, x), which)
            states.append(x + s * noise() if s else x)
    return states


# ------------------------------------------------------------------------------------------------- what is tuned


def noisy_steps(process: Process) -> list[int]:
    """The steps with noise, which are those that control can act on at a finite cost."""
    return [k for k in range(process.steps) if process.step(k)[2] > 0]


def chosen_steps(process: Process, count: int, last: int, generator: torch.Generator) -> Steps:
    """``last`` of the last steps and a random subset of the others, ``count`` in all; 0 for all.

    Each is the key of how many steps it stands for: 1 / the chance that it was chosen, so that sums over the chosen, weighed so,
    are on average the sums over all (Horvitz and Thompson 1952). Where nothing is drawn at random, the others stand for none.
    """
    steps = noisy_steps(process)
    if not count or count >= len(steps):
        return dict.fromkeys(steps, 1.0)
    last = min(last, count)
    early, late = steps[: len(steps) - last], steps[len(steps) - last :]
    picked = torch.randperm(len(early), generator=generator)[: count - last].tolist()
    drawn = {early[i]: len(early) / (count - last) for i in sorted(picked)}
    return drawn | dict.fromkeys(late, 1.0)


def unit_noise(generator: torch.Generator, like: Tensor) -> Tensor:
    """Unit noise like a batch."""
    return torch.randn(like.shape, generator=generator).to(like)


@dataclass(frozen=True)
class Problem:
    """What is to be tuned, and for what.

    Attributes:
        base: The pre-trained network.
        tuned: The network that learns; equal to ``base`` at first.
        reward: Of clean pictures; for another divergence than KL, its surrogate.
        alpha: The strength.
        process: How pictures are drawn.
        start: (generator, count) -> states [B, ...] at the first level.
        noise: (generator, states) -> unit noise like the states.
    """

    base: Denoise
    tuned: Denoise
    reward: Reward
    alpha: float
    process: Process
    start: Callable[[torch.Generator, int], Tensor]
    noise: Callable[[torch.Generator, Tensor], Tensor] = unit_noise

    def draw(self, generator: torch.Generator, count: int, tuned: bool = True) -> list[Tensor]:
        """States of a draw, by the tuned network or by the base."""
        start = self.start(generator, count)
        return rollout(self.process, self.tuned if tuned else self.base, start, lambda: self.noise(generator, start))


@dataclass(frozen=True)
class Report:
    """Of one update: the loss, the mean reward, and the KL a picture of tuned to base path, as the chosen steps tell it."""

    loss: float
    reward: float
    kl: float


# -------------------------------------------------------------------------------------------------------- the start


def tilted_weights(values: Tensor, alpha: float) -> Tensor:
    """Eq. 5 on candidates: exp(value / alpha) of each picture's [B, candidates], divided by its sum over them.

    A candidate without a score (NaN) has weight 0; where none has a score, all weigh the same.
    """
    values = values.nan_to_num(nan=-math.inf)
    best = values.amax(1, keepdim=True)
    return torch.where(best > -math.inf, (values - best) / alpha, 0.0).softmax(1)


def tilted_choice(values: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """One of each picture's candidates, picked in proportion to exp(value / alpha): see ``tilted_weights``.

    Args:
        values: [B, candidates].

    Returns:
        [B] places among the candidates, on the CPU.
    """
    return torch.multinomial(tilted_weights(values, alpha).cpu(), 1, generator=generator)[:, 0]
