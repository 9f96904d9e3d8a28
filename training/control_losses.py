"""The gradients of one update by each algorithm of fine-tuning by an oracle; conventions and equations are ``control``'s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .control import Denoise, Problem, Process, Report, Reward, Steps

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
    """The lean adjoints at the levels 1 .. K (arXiv 2409.08861, eq. 38-39): back through the *base* process, without the control.

    adjoint_K = ``last`` = -grad r / alpha (eq. 39), adjoint_k = (d x_{k+1} / d x_k)^T adjoint_{k+1} (eq. 38 in discrete time).
    Takes the memory of one network at a time.

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
        price: [N]: (B / s)^2 / 2, by which a squared shift becomes a KL (``control``, eq. 7), and by which a row counts.
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
    """Adjoint Matching (arXiv 2409.08861, eq. 37) in discrete time: sum |c + s adjoint|^2 / 2 over steps, as a regression.

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
    """Eq. 37: the squared error, by its price, of shifts D_tuned - D, like ``targets.shift``; a sum over rows."""
    return ((shift - targets.shift).flatten(1).square().sum(1) * targets.price).sum()


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


# --------------------------------------------------------------------------------------------- the other algorithms


def path_kl_step(problem: Problem, generator: torch.Generator, batch: int, scale: float = 1.0) -> Report:
    """Gradients of -E[r] + alpha KL(path || base path), straight through the sampler (arXiv 2402.15194), added.

    The KL is the sum of ``control``'s eq. 7 over the path.

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
    which, times = torch.arange(len(pictures), device=pictures.device), process.times.to(pictures)[levels]
    x = a * pictures + b * noise
    with torch.no_grad():
        before = drew(x, times, which)
    after = tuned(x, times, which)
    errors = (after - pictures).square() * weights.to(after).view(shape) + 2 * (after - before) * (pictures - before)
    return (errors * (a / b) ** 2).mean() / 2
