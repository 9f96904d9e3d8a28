"""One iteration of SiD (arXiv 2404.04057, Algorithm 1): the fake score's step, then the generator's against the new fake score.

The equations are in ``sid``. All randomness is handed in as ``Draws``; the two halves are ``fake_score_objective`` and
``generator_objective``, and ``iterate`` does both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..samplers.schedules import INIT_SIGMA
from .augment import AugmentDraws, augment
from .loop import Interrupted
from .sid import (
    Denoise,
    EdmLevels,
    Labels,
    TimestepLevels,
    add_noise,
    adversarial_loss,
    as_arguments,
    discriminator_logits,
    discriminator_loss,
    edm_denoise,
    edm_weight,
    fake_score_loss,
    finite,
    generate,
    generator_loss,
    guided,
    sid_weight,
)
from .tilted import Tilt, kl_weight, tilted_loss
from .variety import Variety, variety_loss


@dataclass
class Players:
    """The three networks as denoisers, and the parameters of the two that learn.

    ``fake_features`` (for the adversarial option) gives D and the encoder's last features from one pass.
    """

    teacher: Denoise
    fake: Denoise
    generator: Denoise
    fake_parameters: Sequence[Tensor]
    generator_parameters: Sequence[Tensor]
    fake_features: Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class Objective:
    """What is minimised. Defaults are those of the official runs on EDM networks.

    Attributes:
        alpha: See ``generator_loss``.
        sigmas: Levels at which the generator is called; one for a one-step generator.
        kappa1: Guidance of the fake score in its own training.
        kappa2: Guidance of the fake score where the generator is judged (the paper's kappa2 = kappa3).
        kappa4: Guidance of the teacher.
        weight: Of the fake score's loss.
        noising: How pictures and noise are mixed.
        fake_scale: Factor of the fake score's loss (the official ``ls``).
        generator_scale: Factor of the generator's (``lsg``): 100 for EDM networks, 1 for Stable Diffusion.
        adversarial: Factor of the generator's adversarial loss (``lsg_gan``); 0 for none. Needs real pictures.
        discriminator_scale: Factor of the discriminator's (``lsd``).
        augment: Probability of each of EDM's augmentations, where the draws hold any.
        variety: A loss beside the generator's that keeps its variety; none for SiD as published.
        tilt: A reward and its price, towards which the generator is moved; see ``tilted``.
    """

    alpha: float = 1.2
    sigmas: tuple[float, ...] = (INIT_SIGMA,)
    levels: EdmLevels | TimestepLevels = field(default_factory=EdmLevels)
    kappa1: float = 1.0
    kappa2: float = 1.0
    kappa4: float = 1.0
    weight: Callable[[Tensor], Tensor] = edm_weight
    noising: Callable[[Tensor, Tensor, Tensor], Tensor] = add_noise
    fake_scale: float = 1.0
    generator_scale: float = 100.0
    adversarial: float = 0.0
    discriminator_scale: float = 1.0
    augment: float = 0.12
    variety: Variety | None = None
    tilt: Tilt | None = None

    @property
    def caption_dropout(self) -> float:
        """Share of captions left out in the fake step: 10 % when the fake score is ever used with guidance (LSG)."""
        return 0.1 if self.kappa1 != 1 or self.kappa2 != 1 else 0.0


@dataclass
class Draws:
    """All the randomness of half an iteration, for ``batch`` pictures.

    Attributes:
        z: The generator's input [B, C, H, W], standard normal.
        noise: What the picture is noised with, like ``z``.
        level: [B, 1, 1, 1]: u in 0..1 for the generator's half; for the fake score's, what its ``levels.of_fake`` takes
            (``rnd_normal`` for EDM levels, u for timesteps).
        labels: Conditions.
        empty: The empty condition, for guidance.
        between: Noise between the generator's steps.
        real: Real pictures, for the adversarial option.
        augment: The draws of EDM's augmentation, in the fake score's half.
    """

    z: Tensor
    noise: Tensor
    level: Tensor
    labels: Labels = None
    empty: Labels = None
    between: Sequence[Tensor] = ()
    real: Tensor | None = None
    augment: AugmentDraws | None = None

    def __len__(self) -> int:
        return len(self.z)

    def rows(self, part: slice | Tensor) -> Draws:
        """A part of the batch: a slice, or which [B]."""
        return self._change(lambda t: t[part], None if self.augment is None else self.augment.rows(part))

    def split(self, size: int) -> Iterator[Draws]:
        """Parts of at most ``size`` pictures."""
        return (self.rows(slice(start, start + size)) for start in range(0, len(self), size))

    def to(self, device: torch.device | str) -> Draws:
        """On another device."""
        return self._change(lambda t: t.to(device), None if self.augment is None else self.augment.to(device))

    def _change(self, change: Callable[[Tensor], Tensor], augment: AugmentDraws | None) -> Draws:
        return Draws(
            change(self.z), change(self.noise), change(self.level), _map(self.labels, change), _map(self.empty, change),
            [change(n) for n in self.between], None if self.real is None else change(self.real), augment,
        )  # fmt: skip


def with_augmentation(labels: Labels, augment_labels: Tensor) -> dict[str, Tensor]:
    """Conditions that also tell of the augmentation, under the name by which EDM networks take it."""
    if isinstance(labels, Mapping):
        return {**labels, "augment_labels": augment_labels}
    return {"augment_labels": augment_labels} if labels is None else {
        "class_labels": labels, "augment_labels": augment_labels,
    }  # fmt: skip


def _map(labels: Labels, change: Callable[[Tensor], Tensor]) -> Labels:
    if isinstance(labels, Mapping):
        return {key: change(value) for key, value in labels.items()}
    return None if labels is None else change(labels)


@dataclass(frozen=True)
class Loss:
    """The sum of a loss over a part of the batch, before the division by the batch.

    Attributes:
        kept: Which samples [B] are in the sum: those that are finite.
    """

    total: Tensor
    kept: Tensor

    @property
    def dropped(self) -> int:
        """How many aren't."""
        return len(self.kept) - int(self.kept.sum())


def fake_score_objective(players: Players, objective: Objective, draws: Draws) -> Loss:
    """The fake score's loss on the generator's pictures, to be summed over parts and divided by the batch.

    Augmentation is applied here only, never where the generator is judged.
    """
    sigma = objective.levels.of_fake(draws.level)
    with torch.no_grad():
        images = generate(
            players.generator, draws.z, draws.labels, objective.sigmas, draws.between, objective.noising
        )
    if objective.adversarial:
        return _fake_and_discriminator(players, objective, draws, images, sigma)
    labels = draws.labels
    if draws.augment is not None:
        images, augment_labels = augment(images, draws.augment, objective.augment)
        labels = with_augmentation(labels, augment_labels)
    x = objective.noising(images, sigma, draws.noise)
    denoised = guided(players.fake, x, sigma, labels, draws.empty, objective.kappa1)
    denoised = denoised.to(images.dtype)
    loss = fake_score_loss(images, denoised, sigma, objective.weight)
    return Loss(loss.sum() * objective.fake_scale, finite(images, denoised))


def generator_objective(players: Players, objective: Objective, draws: Draws) -> Loss:
    """The generator's loss, to be summed over parts and divided by the batch."""
    sigma = objective.levels.of_generator(draws.level)
    images = generate(players.generator, draws.z, draws.labels, objective.sigmas, draws.between, objective.noising)
    x = objective.noising(images, sigma, draws.noise)
    features = None
    if objective.adversarial and players.fake_features is not None:
        y_fake, features = players.fake_features(x, sigma, draws.labels)
    else:
        y_fake = guided(players.fake, x, sigma, draws.labels, draws.empty, objective.kappa2)
    y_real = guided(players.teacher, x, sigma, draws.labels, draws.empty, objective.kappa4)
    y_fake, y_real = y_fake.to(images.dtype), y_real.to(images.dtype)
    total, kept = _towards_teacher(objective, draws, images, y_real, y_fake)
    if objective.variety is not None:
        apart = variety_loss(
            objective.variety, players.generator, players.teacher, draws.labels, draws.empty, objective.kappa4,
            objective.noising, draws.z, draws.noise, draws.level, images, len(objective.sigmas),
        )  # fmt: skip
        there = apart.isfinite()
        kept, total = kept & there, total + objective.generator_scale * apart[there].sum()
    if features is not None:
        logits = discriminator_logits(features)
        kept = kept & finite(logits)
        against = adversarial_loss(logits[kept], sid_weight(images[kept], y_real[kept]))
        # G = 0.5 SiD + 0.5 GAN, the latter spread over all elements of the picture (the official training loop).
        total = 0.5 * total + 0.5 * against.sum() * images[0].numel() * objective.adversarial
    return Loss(total, kept)


def _towards_teacher(
    objective: Objective, draws: Draws, images: Tensor, y_real: Tensor, y_fake: Tensor
) -> tuple[Tensor, Tensor]:
    """SiD's loss, or the tilted one, summed over the samples that are finite; and which those are [B]."""
    if objective.tilt is None:
        loss, kept = generator_loss(images, y_real, y_fake, objective.alpha), finite(images, y_real, y_fake)
    else:
        weight = kl_weight(objective.levels, objective.noising, draws.level)
        losses = tilted_loss(objective.tilt, images, y_real, y_fake, draws.labels, weight, objective.alpha)
        kept = losses.isfinite()
        loss = losses[kept]
    return loss.sum() * objective.generator_scale, kept


def _fake_and_discriminator(
    players: Players, objective: Objective, draws: Draws, images: Tensor, sigma: Tensor
) -> Loss:
    """The fake score's loss, and its encoder's as a discriminator of real and generated pictures under the same noise."""
    if players.fake_features is None or draws.real is None:
        raise ValueError("The adversarial loss needs real pictures and a network whose encoder can be read; set it to 0.")
    denoised, features = players.fake_features(objective.noising(images, sigma, draws.noise), sigma, draws.labels)
    _, real_features = players.fake_features(objective.noising(draws.real, sigma, draws.noise), sigma, draws.labels)
    fake, real = discriminator_logits(features), discriminator_logits(real_features)
    keep = finite(images, denoised, fake, real)
    loss = fake_score_loss(images[keep], denoised[keep].to(images.dtype), sigma[keep], objective.weight).sum()
    against = discriminator_loss(real[keep], fake[keep], sigma[keep]).sum()
    total = loss * objective.fake_scale + against * objective.discriminator_scale
    return Loss(total, keep)


@dataclass(frozen=True)
class Iteration:
    """What an iteration did: both losses as the official code prints them, and was it cancelled.

    Attributes:
        fake_dropped, generator_dropped: How many samples of each half weren't finite.
    """

    fake_loss: float
    generator_loss: float
    fake_dropped: int
    generator_dropped: int
    cancelled: bool = False

    @property
    def dropped(self) -> int:
        """Of both halves."""
        return self.fake_dropped + self.generator_dropped


def iterate(
    players: Players, fake_optimiser: torch.optim.Optimizer, generator_optimiser: torch.optim.Optimizer, objective: Objective,
    for_fake: Draws, for_generator: Draws, *, part: int = 0, reduce: Callable[[Sequence[Tensor]], None] | None = None,
    batch: int = 0, interrupted: Callable[[], bool] | None = None, cancelled_by: tuple[type[BaseException], ...] = (),
) -> Iteration:  # fmt: skip
    """One iteration: ``fake_score_objective`` is minimised by a step, then ``generator_objective``.

    Args:
        part: Pictures at a time (gradients are accumulated); 0 for all. Changes memory, not the result.
        reduce: Sums gradients over processes, where there are several.
        batch: The batch over all processes; 0 if these draws are all of it.
        interrupted: Asked before every part of the first half. In the second it is too late: the fake score has learned, and
            half an iteration can't be saved.
        cancelled_by: What the networks themselves raise when somebody cancels (ComfyUI's do). In the second half it is begun
            anew and finished, and the iteration says that it was cancelled.

    Raises:
        Interrupted: ``interrupted`` said so; nothing has changed.
    """
    batch, cancelled = batch or len(for_generator), False

    generator_optimiser.zero_grad(set_to_none=True)
    _learn(players.fake_parameters, players.generator_parameters)
    loss = partial(fake_score_objective, players, objective)
    try:
        fake_loss, fake_dropped = _accumulate(fake_optimiser, loss, for_fake, batch, part, interrupted)
    except cancelled_by as error:
        raise Interrupted from error
    _update(fake_optimiser, players.fake_parameters, reduce)
    fake_optimiser.zero_grad(set_to_none=True)  # neither's gradients lie there while the other learns

    _learn(players.generator_parameters, players.fake_parameters)
    loss = partial(generator_objective, players, objective)
    try:
        score_loss, dropped = _accumulate(generator_optimiser, loss, for_generator, batch, part)
    except cancelled_by:
        cancelled = True
        score_loss, dropped = _accumulate(generator_optimiser, loss, for_generator, batch, part)
    _update(generator_optimiser, players.generator_parameters, reduce)
    return Iteration(fake_loss, score_loss, fake_dropped, dropped, cancelled)


def _learn(parameters: Iterable[Tensor], others: Iterable[Tensor]) -> None:
    """Gradients for ``parameters`` alone: where the other network is only passed through, none is computed for it."""
    for parameter in others:
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def _accumulate(
    optimiser: torch.optim.Optimizer, loss: Callable[[Draws], Loss], draws: Draws, batch: int, part: int,
    interrupted: Callable[[], bool] | None = None,
) -> tuple[float, int]:  # fmt: skip
    """Fresh gradients of ``loss`` over ``batch``, part by part; returns its value, and how many samples weren't finite."""
    optimiser.zero_grad(set_to_none=True)
    total, dropped = 0.0, 0
    for rows in draws.split(part or len(draws)):
        if interrupted is not None and interrupted():
            raise Interrupted
        result, kept = _of_finite(loss, rows)
        if result is not None:
            (result / batch).backward()
            total += float(result.detach()) / batch
        dropped += len(rows) - kept
    return total, dropped


def _of_finite(loss: Callable[[Draws], Loss], draws: Draws) -> tuple[Tensor | None, int]:
    """``loss`` of the samples that are finite, and how many those are; None where none is.

    Where some aren't, it is computed anew without them: though the sum leaves them out, 0 times NaN is NaN on the way back, and
    in every weight's gradient.
    """
    while len(draws):
        result = loss(draws)
        if not result.dropped:
            return result.total, len(draws)
        kept = result.kept
        del result  # and all that it holds for the way back
        draws = draws.rows(kept)
    return None, 0


def _update(
    optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], reduce: Callable[[Sequence[Tensor]], None] | None
) -> None:
    if reduce is not None:
        reduce(parameters)
    clean_gradients(parameters)
    optimiser.step()


def clean_gradients(parameters: Iterable[Tensor]) -> None:
    """NaN to 0 and infinities to +-1e5 in every gradient, in place, as in the official loop."""
    for parameter in parameters:
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=parameter.grad)


def edm_players(teacher: nn.Module, fake: nn.Module, generator: nn.Module) -> Players:
    """Three ``EDMPrecond`` networks as players; the adversarial option reads the fake one's encoder."""

    def features(x: Tensor, sigma: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        return fake(x, sigma, **as_arguments(labels), return_features=True)

    teacher.train(False).requires_grad_(False)
    return Players(
        edm_denoise(teacher), edm_denoise(fake), edm_denoise(generator), list(fake.parameters()),
        list(generator.parameters()), features,
    )  # fmt: skip
