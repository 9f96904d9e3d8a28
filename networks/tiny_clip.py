"""The tiny world's CLIP: a picture tower and a text tower that meet in one space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tiny_text import Block, TinyTextEncoder


class TinyImageTower(nn.Module):
    """Pictures [B, 3, 64, 64] in -1..1 to features [B, embed]: a convolution stem, then a small ViT on 8x8 patches."""

    def __init__(self, width: int, layers: int, embed: int, ops: Any = nn) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ops.Conv2d(3, width // 4, 3, stride=2, padding=1),
            ops.GroupNorm(4, width // 4),
            nn.GELU(),
            ops.Conv2d(width // 4, width // 2, 3, stride=2, padding=1),
            ops.GroupNorm(4, width // 2),
            nn.GELU(),
            ops.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.position = nn.Parameter(torch.randn(64, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, width // 32, ops) for _ in range(layers))
        self.norm, self.project = ops.LayerNorm(width), ops.Linear(width, embed)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.norm(self.layers(images)[-1].mean(1)))

    def layers(self, images: Tensor) -> list[Tensor]:
        """What each block says of the patches: [B, 64, width], one a block."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        outputs = [x + self.position.to(x)]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return outputs[1:]


class TinyClip(nn.Module):
    """Both towers and the temperature.

    Args:
        vocabulary: Token ids, see ``Vocabulary``.
        width: Channels of the picture tower; a multiple of 32.
        text_width: Channels of the text tower; a multiple of 32.
        embed: Size of the common space.
    """

    def __init__(
        self, vocabulary: int, width: int = 160, layers: int = 3, text_width: int = 96, embed: int = 96, ops: Any = nn,
    ) -> None:  # fmt: skip
        super().__init__()
        self.visual = TinyImageTower(width, layers, embed, ops)
        self.text = TinyTextEncoder(vocabulary, text_width, 2, text_width // 32, ops)
        self.text_projection = ops.Linear(text_width, embed)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))  # ln(1 / 0.07), as in CLIP

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit features [B, embed] of pictures [B, 3, H, W] in -1..1; other sizes are resampled to 64x64."""
        return F.normalize(self.visual(_resampled(images)).float(), dim=-1)

    def look(self, images: Tensor) -> Tensor:
        """The same pictures before they are told in words: each block's mean over the patches, [B, layers x width].

        The first blocks see colours and edges, which the common space with texts has mostly forgotten.
        """
        return torch.cat([layer.float().mean(1) for layer in self.visual.layers(_resampled(images))], dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Unit features [B, embed] of token ids [B, 16]."""
        return F.normalize(self.text_projection(self.text(ids)[:, 0]).float(), dim=-1)


def _resampled(images: Tensor) -> Tensor:
    return images if images.shape[-2:] == (64, 64) else F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
