"""Score identity Distillation: a one-step generator from a diffusion model, without pictures.

Three networks of one shape: the frozen teacher (the paper's true score network f_phi), the generator G_theta that is
wanted, and the fake score network f_psi that learns what the generator draws. Each is a denoiser D(x, sigma, labels). The
fake score is trained on the generator's pictures as any diffusion model is on a data set; the generator is moved so that
both networks agree about its pictures.

Sources: SiD (arXiv 2404.04057), its guided text-to-image form SiD-LSG (2406.01561), its adversarial form SiDA (2410.14919).
Where the paper's formula and the authors' code differ, the code made the published numbers and is followed, and said so.

Noisy pictures are written x = y + sigma n, whatever the network was trained on: a variance-preserving model at timestep t
has sigma = sqrt((1 - abar) / abar) in this form, and its input is x / sqrt(1 + sigma^2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.preconditioning import karras_sigma
from ..samplers.schedules import INIT_SIGMA
from .augment import AugmentDraws, augment
from .loop import Interrupted

SIGMA_MIN, SIGMA_MAX, RHO, SIGMA_DATA = 0.002, 80.0, 7.0, 0.5
LEAST_WEIGHT = 1e-5

Labels = Tensor | Mapping[str, Tensor] | None
"""What a network is conditioned on: one-hot classes [B, classes], text vectors, several of them by name, numbers of prompts
[B], or nothing."""


Denoise = Callable[[Tensor, Tensor, Any], Tensor]
"""A network as D(x, sigma, labels): the picture behind ``x`` [B, C, H, W] at noise level ``sigma`` [B, 1, 1, 1].

Latents of video models are [B, C, 1, H, W], and their levels have as many dimensions."""


# ---------------------------------------------------------------------------------------------- noise levels


def noise_level(u: Tensor, tmax: float = 800) -> Tensor:
    """The noise level at which the generator is judged (SiD, Sec. 4 with EDM eq. 5): t = u tmax / 1000 on EDM's scale.

    sigma = (80^(1/7) + (1 - t) (0.002^(1/7) - 80^(1/7)))^7, so t = 0 is the least noise and t = 1 the most.

    Args:
        u: Uniform in 0..1, any shape.
        tmax: Up to which of 1000 timesteps; 1000 for all.

    Returns:
        sigma, of the shape of ``u``.
    """
    t = u * tmax / 1000
    return karras_sigma(1 - t, SIGMA_MIN, SIGMA_MAX, RHO)


def log_normal_level(rnd_normal: Tensor, p_mean: float = -1.2, p_std: float = 1.2) -> Tensor:
    """The noise level at which the fake score is trained (EDM, Table 1): ln sigma = p_mean + p_std rnd_normal."""
    return (rnd_normal * p_std + p_mean).exp()


def timestep_level(u: Tensor, sigmas: Tensor, tmin: int = 20, tmax: int = 980) -> Tensor:
    """The level of a whole timestep, uniform in [tmin, tmax) (SiD-LSG, official code): sigmas[tmin + floor(u (tmax - tmin))].

    Args:
        u: Uniform in [0, 1), any shape.
        sigmas: The model's noise levels [timesteps], rising.
    """
    t = (tmin + (u * (tmax - tmin)).floor()).long().clamp(max=tmax - 1)
    return sigmas.to(u.device)[t].to(u.dtype)


@dataclass(frozen=True)
class EdmLevels:
    """Levels for EDM networks: ``noise_level`` for the generator's loss, log-normal for the fake score's."""

    tmax: float = 800
    p_mean: float = -1.2
    p_std: float = 1.2

    def of_generator(self, u: Tensor) -> Tensor:
        """sigma from ``u``, uniform."""
        return noise_level(u, self.tmax)

    def of_fake(self, rnd_normal: Tensor) -> Tensor:
        """sigma from ``rnd_normal``, standard normal."""
        return log_normal_level(rnd_normal, self.p_mean, self.p_std)

    def draw_fake(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """The randomness that ``of_fake`` takes."""
        return torch.randn(tuple(shape), generator=generator)


@dataclass(frozen=True)
class TimestepLevels:
    """Levels for models with discrete timesteps: uniform in [tmin, tmax), for both losses (SiD-LSG)."""

    sigmas: Tensor
    tmin: int = 20
    tmax: int = 980

    def of_generator(self, u: Tensor) -> Tensor:
        """sigma from ``u``, uniform."""
        return timestep_level(u, self.sigmas, self.tmin, self.tmax)

    def of_fake(self, u: Tensor) -> Tensor:
        """sigma from ``u``, uniform."""
        return self.of_generator(u)

    def draw_fake(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """The randomness that ``of_fake`` takes."""
        return torch.rand(tuple(shape), generator=generator)


# ---------------------------------------------------------------------------------------------------- losses


def not_nan(*tensors: Tensor) -> Tensor:
    """Which samples [B] are free of NaN in all ``tensors`` [B, ...]."""
    bad = torch.stack([t.isnan().flatten(1).any(1) for t in tensors]).any(0)
    return ~bad


def sid_weight(images: Tensor, y_real: Tensor) -> Tensor:
    """w [B, 1, ...] = max(mean |images - y_real|, 1e-5) a sample, without gradient: the scale that a loss is divided by."""
    error = (images - y_real).detach().float().abs()
    return error.mean(tuple(range(1, error.ndim)), keepdim=True).clamp(min=LEAST_WEIGHT)


def generator_loss(images: Tensor, y_real: Tensor, y_fake: Tensor, alpha: float = 1.2) -> Tensor:
    """The generator's loss, element by element: (y_real - y_fake) ((y_real - images) - alpha (y_real - y_fake)) / w.

    This is SiD eq. 23, L~_theta = (1 - alpha) omega / sigma^4 ||f_phi - f_psi||^2 + omega / sigma^4 (f_phi - f_psi)^T (f_psi -
    x_g), with omega / sigma^4 = 1 / w: since f_psi - x_g = (f_phi - x_g) - (f_phi - f_psi), both read the same. The paper
    divides by the mean absolute error over all dimensions C and multiplies by C (eq. 24); the code, followed here, divides
    by the mean error per element and sums, which is the same, and clips it at 1e-5. Samples with NaN are dropped, so the
    result may have fewer rows. Sum it, and multiply by 100 / batch, as the official runs do.

    Args:
        images: The generator's pictures x_g [B, C, H, W], with their gradient.
        y_real: The teacher's denoised x_g + sigma n, with gradient to ``images``.
        y_fake: The fake score network's.
        alpha: 1.2 in most of the official runs, 1.0 in the rest.

    Returns:
        [B', C, H, W], B' <= B.
    """
    keep = not_nan(images, y_real, y_fake)
    if not keep.all():
        images, y_real, y_fake = images[keep], y_real[keep], y_fake[keep]
    difference = y_real - y_fake
    return difference * ((y_real - images) - alpha * difference) / sid_weight(images, y_real)


def edm_weight(sigma: Tensor) -> Tensor:
    """lambda(sigma) = (sigma^2 + 0.5^2) / (0.5 sigma)^2 (EDM, Table 1)."""
    return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2


def epsilon_weight(sigma: Tensor) -> Tensor:
    """1 / sigma^2: with it the error of the picture is the error of the noise, |eps - eps_psi|^2 (SiD-LSG, official code).

    For v-prediction the official code weighs |v - v_psi|^2 with snr / (snr + 1); that is the same number once more.
    """
    return sigma**-2


def fake_score_loss(
    images: Tensor, D_fake: Tensor, sigma: Tensor, weight: Callable[[Tensor], Tensor] = edm_weight
) -> Tensor:
    """The fake score network's loss, element by element: lambda(sigma) (D_fake - images)^2 (EDM eq. 2, on generated pictures).

    Samples with NaN are dropped. Sum it and divide by the batch.

    Args:
        images: The generator's pictures [B, C, H, W], without gradient.
        D_fake: Its denoised images + sigma n.
        sigma: [B, 1, 1, 1].
        weight: ``edm_weight``, or ``epsilon_weight`` for epsilon- and v-prediction.
    """
    keep = not_nan(images, D_fake)
    if not keep.all():
        images, D_fake, sigma = images[keep], D_fake[keep], sigma[keep]
    return weight(sigma) * (D_fake - images) ** 2


def guided(denoise: Denoise, x: Tensor, sigma: Tensor, labels: Labels, empty: Labels, kappa: float) -> Tensor:
    """Classifier-free guidance: D(empty) + kappa (D(labels) - D(empty)), one call on both; kappa 1 is D(labels) alone."""
    if kappa == 1:
        return denoise(x, sigma, labels)
    both = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), _join(empty, labels))
    without, given = both.chunk(2)
    return without + kappa * (given - without)


# ------------------------------------------------------------------------------------- the adversarial option


def discriminator_logits(features: Tensor) -> Tensor:
    """The logit of every patch [B, 1, h, w]: the channel mean of the fake score encoder's last features (SiDA)."""
    return features.mean(1, keepdim=True)


def adversarial_loss(logits: Tensor, weight: Tensor) -> Tensor:
    """The generator's adversarial loss [B, 1, 1, 1]: BCE(logits, real), averaged over batch and patches, / w (SiDA).

    Args:
        logits: ``discriminator_logits`` of the generator's noisy pictures; beyond +-10 they are clamped, as in the code.
        weight: ``sid_weight``.
    """
    return F.binary_cross_entropy_with_logits(logits.clamp(-10, 10), torch.ones_like(logits)).float() / weight


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, sigma: Tensor) -> Tensor:
    """The encoder's loss as a discriminator [B, 1, 1, 1]: lambda(sigma) (BCE(real, 1) + BCE(fake, 0)) / 2 (SiDA)."""
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return edm_weight(sigma) * (real + fake) / 2


# ------------------------------------------------------------------------------------------------- generation


def add_noise(images: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """x = images + sigma noise: EDM's form, in which this file is written."""
    return images + sigma * noise


def generate(
    denoise: Denoise,
    z: Tensor,
    labels: Labels,
    sigmas: Sequence[float] = (INIT_SIGMA,),
    between: Sequence[Tensor] = (),
    noising: Callable[[Tensor, Tensor, Tensor], Tensor] = add_noise,
) -> Tensor:
    """The generator's pictures: G(z) = D(sigma_0 z, sigma_0, labels), then renoise and denoise at every further level.

    One level is SiD's and SiD-LSG's one-step generator. With several, the gradient flows through the last step only: what
    the earlier ones draw is the input of it, so that training costs hardly more than for one step.

    Args:
        z: Standard normal [B, C, H, W].
        sigmas: Noise levels, falling.
        between: The noise of the steps after the first, each like ``z``.
        noising: How pictures and noise are mixed; flow models do it otherwise.
    """
    images = torch.zeros_like(z)
    for number, sigma in enumerate(sigmas):
        level = z.new_full((len(z), *[1] * (z.ndim - 1)), sigma)
        noise = z if number == 0 else between[number - 1]
        last = number == len(sigmas) - 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and last):
            images = denoise(noising(images, level, noise), level, labels)
    return images


# ------------------------------------------------------------------------------------------------ one iteration


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

    def rows(self, part: slice) -> Draws:
        """A part of the batch."""
        return Draws(
            self.z[part], self.noise[part], self.level[part], _rows(self.labels, part), _rows(self.empty, part),
            [n[part] for n in self.between], None if self.real is None else self.real[part],
            None if self.augment is None else self.augment.rows(part),
        )  # fmt: skip

    def split(self, size: int) -> Iterator[Draws]:
        """Parts of at most ``size`` pictures."""
        return (self.rows(slice(start, start + size)) for start in range(0, len(self), size))

    def to(self, device: torch.device | str) -> Draws:
        """On another device."""
        return Draws(
            self.z.to(device), self.noise.to(device), self.level.to(device), _map(self.labels, lambda t: t.to(device)),
            _map(self.empty, lambda t: t.to(device)), [n.to(device) for n in self.between],
            None if self.real is None else self.real.to(device), None if self.augment is None else self.augment.to(device),
        )  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """The sum of a loss over a part of the batch, before the division by the batch, and how many samples had NaN."""

    total: Tensor
    dropped: int


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
    loss = fake_score_loss(images, denoised.to(images.dtype), sigma, objective.weight)
    return Loss(loss.sum() * objective.fake_scale, len(draws) - len(loss))


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
    loss = generator_loss(images, y_real, y_fake, objective.alpha)
    total, dropped = loss.sum() * objective.generator_scale, len(draws) - len(loss)
    if features is None:
        return Loss(total, dropped)
    keep = not_nan(images, y_real, y_fake)
    against = adversarial_loss(discriminator_logits(features), sid_weight(images[keep], y_real[keep]))
    # G = 0.5 SiD + 0.5 GAN, the latter spread over all elements of the picture (the official training loop).
    total = 0.5 * total + 0.5 * against.sum() * images[0].numel() * objective.adversarial
    return Loss(total, dropped)


def _fake_and_discriminator(
    players: Players, objective: Objective, draws: Draws, images: Tensor, sigma: Tensor
) -> Loss:
    """The fake score's loss, and its encoder's as a discriminator of real and generated pictures under the same noise."""
    if players.fake_features is None or draws.real is None:
        raise ValueError("The adversarial loss needs real pictures and a network whose encoder can be read; set it to 0.")
    denoised, features = players.fake_features(objective.noising(images, sigma, draws.noise), sigma, draws.labels)
    _, real_features = players.fake_features(objective.noising(draws.real, sigma, draws.noise), sigma, draws.labels)
    fake, real = discriminator_logits(features), discriminator_logits(real_features)
    keep = not_nan(images, denoised, fake, real)
    loss = fake_score_loss(images[keep], denoised[keep].to(images.dtype), sigma[keep], objective.weight).sum()
    against = discriminator_loss(real[keep], fake[keep], sigma[keep]).sum()
    total = loss * objective.fake_scale + against * objective.discriminator_scale
    return Loss(total, len(draws) - int(keep.sum()))


@dataclass(frozen=True)
class Iteration:
    """What an iteration did: both losses as the official code prints them, how many samples had NaN, was it cancelled."""

    fake_loss: float
    generator_loss: float
    dropped: int
    cancelled: bool = False


def train_step(
    players: Players,
    fake_optimiser: torch.optim.Optimizer,
    generator_optimiser: torch.optim.Optimizer,
    objective: Objective,
    *,
    z: Tensor,
    u: Tensor,
    noise: Tensor,
    rnd_normal: Tensor,
    labels: Labels = None,
    z_fake: Tensor | None = None,
    noise_fake: Tensor | None = None,
    labels_fake: Labels = None,
    augment: AugmentDraws | None = None,
) -> Iteration:
    """One iteration of SiD (Algorithm 1) with all its randomness handed in: the fake score learns, then the generator.

    Args:
        z: Standard normal [B, C, H, W]: the generator's input in its own half; pictures are D(2.5 z, 2.5, labels).
        u: Uniform [B, 1, 1, 1]: at which noise level the generator is judged, see ``noise_level``.
        noise: Standard normal, like ``z``: the noise there.
        rnd_normal: Standard normal [B, 1, 1, 1]: at which level the fake score is trained, see ``log_normal_level``.
        labels: Conditions in the generator's half.
        z_fake: Like ``z``, in the fake score's half; the same as ``z`` if left out. (The official loop draws anew.)
        noise_fake: Likewise.
        labels_fake: Likewise.
        augment: EDM's augmentation in the fake score's half, with probability ``objective.augment``; none if left out.

    Returns:
        The losses, each times its factor and divided by the batch.
    """
    same = z_fake is None
    for_fake = Draws(
        z if z_fake is None else z_fake, noise if noise_fake is None else noise_fake, rnd_normal,
        labels if same and labels_fake is None else labels_fake, augment=augment,
    )  # fmt: skip
    return iterate(players, fake_optimiser, generator_optimiser, objective, for_fake, Draws(z, noise, u, labels))


def iterate(
    players: Players,
    fake_optimiser: torch.optim.Optimizer,
    generator_optimiser: torch.optim.Optimizer,
    objective: Objective,
    for_fake: Draws,
    for_generator: Draws,
    *,
    part: int = 0,
    reduce: Callable[[Sequence[Tensor]], None] | None = None,
    batch: int = 0,
    interrupted: Callable[[], bool] | None = None,
    cancelled_by: tuple[type[BaseException], ...] = (),
) -> Iteration:
    """One iteration on any levels and guidance; ``train_step`` is the front of it that the paper knows.

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

    def accumulate(
        optimiser: torch.optim.Optimizer, loss: Callable[[Draws], Loss], draws: Draws, first: bool
    ) -> tuple[float, int]:
        optimiser.zero_grad(set_to_none=True)
        total, dropped = 0.0, 0
        for rows in draws.split(part or len(draws)):
            if first and interrupted is not None and interrupted():
                raise Interrupted
            result = loss(rows)
            if result.dropped < len(rows):
                (result.total / batch).backward()
            total, dropped = total + float(result.total.detach()) / batch, dropped + result.dropped
        return total, dropped

    def half(
        parameters: Sequence[Tensor],
        others: Sequence[Tensor],
        optimiser: torch.optim.Optimizer,
        loss: Callable[[Draws], Loss],
        draws: Draws,
    ) -> tuple[float, int]:
        nonlocal cancelled
        _learn(parameters, others)
        first = parameters is players.fake_parameters
        try:
            total, dropped = accumulate(optimiser, loss, draws, first)
        except cancelled_by as error:
            if first:
                raise Interrupted from error
            cancelled = True
            total, dropped = accumulate(optimiser, loss, draws, first)
        if reduce is not None:
            reduce(parameters)
        clean_gradients(parameters)
        optimiser.step()
        return total, dropped

    fake, fake_dropped = half(
        players.fake_parameters, players.generator_parameters, fake_optimiser,
        lambda rows: fake_score_objective(players, objective, rows), for_fake,
    )  # fmt: skip
    own, dropped = half(
        players.generator_parameters, players.fake_parameters, generator_optimiser,
        lambda rows: generator_objective(players, objective, rows), for_generator,
    )  # fmt: skip
    return Iteration(fake, own, fake_dropped + dropped, cancelled)


def _learn(parameters: Iterable[Tensor], others: Iterable[Tensor]) -> None:
    """Gradients for ``parameters`` alone: where the other network is only passed through, none is computed for it."""
    for parameter in others:
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def clean_gradients(parameters: Iterable[Tensor]) -> None:
    """NaN to 0 and infinities to +-1e5 in every gradient, in place, as in the official loop."""
    for parameter in parameters:
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=parameter.grad)


# ---------------------------------------------------------------------------------------------------- helpers


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


def _rows(labels: Labels, part: slice) -> Labels:
    return _map(labels, lambda t: t[part])


def _join(first: Labels, second: Labels) -> Labels:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {key: torch.cat([first[key], value]) for key, value in second.items()}
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    raise ValueError("Guidance needs the empty condition, of the same kind as the labels.")


def edm_denoise(network: nn.Module) -> Denoise:
    """An ``EDMPrecond`` as a denoiser of this file; labels are one-hot classes, or arguments of the network by name."""

    def denoise(x: Tensor, sigma: Tensor, labels: Labels) -> Tensor:
        return network(x, sigma, **_as_arguments(labels))

    return denoise


def edm_players(teacher: nn.Module, fake: nn.Module, generator: nn.Module) -> Players:
    """Three ``EDMPrecond`` networks as players; the adversarial option reads the fake one's encoder."""

    def features(x: Tensor, sigma: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        return fake(x, sigma, **_as_arguments(labels), return_features=True)

    teacher.eval().requires_grad_(False)
    return Players(
        edm_denoise(teacher), edm_denoise(fake), edm_denoise(generator), list(fake.parameters()),
        list(generator.parameters()), features,
    )  # fmt: skip


def _as_arguments(labels: Labels) -> Mapping[str, Tensor | None]:
    return labels if isinstance(labels, Mapping) else {"class_labels": labels}
