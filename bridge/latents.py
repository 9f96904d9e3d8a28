"""Latents as ComfyUI hands them from node to node: channels, families, and how many pixels a latent stands for."""

from __future__ import annotations

import inspect
from typing import Any

import comfy.model_patcher
import comfy.sample

from .rows import Latent

RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")


def fit_channels(model: comfy.model_patcher.ModelPatcher, latent: Latent) -> Latent:
    """``latent`` with the model's number of channels where it is empty, as the stock sampler does it.

    Newer ComfyUIs note in an empty latent how many pixels a latent was taken for, so that it can be made as large as it was
    asked for; like the stock sampler this hands that on to ComfyUI and takes it off.

    Raises:
        ValueError: It isn't empty and belongs to another kind of model.
    """
    wanted = model.get_model_object("latent_format").latent_channels
    taken = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    ratios = {key: latent[key] for key in RATIOS if key in latent and key in taken}
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios)
    if samples.shape[1] != wanted:
        raise ValueError(
            f"These latents have {samples.shape[1]} channels, but the model draws in {wanted}: they come from another "
            f"family of models. Encode the picture with this model's VAE, or connect both VAEs."
        )
    return {**without_ratios(latent), "samples": samples}


def without_ratios(latent: Latent) -> Latent:
    """``latent`` without what an empty latent notes of its size in pixels."""
    return {key: value for key, value in latent.items() if key not in RATIOS}


def family(model: comfy.model_patcher.ModelPatcher) -> str:
    """The model's latent family: two models of one family can pass latents to each other."""
    return type(model.get_model_object("latent_format")).__name__


# Where ComfyUI's latent formats don't tell yet; any other takes 8 pixels.
_PIXELS = {
    "Flux2": 16, "Wan22": 16, "SC_Prior": 42, "SC_B": 4, "LTXV": 32, "HunyuanImage21": 32, "HunyuanImage21Refiner": 16,
    "HunyuanVideo15": 16, "ChromaRadiance": 1,
}  # fmt: skip


def pixels_per_latent(kind: Any) -> int:
    """Pixels that a latent of this latent format stands for, along a side."""
    known = (_PIXELS[base.__name__] for base in type(kind).__mro__ if base.__name__ in _PIXELS)
    return int(getattr(kind, "spacial_downscale_ratio", None) or next(known, 8))
