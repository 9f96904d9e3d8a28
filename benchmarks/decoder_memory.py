"""What Reward Finetune's way back through SDXL's VAE holds in memory, over the picture's side: computed on the meta device.

Counted is what autograd keeps for the backward pass, at most, for one picture; weights come on top. Nothing is computed, so
that it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..training.lora import checkpoint_blocks
from . import tiny_families as tiny
from .control_memory import Held
from .figures import Claim, Figures, print_table
from .startup import comfyui_home

GIB = 2**30
SIDES = (512, 768, 1024)
SDXL: dict[str, Any] = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
WAYS = {
    "whole, float32": (False, torch.float32), "by blocks, float32": (True, torch.float32),
    "by blocks, bfloat16": (True, torch.bfloat16),
}  # fmt: skip


def held(network: Any, blocks: bool, dtype: torch.dtype, side: int) -> float:
    """GiB for the gradient of one picture of ``side`` pixels with respect to its latents."""
    network = network.to("meta", dtype).requires_grad_(False)
    if blocks:
        checkpoint_blocks(network, smallest=True)
    latents = torch.zeros(1, 4, side // 8, side // 8, device="meta", dtype=dtype, requires_grad=True)
    return Held().measure(lambda: network.decode(latents).sum().backward()) / GIB


def run(sides: Sequence[int] = SIDES) -> Figures:
    """GiB for each way and side, printed as a table.

    Raises:
        FileNotFoundError: There is no ComfyUI in ``$COMFYUI_PATH``.
    """
    comfyui_home()
    tiny.start()
    import comfy.ldm.modules.diffusionmodules.model as networks
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.taesd.taesd import TAESD

    networks.vae_attention = lambda: networks.pytorch_attention  # what GPUs use; the other asks how much memory is free
    makers: dict[str, Callable[[], Any]] = {name: lambda: AutoencoderKL(ddconfig=SDXL, embed_dim=4) for name in WAYS}
    makers["TAESD, float32"] = lambda: TAESD(latent_channels=4)
    figures = Figures("decoder-memory", {"sides": list(sides)})
    for name, make in makers.items():
        blocks, dtype = WAYS.get(name, (True, torch.float32))
        with torch.device("meta"):
            gib = [held(make(), blocks, dtype, side) for side in sides]
        figures.rows.append({"VAE": name, **{f"{side}, GiB": round(g, 1) for side, g in zip(sides, gib, strict=True)}})
        figures.findings[name] = gib
    value = figures.findings["by blocks, bfloat16"][-1] / figures.findings["whole, float32"][-1]
    figures.claims["of_the_whole"] = Claim(value, value, value)
    print_table(figures.rows)
    return figures
