"""Stock VAE objects with random weights: TAESD's layout for image families, Wan's for those that draw pictures as videos."""

from __future__ import annotations

from functools import cache
from typing import Any

from . import tiny_families as tiny

CHANNELS = {"sd15": 4, "sdxl": 4, "sd3": 16, "flux": 16, "zimage": 16, "qwen": 16, "wan21": 16}


@cache
def vae(name: str) -> Any:
    """A VAE as the stock loader makes it from a file: of a video kind for families whose latents have frames."""
    tiny.start()
    import comfy.ldm.wan.vae
    import comfy.sd
    import comfy.taesd.taesd

    channels = CHANNELS[name]
    if not tiny.FAMILIES[name].video:
        network = comfy.taesd.taesd.TAESD(latent_channels=channels)
        return comfy.sd.VAE(sd=tiny.fill(network, channels).state_dict())
    shape = {"dim": 32, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
    network = comfy.ldm.wan.vae.WanVAE(**shape, temperal_downsample=[False, True, True], dropout=0.0)
    return comfy.sd.VAE(sd=tiny.fill(network, 7).state_dict())
