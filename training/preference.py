"""Preferences without a judge: a network learns from pairs of which one was liked better (Diffusion-DPO, arXiv 2311.12908).

A picture's implicit reward is how much better than before the network denoises it:

    (1) s(x0) = E (|D_base(x) - x0|^2 - |D(x) - x0|^2) / v      a mean over values, levels and noise; v from ``expected_errors``
    (2) loss = -log sigmoid(beta / 2 (s(better) - s(worse)))    for an artist who prefers by Bradley-Terry

which is Diffusion-DPO's loss, its errors of eps being errors of D over b^2 / a^2; v is that where there is little noise, and the
pictures' own variance where there is much, so that no level is lost. beta means what it does there (they take 2,000 to 5,000).

Which noise? Diffusion-DPO takes fresh one. Where seed and place of a picture are known, there is the noise that it was drawn
from; PNAPO (arXiv 2605.09433) trains on the line between that and the picture, near the way on which it came. Both are here:
the noise is an argument. A one-step student makes the picture itself of its own noise, so there eq. 1 has no gradient: a pair
shares the noise of one of the two, from which the student shall come closer to the better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .control import Denoise, Process
from .loop import Ema, Interrupted, Learner, Means, Schedule, Watch, run
from .run_folder import RunFolder


def expected_errors(process: Process, spread: float) -> Tensor:
    """v [K + 1]: the variance of x0 given x at each level, for pictures of deviation ``spread``, as if they were Gaussian."""
    clean, noise = (process.a * spread) ** 2, process.b**2
    return spread**2 * noise / (clean + noise)


def implicit_reward(after: Tensor, base: Tensor, pictures: Tensor, errors: Tensor) -> Tensor:
    """Eq. 1 of each row [N], at one level and noise.

    Args:
        after: D [N, ...].
        base: D_base.
        pictures: x0.
        errors: v [N] of each row's level.
    """
    before, now = ((d - pictures).flatten(1).square().mean(1) for d in (base, after))
    return (before - now) / errors


def preference_loss(better: Tensor, worse: Tensor, beta: float) -> Tensor:
    """Eq. 2 of each pair [N], from implicit rewards [N] of its two pictures."""
    return -F.logsigmoid(beta / 2 * (better - worse))


@dataclass(frozen=True)
class Preferences:
    """Pictures, and pairs of them.

    Attributes:
        pictures: [N, ...] latents, as the network has them.
        noise: [N, ...] unit noise that each was drawn from; NaN where that is not known.
        rows: [N] the number of each one's prompt.
        pairs: (better, worse) places.
    """

    pictures: Tensor
    noise: Tensor
    rows: Tensor
    pairs: Sequence[tuple[int, int]]

    @property
    def known(self) -> int:
        """Of how many pictures the noise is known."""
        return int(self.noise.flatten(1).isfinite().all(1).sum())


@dataclass(frozen=True)
class PreferenceSettings:
    """A run's settings.

    Attributes:
        beta: How little the network may change for a preference: higher keeps closer to what it was.
        own_noise: Whether a picture's own noise is taken where it is known.
        updates: Optimiser steps.
        batch: Pairs a step.
        part: Pairs in memory at a time; 0 for the whole batch.
    """

    beta: float = 500.0
    own_noise: bool = True
    updates: int = 200
    batch: int = 4
    part: int = 0
    learning_rate: float = 1e-3
    clip: float = 1.0
    ema_half_life: float = 500.0
    seed: int = 0

    @property
    def schedule(self) -> Schedule:
        """Warm-up, constant, a cosine at the end."""
        return Schedule(self.updates * self.batch, self.batch, self.learning_rate, warmup=0.05, decay=0.5)


@dataclass(frozen=True)
class Player:
    """The network, as it was and as it learns.

    Attributes:
        base, tuned: Of rows of ``Preferences``: their places are what ``which`` says.
        learned: What is learned.
        process: Its levels; all but the last are trained at.
        spread: Deviation of a picture's values.
    """

    base: Denoise
    tuned: Denoise
    learned: torch.nn.Module
    process: Process
    spread: float = 1.0
    device: torch.device | str = "cpu"


def prefer(
    player: Player, given: Preferences, settings: PreferenceSettings, folder: RunFolder, *, watch: Watch | None = None,
    save_every: int = 25,
) -> Ema:  # fmt: skip
    """Learn to the end, or go on; the moving average of what is learned.

    Raises:
        KeyboardInterrupt: It was stopped, and saved; the same call goes on.
        FloatingPointError: A loss is no longer finite.
    """
    watch, parameters = watch or Watch(), list(player.learned.parameters())
    optimiser = torch.optim.Adam(parameters, settings.learning_rate, (0.9, 0.95))
    ema = Ema(player.learned, settings.ema_half_life)

    def step(_number: int, rng: torch.Generator) -> Means:
        optimiser.zero_grad(set_to_none=True)
        try:
            means = _gradients(player, given, settings, rng, watch.interrupted)
        except watch.cancelled_by as cancelled:
            raise Interrupted from cancelled
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimiser.step()
        return {**means, "gradient": float(norm)}

    learner = Learner(player.learned, optimiser, settings.learning_rate)
    run(
        {"tuned": learner}, step, settings.schedule, folder, ema=ema, ema_of=player.learned, seed=settings.seed,
        save_every=save_every, watch=watch,
    )  # fmt: skip
    return ema


def _gradients(
    player: Player, given: Preferences, settings: PreferenceSettings, rng: torch.Generator, interrupted: Callable[[], bool]
) -> Means:  # fmt: skip
    """Gradients of a batch's mean loss, added; the loss, and of how many pairs the better one has the higher implicit reward."""
    batch, pairs = settings.batch, torch.tensor(given.pairs)
    chosen = pairs[torch.randint(len(pairs), (batch,), generator=rng)]
    levels = torch.randint(player.process.steps, (batch,), generator=rng)
    fresh = torch.randn(batch, *given.pictures.shape[1:], generator=rng)
    which = torch.randint(2, (batch, 1), generator=rng)
    means = {"loss": 0.0, "agreement": 0.0}
    for part in torch.arange(batch).split(settings.part or batch):
        if interrupted():
            raise Interrupted
        share, two = len(part) / batch, chosen[part].T.flatten()
        noise = torch.cat([fresh[part]] * 2)  # the same for both, as they do: less of it is left in the difference
        if settings.own_noise:
            shared = chosen[part].gather(1, which[part])[:, 0].repeat(2)
            own = given.noise[shared if player.process.steps == 1 else two]
            noise = torch.where(own.isfinite(), own, noise)
        better, worse = _rewards(player, given.pictures[two], noise, two, levels[part].repeat(2)).chunk(2)
        loss = preference_loss(better, worse, settings.beta).mean() * share
        loss.backward()
        means["loss"] += loss.item()
        means["agreement"] += float((better > worse).float().mean()) * share
    return means


def _rewards(player: Player, pictures: Tensor, noise: Tensor, which: Tensor, levels: Tensor) -> Tensor:
    """Implicit rewards [N] of pictures with this noise at these levels; differentiable."""
    process, shape = player.process, (-1, *[1] * (pictures.ndim - 1))
    pictures, noise = pictures.to(player.device), noise.to(player.device)
    a, b, times = (v.to(pictures)[levels] for v in (process.a, process.b, process.times))
    x = a.view(shape) * pictures + b.view(shape) * noise
    with torch.no_grad():
        base = player.base(x, times, which)
    errors = expected_errors(process, player.spread).to(pictures)[levels]
    return implicit_reward(player.tuned(x, times, which), base, pictures, errors)
