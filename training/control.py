"""Raising a reward while staying close to the pre-trained law: entropy-regularised fine-tuning as stochastic control.

Conventions, here and in ``fdivergence``: reward r, higher is better; strength alpha > 0; the fine-tuned law is
q* = argmax E_q[r] - alpha KL(q || p), so q* ∝ p exp(r / alpha) (arXiv 2402.15194; other divergences by a surrogate reward). A
picture is noised as x = a x0 + b eps; drawing goes from noise to b = 0. With the value function

    v(t, x) = alpha log E_p[exp(r(x0) / alpha) | x_t = x]

the optimal control is u* = g^2 grad v / alpha, added to the drift of the reverse SDE with diffusion g, and

    score* - score = grad v / alpha,        denoised* - denoised = (b^2 / a) grad v / alpha,
    eps* - eps = -b grad v / alpha,         velocity* - velocity = -(t / (1 - t)) grad v / alpha  (flows: a = 1 - t, b = t).

That law is reached only from the right start. Fine-tuning doesn't change where drawing starts, so how a run ends must not depend
on it: the process must be memoryless (eta 1), or else the start has to be tuned as well (``TiltedStart``). With the start
left as it is, J* - E[v(T, .)] = alpha KL(nu || nu*) is lost.

In discrete time, as drawing is: x' = A x + B D(x) + s z. The control adds B (D_tuned - D); its cost is the KL of the step,
|B (D_tuned - D)|^2 / (2 s^2), exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""D(x [N, ...], time [N], which [N]) -> the expected clean picture, like x; ``which`` picture of the batch a row is of, for
networks that are told more of each."""
Steps = Mapping[int, float]
"""Steps of a process, and how many steps each of them stands for; see ``chosen_steps``."""
Reward = Callable[[Tensor], Tensor]
"""Clean pictures [B, ...] -> rewards [B], higher is better."""


# ---------------------------------------------------------------------------------------------------- closed forms


def control_drift(grad_v: Tensor, g2: float | Tensor, alpha: float) -> Tensor:
    """u* = g^2 grad v / alpha: what is added to the reverse drift."""
    return grad_v * (g2 / alpha)


def score_shift(grad_v: Tensor, alpha: float) -> Tensor:
    """score* - score = grad v / alpha."""
    return grad_v / alpha


def denoised_shift(grad_v: Tensor, a: float | Tensor, b: float | Tensor, alpha: float) -> Tensor:
    """denoised* - denoised = (b^2 / a) grad v / alpha."""
    return grad_v * (b**2 / a / alpha)


def eps_shift(grad_v: Tensor, b: float | Tensor, alpha: float) -> Tensor:
    """eps* - eps = -b grad v / alpha."""
    return grad_v * (-b / alpha)


def velocity_shift(grad_v: Tensor, t: float | Tensor, alpha: float) -> Tensor:
    """velocity* - velocity = -(t / (1 - t)) grad v / alpha, for flows whose velocity is eps - x0."""
    return grad_v * (-t / (1 - t) / alpha)


def realised_share(alpha_bar_start: float, eta: float) -> float:
    """Which part of a linear reward's shift is reached when the start is left as it is: 1 - alpha_bar^(eta^2).

    For data of unit variance, where drawing at noise ``eta`` is an Ornstein-Uhlenbeck process whose end has the correlation
    alpha_bar^(eta^2 / 2) with its start. On SD1.5's schedule (alpha_bar = 0.0047): 0.995 at eta 1, 0.739 at 0.5, 0 at 0.

    Args:
        alpha_bar_start: a^2 / (a^2 + b^2) where drawing starts: near 0 from noise, larger at a partial denoise.
        eta: Noise of the sampler; 1 is memoryless.
    """
    return 1.0 - alpha_bar_start ** (eta**2)


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
    def vp(cls, alpha_bars: Sequence[float] | Tensor, times: Sequence[float] | Tensor, eta: float = 1.0) -> Process:
        """x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps; ``alpha_bars`` [K + 1] rise to 1."""
        bars = torch.as_tensor(alpha_bars, dtype=torch.float64)
        return cls(bars.sqrt(), (1 - bars).sqrt(), torch.as_tensor(times, dtype=torch.float64), eta)

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
        """(A, B, s) of x' = A x + B D(x) + s z from level k to k + 1.

        s is eta times the standard deviation of x' given x and x0 under the noising (DDPM's posterior); the rest of b' goes
        along the present noise (DDIM, arXiv 2010.02502, eq. 12 and 16).
        """
        a, b, a2, b2 = (float(v) for v in (self.a[k], self.b[k], self.a[k + 1], self.b[k + 1]))
        s = self.eta * b2 * math.sqrt(max(1 - (a * b2 / (a2 * b)) ** 2, 0.0))
        along = math.sqrt(max(b2 * b2 - s * s, 0.0)) / b
        return along, a2 - a * along, s

    def realised_share(self) -> float:
        """See ``realised_share``: what is reached from this start with this eta."""
        a, b = float(self.a[0]), float(self.b[0])
        return realised_share(a * a / (a * a + b * b), self.eta)

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


# ------------------------------------------------------------------------------------------------ adjoint matching


def reward_gradient(reward: Reward, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards [B] and their gradients, like ``pictures``.

    Raises:
        ValueError: The reward can't be differentiated.
    """
    x = pictures.detach().requires_grad_()
    with torch.enable_grad():
        values = reward(x)
        if not values.requires_grad:
            raise ValueError("This oracle has no gradient; choose the algorithm 'weighted_regression'.")
        (gradient,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradient


def lean_adjoint(process: Process, base: Denoise, states: Sequence[Tensor], last: Tensor) -> list[Tensor]:
    """The lean adjoints at the levels 1 .. K (arXiv 2409.08861, sec. 5.2): back through the *base* process, without the control.

    adjoint_K = ``last`` = -grad r / alpha, adjoint_k = (d x_{k+1} / d x_k)^T adjoint_{k+1}. Takes the memory of one network at
    a time.

    Args:
        states: x_0 .. x_K of a draw with control.
    """
    adjoints, which = [last], torch.arange(len(last), device=last.device)
    for k in range(process.steps - 1, 0, -1):
        forward, pull, _s = process.step(k)
        x = states[k].detach().requires_grad_()
        with torch.enable_grad():
            (back,) = torch.autograd.grad(base(x, process.time(k, x), which), x, adjoints[-1])
        adjoints.append(forward * adjoints[-1] + pull * back)
    return adjoints[::-1]


@dataclass(frozen=True)
class Targets:
    """What Adjoint Matching regresses on, a row for each picture and step.

    Attributes:
        x: [N, ...] states.
        times: [N].
        shift: [N, ...] like x: what D_tuned - D shall be on average.
        price: [N]: (B / s)^2 / 2, by which a squared shift becomes a KL, and by which a row counts.
        stands_for: [N]: how many steps a row stands for where their costs are summed: 1 / the chance that its step was chosen.
        which: [N]: the picture of the batch.
    """

    x: Tensor
    times: Tensor
    shift: Tensor
    price: Tensor
    stands_for: Tensor
    which: Tensor

    def rows(self, chosen: Tensor | slice) -> Targets:
        """Some of the rows."""
        return Targets(*(getattr(self, name)[chosen] for name in ("x", "times", "shift", "price", "stands_for", "which")))

    def __len__(self) -> int:
        return len(self.x)


def matching_targets(process: Process, steps: Steps, states: Sequence[Tensor], adjoints: Sequence[Tensor]) -> Targets:
    """Adjoint Matching (arXiv 2409.08861, sec. 5.2) in discrete time: sum |c + s adjoint|^2 / 2 over steps, as a regression.

    c = (B / s) (D_tuned - D) is the control in units of the step's noise; it shall be -s adjoint: the shift -(s^2 / B) adjoint.

    Args:
        steps: The steps k that count, see ``chosen_steps``; none without noise.
        states: x_0 .. x_K.
        adjoints: At the levels 1 .. K, see ``lean_adjoint``.
    """
    rows: list[tuple[Tensor, ...]] = []
    for k, stands_for in steps.items():
        (_forward, pull, s), x = process.step(k), states[k]
        price = (pull / s) ** 2 / 2
        one, which = torch.ones(len(x), device=x.device, dtype=x.dtype), torch.arange(len(x), device=x.device)
        rows.append((x, process.time(k, x), adjoints[k] * -(s * s / pull), one * price, one * stands_for, which))
    return Targets(*(torch.cat(column) for column in zip(*rows, strict=True)))


def matching_loss(shift: Tensor, targets: Targets) -> Tensor:
    """The squared error, by its price, of shifts D_tuned - D, like ``targets.shift``; a sum over rows."""
    return ((shift - targets.shift).flatten(1).square().sum(1) * targets.price).sum()


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


def draw_targets(problem: Problem, generator: torch.Generator, batch: int, steps: Steps) -> tuple[Targets, Tensor]:
    """Fresh draws of the tuned network, what Adjoint Matching regresses on there, and their rewards [B].

    Args:
        steps: Steps that are regressed on, see ``chosen_steps``.
    """
    process, states = problem.process, problem.draw(generator, batch)
    values, gradient = reward_gradient(problem.reward, states[-1])
    adjoints = lean_adjoint(process, problem.base, states, -gradient / problem.alpha)
    return matching_targets(process, steps, states, adjoints), values


def regress(problem: Problem, targets: Targets, pictures: float, part: int = 0, scale: float = 1.0) -> tuple[float, float]:
    """Gradients of the loss a picture, added to the parameters' own; returns the loss and the KL, a picture.

    Args:
        pictures: How many the rows stand for.
        part: Rows that the networks compute at a time; 0 for all.
        scale: Factor of the gradients.
    """
    total = cost = 0.0
    for start in range(0, len(targets), part or len(targets)):
        some = targets.rows(slice(start, start + (part or len(targets))))
        with torch.no_grad():
            base = problem.base(some.x, some.times, some.which)
        shift = problem.tuned(some.x, some.times, some.which) - base
        loss = matching_loss(shift, some) / pictures
        (loss * scale).backward()
        total += loss.item()
        prices = some.price * some.stands_for
        cost += float((shift.detach().flatten(1).square().sum(1) * prices).sum()) / pictures
    return total, cost


def adjoint_step(
    problem: Problem, generator: torch.Generator, batch: int, steps: Steps, *, part: int = 0,
    scale: float = 1.0,
) -> Report:  # fmt: skip
    """Gradients of Adjoint Matching on ``batch`` fresh draws, added to the parameters' own; see ``draw_targets``, ``regress``."""
    targets, values = draw_targets(problem, generator, batch, steps)
    loss, cost = regress(problem, targets, batch, part, scale)
    return Report(loss, values.mean().item(), cost)


def adjoint_matching(
    problem: Problem,
    parameters: Sequence[Tensor],
    updates: int,
    batch: int,
    learning_rate: float,
    generator: torch.Generator,
    *,
    passes: int = 1,
    count: int = 0,
    last: int = 0,
    averaged: float = 0.0,
    watch: Callable[[int, Report], None] | None = None,
) -> list[Report]:
    """Adjoint Matching (arXiv 2409.08861) on plain tensors: any networks, any reward, any schedule.

    Adam, its rate falling as a cosine. For models on ComfyUI's scale there is ``training.finetune``, which can be stopped and
    resumed.

    Args:
        parameters: What ``problem.tuned`` learns.
        updates: Rounds of ``batch`` fresh draws.
        passes: Adam's steps a round, each on another part of the draws' rows: more than one where networks are cheaper than
            draws.
        count: See ``chosen_steps``.
        averaged: Part of the run, at its end, whose parameters are averaged; the mean is what is left.
    """
    mean, first = [p.detach().clone() for p in parameters], updates - round(averaged * updates)
    optimiser = torch.optim.Adam(list(parameters), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    reports = []
    for number in range(updates):
        targets, values = draw_targets(problem, generator, batch, chosen_steps(problem.process, count, last, generator))
        order, loss, cost = torch.randperm(len(targets), generator=generator).to(targets.x.device), 0.0, 0.0
        for rows in order.chunk(passes):
            optimiser.zero_grad(set_to_none=True)
            found = regress(problem, targets.rows(rows), batch * len(rows) / len(order))
            optimiser.step()
            loss, cost = loss + found[0] / passes, cost + found[1] / passes
        schedule.step()
        reports.append(Report(loss, values.mean().item(), cost))
        if number >= first:
            for total, parameter in zip(mean, parameters, strict=True):
                total.lerp_(parameter.detach(), 1 / (number - first + 1))
        if watch:
            watch(number + 1, reports[-1])
    if averaged:
        with torch.no_grad():
            for total, parameter in zip(mean, parameters, strict=True):
                parameter.copy_(total)
    return reports


# --------------------------------------------------------------------------------------------- the other algorithms


def path_kl_step(problem: Problem, generator: torch.Generator, batch: int, scale: float = 1.0) -> Report:
    """Gradients of -E[r] + alpha KL(path || base path), straight through the sampler (arXiv 2402.15194), added.

    Every step is computed again in the backward pass, so memory is that of one network and of the states.
    """
    process, x = problem.process, problem.start(generator, batch)
    cost, which = torch.zeros(batch).to(x), torch.arange(batch, device=x.device)
    for k in range(process.steps):
        forward, pull, s = process.step(k)
        z = problem.noise(generator, x) if s else None

        def one(x: Tensor, k: int = k, forward: float = forward, pull: float = pull, s: float = s, z: Any = z) -> Any:
            time = process.time(k, x)
            tuned = problem.tuned(x, time, which)
            moved = forward * x + pull * tuned
            if not s:
                return moved, x.new_zeros(len(x))
            return moved + s * z, ((tuned - problem.base(x, time, which)) * (pull / s)).flatten(1).square().sum(1) / 2

        x, price = checkpoint(one, x, use_reentrant=False)
        cost = cost + price
    values = problem.reward(x)
    loss = (problem.alpha * cost - values).mean()
    (loss * scale).backward()
    return Report(loss.item(), values.mean().item(), cost.mean().item())


def preview_step(problem: Problem, generator: torch.Generator, batch: int, scale: float = 1.0) -> Report:
    """Gradients of -E[r] through the last step alone, for a quick look. There is no law that this leads to."""
    process, states = problem.process, problem.draw(generator, batch)
    k = process.steps - 1
    forward, pull, _s = process.step(k)
    which = torch.arange(batch, device=states[k].device)
    values = problem.reward(forward * states[k] + pull * problem.tuned(states[k], process.time(k, states[k]), which))
    loss = -values.mean()
    (loss * scale).backward()
    return Report(loss.item(), values.mean().item(), math.nan)


def direct_step(problem: Problem, generator: torch.Generator, batch: int, spread: float = 1.0, scale: float = 1.0) -> Report:
    """Gradients of -r(G(z)) + alpha |G(z) - G_base(z)|^2 / (2 spread^2) for a one-step generator, added.

    The KL between generators' laws can't be had, so a change is paid for picture by picture. What it leads to is not p exp(r /
    alpha): each picture goes to the proximal point of the reward next to it, argmax over y of r(y) - alpha |y - x|^2 /
    (2 spread^2), and pictures that are far from any reward stay where they are. For the tilted law tune the teacher, and
    distil again.

    Args:
        spread: Standard deviation of pictures or latents: the unit of a change. The report's KL is the cost without alpha.
    """
    process, z = problem.process, problem.start(generator, batch)
    which, time = torch.arange(batch, device=z.device), problem.process.time(0, z)
    forward, pull, _s = process.step(0)
    picture = forward * z + pull * problem.tuned(z, time, which)
    with torch.no_grad():
        before = forward * z + pull * problem.base(z, time, which)
    cost = (picture - before).flatten(1).square().sum(1) / (2 * spread**2)
    values = problem.reward(picture)
    loss = (problem.alpha * cost - values).mean()
    (loss * scale).backward()
    return Report(loss.item(), values.mean().item(), cost.mean().item())


def weighted_regression_step(
    tuned: Denoise, drew: Denoise, process: Process, pictures: Tensor, weights: Tensor, levels: Tensor, noise: Tensor
) -> Tensor:
    """The loss of denoising own pictures, each as important as its weight: it leads to the law weights * (their own law).

    For oracles without gradients. With w from ``fdivergence.solve_dual`` the law is q*; in N rounds, each with fresh pictures
    and w^(1 / N), it is as well, and no round's weights are extreme.

    To w |D_tuned - x0|^2 is added 2 (D_tuned - D) (x0 - D), which is 0 on average where D drew the pictures exactly, so it
    moves no optimum: D_tuned - D = E[(w - 1) (x0 - D) | x] / E[w | x]. Where D drew them roughly, as in few steps, it takes off
    what would otherwise be learned of the drawing's own errors, round upon round; and gentle weights leave little noise.

    Args:
        drew: D, the network of the round before.
        pictures: x0 [B, ...], drawn by it.
        weights: [B], of mean 1.
        levels: [B] indices of noisy levels of the process.
        noise: Unit noise like ``pictures``.
    """
    shape = (-1, *[1] * (pictures.ndim - 1))
    a, b = (v.to(pictures)[levels].view(shape) for v in (process.a, process.b))
    which, x, times = (
        torch.arange(len(pictures), device=pictures.device),
        a * pictures + b * noise,
        process.times.to(pictures)[levels],
    )
    with torch.no_grad():
        before = drew(x, times, which)
    after = tuned(x, times, which)
    errors = (after - pictures).square() * weights.to(after).view(shape) + 2 * (after - before) * (pictures - before)
    return (errors * (a / b) ** 2).mean() / 2


# -------------------------------------------------------------------------------------------------------- the start


def tilted_weights(values: Tensor, alpha: float) -> Tensor:
    """exp(value / alpha) of each picture's candidates [B, candidates], divided by its sum over them.

    A candidate without a score (NaN) has weight 0; where none has a score, all weigh the same.
    """
    known = values.nan_to_num(nan=-math.inf)
    best = known.amax(1, keepdim=True)
    return torch.where(best > -math.inf, (known - best) / alpha, 0.0).softmax(1)


def tilted_choice(values: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """One of each picture's candidates, picked in proportion to exp(value / alpha): see ``tilted_weights``.

    Args:
        values: [B, candidates].

    Returns:
        [B] places among the candidates, on the CPU.
    """
    return torch.multinomial(tilted_weights(values, alpha).cpu(), 1, generator=generator)[:, 0]


@dataclass(frozen=True)
class TiltedStart:
    """A start that is tuned as well: picked from many by the value it promises, nu* ∝ nu exp(v(T, .) / alpha).

    For processes with memory (eta below 1), where nothing else makes up for the wrong start.

    Attributes:
        start: Draws from nu.
        value: [B, ...] -> v(T, .) [B].
        alpha: The strength.
        candidates: Starts of which one is picked by its weight.
    """

    start: Callable[[torch.Generator, int], Tensor]
    value: Callable[[Tensor], Tensor]
    alpha: float
    candidates: int = field(default=32)

    def __call__(self, generator: torch.Generator, count: int) -> Tensor:
        """Starts from nu*, as near as so many candidates allow (self-normalised importance resampling)."""
        drawn = self.start(generator, count * self.candidates)
        with torch.no_grad():
            values = self.value(drawn).view(count, self.candidates)
        picked = tilted_choice(values, self.alpha, generator).to(drawn.device)
        return drawn.view(count, self.candidates, *drawn.shape[1:])[torch.arange(count, device=drawn.device), picked]
