"""Negative-aware fine-tuning on the forward process: for oracles that only score clean pictures (DiffusionNFT, arXiv 2509.16117).

Nothing is differentiated but the network, at noised pictures of its own: no path, no gradient of the reward. Everything here is
said of denoisers D(x, sigma). What networks predict, eps, v, x0 or a flow's velocity, is affine in D at one x and level, so that
mixing predictions is mixing denoisers, and distances differ by a factor of the level, which ``weight`` holds.

    (1) D+ = D_old + beta (D - D_old),  D- = D_old - beta (D - D_old)         the implicit policies
    (2) loss = c / beta E[r |D+ - x0|^2 + (1 - r) |D- - x0|^2] + price |D - D_base|^2

with r in 0..1 the chance that a picture is optimal; r = 1/2 + A / (2 c), A the advantage of a picture over others of its prompt.
Without a price its optimum is D_old + (2 / beta) Cov(r, x0 | x), the paper's theorem on improvement, where D_old is exact.

What a run comes to rest at, D = D_old, follows with A = R - E_q[R] (c cancels, as beta does) and the price u(x0) of each picture:

    (3) Cov_q(R, x0 | x) = E_q[u | x] (D_q - D_p)                            at every x and level; q the tuned law, p the base's

One price for all, u = alpha, is the paper's penalty: its rest is the law p exp(R / alpha) to first order in 1 / alpha, and
exactly where p is Gaussian and R linear. With **u = alpha - A** it is exact for every law: (3) says then that q (c - R) and
alpha p, with c = alpha + E_q[R], have the same noised densities and means at every level, so they are one:

    (4) q = alpha p / (c - R)                                                argmax E_q[R] - alpha KL(p || q), forward KL

which ``fdivergence`` calls forward_kl. So alpha means what it means there, and for small changes what it means with KL. Pictures
better than their like pay less, worse ones more: no kind of picture dies out.

A one-step student has no denoiser: at its level D is the picture that it makes of the noise. There D_old stands for the picture
of noise z, x0 for that of noise z' beside it, of correlation rho, and A for (R(x0) - R(D_old)) / (2 (1 - rho)): pictures move the
way in which better ones lie, among what the student draws anyway. Its law isn't known, so a change is paid for picture by
picture, u = alpha. For D linear and R linear it rests at the same exact mean shift as (3), whatever rho is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .baseline import Baseline
from .control import Report, noisy_steps
from .finetune_task import Settings, Task
from .loop import Interrupted, Watch
from .processes import Processes

BETA, CLIP = 1.0, 5.0  # of eq. 2, as published; advantages count up to CLIP standard deviations
GROUP = 4  # pictures of a prompt in a batch, that advantages are told among
NEAR = 0.7  # rho, of one-step students


def nft_loss(
    after: Tensor, before: Tensor, base: Tensor, pictures: Tensor, optimality: Tensor, price: Tensor, *, adaptive: bool = False,
    beta: float = BETA, clip: float = CLIP,
) -> Tensor:  # fmt: skip
    """Eq. 2 of each row [N].

    Args:
        after: D [N, ...], of the network that learns.
        before: D_old.
        base: D_base.
        pictures: x0, before noise.
        optimality: r [N] in 0..1.
        price: [N], at least 0.
        adaptive: Weigh errors by 1 / mean |D± - x0| of each row, as published. These weights look at x0, so eq. 4 doesn't hold
            to the letter then. And plain errors of D learn most from few pictures: at noise sigma, below the pictures' own
            deviation, what R tells of x0 goes as sigma^2, and what hides it as sigma; estimates are summed best with weights of
            signal over noise squared, which is one for all.
        clip: c.
    """

    def error(mixed: Tensor) -> Tensor:
        off = (mixed - pictures).flatten(1)
        by = 1 / off.detach().abs().mean(1).clamp(min=1e-5) if adaptive else 1.0
        return off.square().mean(1) * by

    positive, negative = error(before + beta * (after - before)), error(before - beta * (after - before))
    change = (after - base).flatten(1).square().mean(1)
    return clip / beta * (optimality * positive + (1 - optimality) * negative) + price * change


def advantages(rewards: Tensor, group: int) -> Tensor:
    """A [N] of rewards [N], ``group`` of a prompt one after the other: above the mean of the *others*, so not biased by oneself.

    Raises:
        ValueError: There is nobody to compare a picture with.
    """
    parts = [part - part.mean() for part in rewards.split(group)]
    if any(len(part) < 2 for part in parts):
        raise ValueError("diffusion_nft compares pictures of one prompt: take a batch_size of 2 or more, but not 4 n + 1.")
    return torch.cat([part * (len(part) / (len(part) - 1)) for part in parts])


def scored(rewards: Tensor, group: int) -> Tensor:
    """Rewards [N], with its group's mean in place of one that is no number: such a picture teaches nothing.

    Raises:
        FloatingPointError: There is no number among them.
    """
    if not bool(rewards.isfinite().any()):
        raise FloatingPointError("The oracle scores none of the pictures (NaN): try it on such pictures, or lower the rate.")
    whole = rewards[rewards.isfinite()].mean()
    parts = [(part, part[part.isfinite()]) for part in rewards.split(group)]
    return torch.cat([torch.where(p.isfinite(), p, known.mean() if len(known) else whole) for p, known in parts])


def neighbours(noise: Tensor, fresh: Tensor, near: float) -> Tensor:
    """Unit noise of correlation ``near`` with ``noise``."""
    return near * noise + math.sqrt(1 - near * near) * fresh


class ForwardProcess:
    """Updates by eq. 2 on fresh pictures of the network as it is: one step each, so that D_old is D itself, and beta cancels."""

    def __init__(self, task: Task, settings: Settings, base: Baseline, processes: Processes, watch: Watch) -> None:
        self.task, self.settings, self.base, self.processes, self.watch = task, settings, base, processes, watch
        self.unit = max(float(base.rewards.std(1).mean()), 1e-12)
        self.price = base.alpha / self.unit

    def step(self, _number: int, rng: torch.Generator) -> Report:
        """A step's gradients, added; this process's part of the mean report."""
        batch, task = self.settings.batch, self.task
        rows = torch.randint(task.prompts, (-(-batch // GROUP),), generator=rng).repeat_interleave(GROUP)[:batch]
        seeds = torch.randint(2**62, (batch,), generator=rng)
        mine = torch.arange(batch)[self.processes.rows(batch)]
        many = self._many(rows, seeds, mine, rng) if task.process.steps > 1 else self._one(rows[mine], seeds[mine])
        lessons, rewards = many
        loss = kl = 0.0
        for part in torch.arange(len(lessons.rows)).split(self.settings.part or len(lessons.rows)):
            if self.processes.count == 1 and self.watch.interrupted():
                raise Interrupted
            value, drift = self._loss(lessons.part(part))
            (value * (share := len(mine) / (batch * len(lessons.rows)))).backward()
            loss, kl = loss + value.item() * share, kl + drift * share
        return Report(loss, float(rewards.sum()) / batch, kl)

    def _many(self, rows: Tensor, seeds: Tensor, mine: Tensor, rng: torch.Generator) -> tuple[Lessons, Tensor]:
        """What is learned from this process's pictures, each at some levels; and their rewards."""
        task, process, noisy = self.task, self.task.process, torch.tensor(noisy_steps(self.task.process))
        count = min(self.settings.count or len(noisy), len(noisy))
        levels = torch.stack([noisy[torch.randperm(len(noisy), generator=rng)[:count]] for _ in rows])[mine].flatten()
        noise = torch.randn(len(rows), count, *task.shape, generator=rng)[mine].flatten(0, 1)
        pictures = task.draw_from(rows[mine], seeds[mine])
        rewards = task.judge(pictures, rows[mine])
        told = scored(self.processes.gather(rewards.to(task.device)).cpu(), GROUP)
        rewards, advantage = told[mine], (advantages(told, GROUP)[mine] / self.unit).repeat_interleave(count)
        pictures, shape = pictures.repeat_interleave(count, 0), (-1, *[1] * (pictures.ndim - 1))
        a, b = (v.to(pictures)[levels].view(shape) for v in (process.a, process.b))
        costs = torch.tensor([len(noisy) * (pull / s) ** 2 / 2 for _along, pull, s in map(process.step, levels.tolist())])
        x, price = a * pictures + b * noise.to(pictures), (self.price - advantage).clamp(min=0)
        lessons = Lessons(x, levels, rows[mine].repeat_interleave(count), pictures, advantage, price, costs)
        return lessons, rewards

    def _one(self, rows: Tensor, seeds: Tensor) -> tuple[Lessons, Tensor]:
        """Likewise of a one-step student: every picture learns from a neighbour, and the neighbour from it."""
        task, unused = self.task, torch.Generator()
        problem = task.problem(rows, 1.0, seeds=seeds)
        first = problem.start(unused, len(rows))
        x = torch.cat([first, neighbours(first, problem.start(unused, len(rows)), NEAR)])
        both, level = torch.cat([rows, rows]), torch.zeros(2 * len(rows), dtype=torch.long)
        with torch.no_grad():
            parts = zip(x.split(task.drawn_at_once), both.split(task.drawn_at_once), strict=True)
            pictures = torch.cat([task.tuned(y, task.process.time(0, y), task.labels(r)) for y, r in parts])
        before, after = task.judge(pictures, both).chunk(2)
        advantage = ((after - before) / (2 * (1 - NEAR) * self.unit)).nan_to_num(0.0, 0.0, 0.0)
        ones, swapped = torch.ones(len(both)), torch.cat(pictures.chunk(2)[::-1])
        price, costs = self.price * ones, ones / (2 * task.spread**2)
        lessons = Lessons(x, level, both, swapped, torch.cat([advantage, -advantage]), price, costs)
        return lessons, scored(before, len(before))

    def _loss(self, some: Lessons) -> tuple[Tensor, float]:
        """Sums of the loss, and of what the change costs: nats a picture (``control``, eq. 7), or in one step as direct pays."""
        task, labels = self.task, self.task.labels(some.rows)
        times = task.process.times.to(some.x)[some.levels]
        after = task.tuned(some.x, times, labels)
        with torch.no_grad():
            base = task.base(some.x, times, labels)
        optimality = (1 + (some.advantage / CLIP).clamp(-1, 1)) / 2
        optimality, price, costs = (value.to(after) for value in (optimality, some.price, some.costs))
        losses = nft_loss(after, after.detach(), base, some.pictures, optimality, price)
        return losses.sum(), float(((after.detach() - base).flatten(1).square().sum(1) * costs).sum())


@dataclass(frozen=True)
class Lessons:
    """What one step learns from: a row for each noisy picture.

    Attributes:
        x: [N, ...] where the network is asked.
        levels: [N] of the process.
        rows: [N] numbers of their prompts.
        pictures: [N, ...] x0.
        advantage: [N] A, in units of the base's deviation.
        price: [N] u, in the same.
        costs: [N] by which a squared change counts in the report.
    """

    x: Tensor
    levels: Tensor
    rows: Tensor
    pictures: Tensor
    advantage: Tensor
    price: Tensor
    costs: Tensor

    def part(self, chosen: Tensor) -> Lessons:
        """Some of the rows."""
        return Lessons(*(getattr(self, each.name)[chosen] for each in fields(self)))
