"""The tiny world's autoencoder: 64x64 pictures to latents of 32 channels on an 8x8 grid, and back.

Inside, the grid is 16x16 with 8 channels; two by two of its cells are folded into channels, so that a latent cell
stands for 8x8 pixels, as stock nodes take for granted (EmptyLatentImage, masks, areas).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INNER_CHANNELS = 8
FOLD = 2  # inner cells per latent cell, along each side
LATENT_CHANNELS = INNER_CHANNELS * FOLD**2
COMPRESSION = 8  # pixels per latent cell, along each side
SIGMA_DATA = 0.5  # the standard deviation that latents are scaled to, as EDM expects


class _ResBlock(nn.Module):
    def __init__(self, channels: int, ops: Any) -> None:
        super().__init__()
        self.norm1 = ops.GroupNorm(8, channels)
        self.conv1 = ops.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = ops.GroupNorm(8, channels)
        self.conv2 = ops.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class TinyAutoencoder(nn.Module):
    """Encoder and decoder in one; latents leave it already centred and scaled to ``SIGMA_DATA``.

    Pictures are [B, 3, H, W] in -1..1 with H and W multiples of 8; latents are [B, 32, H/8, W/8].

    Args:
        ops: The namespace that layers are taken from: ``torch.nn``, or ComfyUI's ``comfy.ops`` class.
    """

    def __init__(self, width: int = 48, ops: Any = nn) -> None:
        super().__init__()
        w, w2 = width, 2 * width
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            ops.Conv2d(12, w, 3, padding=1),
            _ResBlock(w, ops),
            ops.Conv2d(w, w2, 3, stride=2, padding=1),
            _ResBlock(w2, ops),
            _ResBlock(w2, ops),
            ops.GroupNorm(8, w2),
            nn.SiLU(),
            ops.Conv2d(w2, 2 * INNER_CHANNELS, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            ops.Conv2d(INNER_CHANNELS, w2, 3, padding=1),
            _ResBlock(w2, ops),
            _ResBlock(w2, ops),
            _ResBlock(w2, ops),
            ops.Conv2d(w2, 4 * w, 3, padding=1),
            nn.PixelShuffle(2),
            _ResBlock(w, ops),
            _ResBlock(w, ops),
            ops.GroupNorm(8, w),
            nn.SiLU(),
            ops.Conv2d(w, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.register_buffer("latent_mean", torch.zeros(INNER_CHANNELS))
        self.register_buffer("latent_std", torch.full((INNER_CHANNELS,), SIGMA_DATA))

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, before centring and scaling: two [B, 8, H/4, W/4]."""
        mean, logvar = self.encoder(images).chunk(2, dim=1)
        return mean, logvar.clamp(-20, 10)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures to latents (the posterior's mean, so that encoding is deterministic)."""
        mean, _ = self.moments(images)
        centred = mean - self._channelwise(self.latent_mean, mean)
        return F.pixel_unshuffle(centred * (SIGMA_DATA / self._channelwise(self.latent_std, mean)), FOLD)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures; values may leave -1..1 a little, as with every decoder."""
        inner = F.pixel_shuffle(latents, FOLD)
        raw = inner * (self._channelwise(self.latent_std, inner) / SIGMA_DATA)
        return self.decoder(raw + self._channelwise(self.latent_mean, inner))

    @staticmethod
    def _channelwise(statistic: Tensor, like: Tensor) -> Tensor:
        return statistic.to(like)[None, :, None, None]
