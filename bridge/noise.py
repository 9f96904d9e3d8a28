"""Noise of a part of a batch: to the bit what each picture gets in the whole batch, at the start and between steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import comfy.k_diffusion.sampling as k_sampling
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from .rows import Latent

# Samplers that integrate a Brownian path instead of drawing white noise each step.
_BROWNIAN = frozenset({"dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"})


def batch_noise(latent: Latent, seed: int) -> Tensor:
    """The stock noise of the whole batch: a function of the seed and of each picture's ``batch_index`` alone."""
    return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def step_noise(
    sampler_name: str, function: Callable[..., Any], whole: Tensor, sigmas: Tensor, seed: int, rows: Sequence[int]
) -> dict[str, Any]:
    """The ``noise_sampler`` option that gives ``rows`` the per-step noise they would get in the whole batch.

    Args:
        whole: A tensor of the whole batch's shape, on the sampling device.
        sigmas: The noise levels to be sampled.

    Returns:
        Options for ``KSAMPLER``; empty for samplers that draw no noise between steps.
    """
    if "noise_sampler" not in inspect.signature(function).parameters:
        return {}
    base = sampler_name.removesuffix("_gpu")
    if base in _BROWNIAN:
        positive = sigmas[sigmas > 0]
        if len(positive) == 0:
            return {}
        source = k_sampling.BrownianTreeNoiseSampler(
            whole, positive.min(), sigmas.max(), seed=seed, cpu=base == sampler_name
        )
    else:
        source = k_sampling.default_noise_sampler(whole, seed=seed)
    index = torch.as_tensor(list(rows), device=whole.device)
    return {"noise_sampler": lambda sigma, following: source(sigma, following)[index]}


class RowsSampler(comfy.samplers.KSAMPLER):
    """A stock sampler over some rows of a batch, with the noise of those rows.

    Overrides ``sample`` only to learn the device and noise levels before the sampler starts; what is drawn is unchanged.
    """

    def __init__(self, stock: comfy.samplers.KSAMPLER, name: str, shape: torch.Size, rows: Sequence[int]) -> None:
        super().__init__(stock.sampler_function, dict(stock.extra_options), dict(stock.inpaint_options))
        self.name, self.shape, self.rows = name, shape, list(rows)

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor,
        latent_image: Tensor | None = None, denoise_mask: Tensor | None = None, disable_pbar: bool = False,
    ) -> Tensor:  # fmt: skip
        """See ComfyUI's ``KSAMPLER.sample``."""
        whole = torch.empty((self.shape[0], *noise.shape[1:]), dtype=noise.dtype, device=noise.device)
        seed = extra_args.get("seed")
        if "noise_sampler" not in self.extra_options and seed is not None:
            self.extra_options |= step_noise(self.name, self.sampler_function, whole, sigmas, seed, self.rows)
        if self.inpaint_options.get("random") and denoise_mask is not None:
            return self._sample_random_inpaint(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask,
                                               disable_pbar)  # fmt: skip
        return super().sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)

    def _sample_random_inpaint(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor,
        latent_image: Tensor | None, denoise_mask: Tensor, disable_pbar: bool,
    ) -> Tensor:  # fmt: skip
        """``ddim`` under a mask: the noise over the kept part is drawn by shape, so draw the whole batch's."""
        generator = torch.manual_seed(extra_args.get("seed", 41) + 1)
        kept = torch.randn((self.shape[0], *noise.shape[1:]), generator=generator, device="cpu")[self.rows]
        inner = self.sampler_function

        def with_noise(model: Any, *args: Any, **kwargs: Any) -> Tensor:
            model.noise = kept.to(noise)
            return inner(model, *args, **kwargs)

        stock = comfy.samplers.KSAMPLER(with_noise, self.extra_options, {})
        return stock.sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
