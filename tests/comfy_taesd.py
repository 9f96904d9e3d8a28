"""TAESD's decoder written out (madebyollin/taesd), on its state dict: what the fast look is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def conv(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    bias = w.get(f"{name}.bias")
    return F.conv2d(x, w[f"{name}.weight"].float(), None if bias is None else bias.float(), padding=1)


def decode(weights: dict[str, Tensor], latents: Tensor) -> Tensor:
    """Pictures [B, 8H, 8W, 3] in 0..1 of scaled latents [B, 4, H, W]."""
    x = conv(weights, "1", (latents / 3).tanh() * 3).relu()
    for layer in range(3, 20):
        if f"{layer}.conv.0.weight" in weights:
            h = conv(weights, f"{layer}.conv.0", x).relu()
            h = conv(weights, f"{layer}.conv.4", conv(weights, f"{layer}.conv.2", h).relu())
            x = (h + x).relu()
        elif f"{layer}.weight" in weights:
            # Every one of these but the last comes after doubling the size.
            x = conv(weights, f"{layer}", x if layer == 19 else F.interpolate(x, scale_factor=2))
    return torch.as_tensor(x).clamp(0, 1).movedim(1, -1)
