"""A quick look at latents with ComfyUI's own preview decoders: TAESD, or the linear map."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import torch
from torch import Tensor, nn

from .latents import pixels_per_latent
from .memory import on_device
from .pixels import require_tensor, to_pixels
from .rows import Latent


def fast_decode(model: comfy.model_patcher.ModelPatcher, latent: Latent) -> Tensor:
    """Pictures [B, H, W, 3] in 0..1 by ComfyUI's own preview decoders: TAESD where its file is there, else the linear map.

    Both give full-size pictures; the linear map's are blurred. Decodes eight at a time; videos' frames are pictures.

    Raises:
        ValueError: The model's family has neither.
    """
    kind = model.get_model_object("latent_format")
    raw = require_tensor(latent)
    path = _taesd_file(kind)
    if path is not None and kind.taesd_decoder_name in latent_preview.VIDEO_TAES:
        return to_pixels(_video_taesd(path), raw).clamp(0, 1)
    samples = kind.process_in(raw)
    if samples.ndim == 5:
        samples = samples.movedim(2, 1).flatten(0, 1)
    if path is not None:
        network = _taesd(path, kind.latent_channels)
        with on_device(network) as device:
            parts = [network.decode(part.to(device).float()).float().cpu() for part in samples.split(8)]
        return ((torch.cat(parts) + 1) / 2).clamp(0, 1).movedim(1, -1)
    if kind.latent_rgb_factors is None:
        raise ValueError(
            f"There is no fast decoder for {type(kind).__name__}; choose 'full decode', or put its TAESD into models/vae_approx."
        )
    previewer = latent_preview.Latent2RGBPreviewer(
        kind.latent_rgb_factors, kind.latent_rgb_factors_bias, getattr(kind, "latent_rgb_factors_reshape", None)
    )
    reshape = previewer.latent_rgb_factors_reshape or (lambda x: x)
    factors, bias = previewer.latent_rgb_factors.to(samples.device, torch.float32), previewer.latent_rgb_factors_bias
    bias = None if bias is None else bias.to(samples.device, torch.float32)
    small = nn.functional.linear(reshape(samples.float()).movedim(1, -1), factors, bias)
    size = tuple(side * pixels_per_latent(kind) for side in samples.shape[-2:])
    shown = nn.functional.interpolate(small.movedim(-1, 1), size, mode="bicubic").movedim(1, -1)
    return ((shown + 1) / 2).clamp(0, 1)


def _taesd_file(kind: Any) -> str | None:
    """The decoder's file in models/vae_approx, or None."""
    name = kind.taesd_decoder_name
    if name is None:
        return None
    file = next((f for f in folder_paths.get_filename_list("vae_approx") if f.startswith(name)), None)
    return folder_paths.get_full_path("vae_approx", file) if file else None


@lru_cache(maxsize=2)
def _taesd(path: str, channels: int) -> Any:
    from comfy.taesd.taesd import TAESD

    return TAESD(None, path, latent_channels=channels).train(False)


@lru_cache(maxsize=1)
def _video_taesd(path: str) -> Any:
    """A small decoder for video as a VAE, as the stock VAE loader makes it: it takes latents as they are."""
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(path))
    vae.first_stage_model.show_progress_bar = False
    return vae
