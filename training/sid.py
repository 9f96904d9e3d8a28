"""Score identity Distillation, its equations: a one-step generator from a diffusion model, without pictures.

Three networks of one shape: the frozen teacher (the paper's true score network f_phi), the generator G_theta that is
wanted, and the fake score network f_psi that learns what the generator draws. Each is a denoiser D(x, sigma, labels). The
fake score is trained on the generator's pictures as any diffusion model is on a data set; the generator is moved so that
both networks agree about its pictures. ``sid_iteration`` puts the equations together.

Sources: SiD (arXiv 2404.04057), its guided text-to-image form SiD-LSG (2406.01561), its adversarial form SiDA (2410.14919).
Where the paper's formula and the authors' code differ, the code made the published numbers and is followed, and said so.

Noisy pictures are written x = y + sigma n, whatever the network was trained on: a variance-preserving model at timestep t
has sigma = sqrt((1 - abar) / abar) in this form, and its input is x / sqrt(1 + sigma^2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.preconditioning import karras_sigma
from ..samplers.schedules import INIT_SIGMA

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


def finite(*tensors: Tensor) -> Tensor:
    """Which samples [B] are finite in all ``tensors`` [B, ...]. (The official code looks for NaN, which infinities become.)"""
    return torch.stack([t.isfinite().flatten(1).all(1) for t in tensors]).all(0)


def sid_weight(images: Tensor, y_real: Tensor) -> Tensor:
    """w [B, 1, ...] = max(mean |images - y_real|, 1e-5) a sample, without gradient: the scale that a loss is divided by."""
    error = (images - y_real).detach().float().abs()
    return error.mean(tuple(range(1, error.ndim)), keepdim=True).clamp(min=LEAST_WEIGHT)


def generator_loss(
    images: Tensor, y_real: Tensor, y_fake: Tensor, alpha: float = 1.2, weight: Tensor | None = None
) -> Tensor:
    """The generator's loss, element by element: (y_real - y_fake) ((y_real - images) - alpha (y_real - y_fake)) / w.

    This is SiD eq. 23, L~_theta = (1 - alpha) omega / sigma^4 ||f_phi - f_psi||^2 + omega / sigma^4 (f_phi - f_psi)^T (f_psi -
    x_g), with omega / sigma^4 = 1 / w: since f_psi - x_g = (f_phi - x_g) - (f_phi - f_psi), both read the same. The paper
    divides by the mean absolute error over all dimensions C and multiplies by C (eq. 24); the code, followed here, divides
    by the mean error per element and sums, which is the same, and clips it at 1e-5. Samples that aren't finite are dropped, so
    the result may have fewer rows. Sum it, and multiply by 100 / batch, as the official runs do.

    Args:
        images: The generator's pictures x_g [B, C, H, W], with their gradient.
        y_real: The teacher's denoised x_g + sigma n, with gradient to ``images``.
        y_fake: The fake score network's.
        alpha: 1.2 in most of the official runs, 1.0 in the rest.
        weight: [B, 1, ...] in place of 1 / w, see ``tilted``.

    Returns:
        [B', C, H, W], B' <= B.
    """
    keep = finite(images, y_real, y_fake)
    if not keep.all():
        images, y_real, y_fake = images[keep], y_real[keep], y_fake[keep]
        weight = None if weight is None else weight[keep]
    difference = y_real - y_fake
    loss = difference * ((y_real - images) - alpha * difference)
    return loss / sid_weight(images, y_real) if weight is None else loss * weight


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

    Samples that aren't finite are dropped. Sum it and divide by the batch.

    Args:
        images: The generator's pictures [B, C, H, W], without gradient.
        D_fake: Its denoised images + sigma n.
        sigma: [B, 1, 1, 1].
        weight: ``edm_weight``, or ``epsilon_weight`` for epsilon- and v-prediction.
    """
    keep = finite(images, D_fake)
    if not keep.all():
        images, D_fake, sigma = images[keep], D_fake[keep], sigma[keep]
    return weight(sigma) * (D_fake - images) ** 2


def guided(denoise: Denoise, x: Tensor, sigma: Tensor, labels: Labels, empty: Labels, kappa: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598, eq. 6, with kappa = 1 + w), one call on both; kappa 1 is D(labels) alone.

    D = D(empty) + kappa (D(labels) - D(empty)).

    Raises:
        ValueError: There is no empty condition of the labels' kind.
    """
    if kappa == 1:
        return denoise(x, sigma, labels)
    both = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), _join(empty, labels))
    without, given = both.chunk(2)
    return without + kappa * (given - without)


def _join(first: Labels, second: Labels) -> Labels:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {key: torch.cat([first[key], value]) for key, value in second.items()}
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    raise ValueError("Guidance needs the empty condition, of the same kind as the labels.")


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
    denoise: Denoise, z: Tensor, labels: Labels, sigmas: Sequence[float] = (INIT_SIGMA,), between: Sequence[Tensor] = (),
    noising: Callable[[Tensor, Tensor, Tensor], Tensor] = add_noise,
) -> Tensor:  # fmt: skip
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


def as_arguments(labels: Labels) -> Mapping[str, Tensor | None]:
    """Labels as the arguments of an ``EDMPrecond``: one-hot classes, or its arguments by name."""
    return labels if isinstance(labels, Mapping) else {"class_labels": labels}


def edm_denoise(network: nn.Module) -> Denoise:
    """An ``EDMPrecond`` as a denoiser of this file."""
    return lambda x, sigma, labels: network(x, sigma, **as_arguments(labels))
