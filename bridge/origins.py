"""Where the pictures of a LATENT came from, as files of clicks keep it."""

from __future__ import annotations

import numpy as np
import torch

from ..training.click_origins import MOST_BYTES, Origin
from .info import family_of, info_of
from .rows import Latent


def origins_of(latent: Latent) -> list[Origin | None]:
    """Of each picture; None of those whose latents no file would hold.

    The seed is told where it names the noise that the picture was drawn from: of whole drafts, from ComfyUI's own noise.
    """
    samples, info = latent["samples"], info_of(latent)
    if getattr(samples, "is_nested", False) or 2 * samples[0].numel() > MOST_BYTES:
        return [None] * len(samples)
    known = info is not None and info.plain_noise and not info.teacher
    seed = int(info.seed) if info is not None and known else None
    places, family = latent.get("batch_index") or range(len(samples)), family_of(latent)
    half = samples.detach().float().cpu().clamp(-65504, 65504).to(torch.float16).numpy()
    return [
        Origin(row.copy(), seed, int(place), family) if np.isfinite(row).all() else None
        for row, place in zip(half, places, strict=True)
    ]
