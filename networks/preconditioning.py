"""EDM's noise levels and preconditioning (Karras et al., arXiv 2206.00364): equation 5, and the last column of Table 1.

``sigma`` is a tensor that broadcasts with the pictures, such as [B, 1, 1, 1]; ``sigma_data`` is the standard deviation of what is
drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor


def karras_sigma(ramp: Tensor, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Equation 5: the noise level at ``ramp`` in 0..1, from ``sigma_max`` down to ``sigma_min``."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Equation 5's schedule: ``steps`` noise levels from ``sigma_max`` to ``sigma_min``, then 0; float32 [steps + 1]."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([karras_sigma(ramp, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)]).float()


def scaled_input(x: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """c_in x, which has unit variance: c_in = 1 / sqrt(sigma^2 + sigma_data^2)."""
    return x / (sigma**2 + sigma_data**2).sqrt()


def noise_label(sigma: Tensor) -> Tensor:
    """c_noise = ln(sigma) / 4."""
    return sigma.log() / 4


def denoised(x: Tensor, f: Tensor, sigma: Tensor, sigma_data: float = 0.5, squared_last: bool = False) -> Tensor:
    """D(x; sigma) = c_skip x + c_out F (equation 7), for F = ``f`` of ``scaled_input`` and ``noise_label``.

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2), c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2).

    Args:
        squared_last: Round c_skip as the square of a quotient, as the tiny world's figures are; else as EDM's code does.
    """
    variance = sigma**2 + sigma_data**2
    c_skip = (sigma_data / variance.sqrt()) ** 2 if squared_last else sigma_data**2 / variance
    return x * c_skip + f * (sigma * sigma_data / variance.sqrt())
