"""Samplers that students need and ComfyUI 0.3.75 lacks, written as ComfyUI's samplers are: one short function each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def tcd_step(x: Tensor, denoised: Tensor, sigma: float, sigma_s: float, sigma_next: float, noise: Tensor) -> Tensor:
    """One step of strategic stochastic sampling (arXiv 2402.19159, Algorithm 4), in ComfyUI's parametrisation.

    With y = x / sqrt(abar) the paper's eq. 21 reads: go deterministically to sigma_s, y_s = x0 + sigma_s eps, then add
    noise up to sigma_next: y = y_s + sqrt(sigma_next^2 - sigma_s^2) z.

    Args:
        x: Latents [B, C, ...] at ``sigma``.
        denoised: The network's picture of them.
        noise: Standard normal, like ``x``.
    """
    eps = (x - denoised) / sigma
    return denoised + sigma_s * eps + math.sqrt(max(sigma_next**2 - sigma_s**2, 0.0)) * noise


@torch.no_grad()
def sample_tcd(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None, disable: bool | None = None,
    noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None, eta: float = 0.3,
) -> Tensor:  # fmt: skip
    """TCD over ``sigmas``; step s is at timestep floor((1 - eta) t_next), as in diffusers' ``TCDScheduler``.

    The last step ends at training timestep 0, whose noise level is small but not 0, and the result is scaled back to
    variance 1: that, too, is what the authors' scheduler does.
    """
    extra_args = extra_args or {}
    sampling = model.inner_model.inner_model.model_sampling
    if noise_sampler is None:
        generator = torch.Generator(device=x.device)
        generator.manual_seed(int(extra_args.get("seed") or 0))

        def noise_sampler(sigma: Tensor, following: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    ones = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        last = float(sigmas[i + 1]) == 0
        next_timestep = 0.0 if last else round(float(sampling.timestep(sigmas[i + 1])))
        sigma_s = float(sampling.sigma(torch.tensor(math.floor((1 - eta) * next_timestep + 1e-6))))
        if last:
            x = tcd_step(x, denoised, float(sigmas[i]), sigma_s, sigma_s, torch.zeros_like(x))
            return x / math.sqrt(1 + sigma_s**2)
        noise = noise_sampler(sigmas[i], sigmas[i + 1])
        x = tcd_step(x, denoised, float(sigmas[i]), sigma_s, float(sigmas[i + 1]), noise)
    return x
