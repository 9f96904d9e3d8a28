"""The tiny world's diffusion network: a small U-Net over latents, conditioned on words; and its ControlNet.

It computes F of EDM (arXiv 2206.00364, eq. 7): the caller scales the input by c_in and combines the output with c_skip
and c_out, as ComfyUI does for ``ModelType.EDM``. ``timesteps`` is c_noise = ln(sigma) / 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .preconditioning import denoised, noise_label, scaled_input
from .tiny_autoencoder import FOLD, LATENT_CHANNELS


def noise_embedding(c_noise: Tensor, width: int) -> Tensor:
    """Sines and cosines of ``c_noise`` [B] at geometric frequencies: [B, width]."""
    frequencies = torch.exp(torch.linspace(0, math.log(32.0), width // 2, device=c_noise.device, dtype=torch.float32))
    angles = c_noise.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    """Two convolutions with group norm; the embedding scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int, ops: Any) -> None:
        super().__init__()
        self.norm1, self.conv1 = ops.GroupNorm(16, inputs), ops.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = ops.Linear(embedding, 2 * outputs)
        self.norm2, self.conv2 = ops.GroupNorm(16, outputs), ops.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = ops.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Every cell attends to all words and, where the grid is coarse enough to afford it, to all cells."""

    def __init__(self, channels: int, context: int, cells: bool, ops: Any, head: int = 32) -> None:
        super().__init__()
        self.heads, self.cells = channels // head, cells
        self.norm = ops.GroupNorm(16, channels)
        self.queries = ops.Linear(channels, 3 * channels if cells else channels)
        self.words = ops.Linear(context, 2 * channels)
        self.out = ops.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q = self.queries(self.norm(x).flatten(2).transpose(1, 2))
        k, v = self.words(context).chunk(2, dim=-1)
        if self.cells:
            q, cell_k, cell_v = q.chunk(3, dim=-1)
            k, v = torch.cat([cell_k, k], dim=1), torch.cat([cell_v, v], dim=1)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        # Written out: on grids this small the fused kernel's backward pass is several times slower on a CPU.
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        attended = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return x + self.out(attended).transpose(1, 2).reshape(b, c, h, w)


class Stage(nn.Module):
    """A residual block, then attention: to ``words``, to words and ``cells``, or none (``""``)."""

    def __init__(self, inputs: int, outputs: int, embedding: int, context: int, attend: str, ops: Any) -> None:
        super().__init__()
        self.block = ResBlock(inputs, outputs, embedding, ops)
        self.attention = Attention(outputs, context, attend == "cells", ops) if attend else None

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        x = self.block(x, embedding)
        return self.attention(x, context) if self.attention is not None else x


class _Trunk(nn.Module):
    """What U-Net and ControlNet share: the embedding and the way down.

    Args:
        channels: Latent channels.
        width: Channels on the fine grid; a multiple of 32.
        deep: Channels on the coarse grid; a multiple of 32.
        context: Width of the word vectors.
        dtype: What ComfyUI computes in; kept for its model classes.
        operations: ``torch.nn``, or ComfyUI's ``comfy.ops`` class, which adds LoRA and offloading.
    """

    def __init__(
        self, channels: int = LATENT_CHANNELS, width: int = 64, deep: int = 128, context: int = 128,
        device: torch.device | None = None, dtype: torch.dtype = torch.float32, operations: Any = nn, **_ignored: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        ops, self.dtype = operations, dtype
        self.width = width
        self.embedding = 4 * width
        self.noise1, self.noise2 = ops.Linear(width, self.embedding), ops.Linear(self.embedding, self.embedding)
        self.prompt = ops.Linear(context, self.embedding)
        self.conv_in = ops.Conv2d(channels // FOLD**2, width, 3, padding=1)
        e = self.embedding
        self.down = nn.ModuleList(
            [
                Stage(width, width, e, context, "", ops),
                Stage(width, width, e, context, "words", ops),
                ops.Conv2d(width, deep, 3, stride=2, padding=1),
                Stage(deep, deep, e, context, "cells", ops),
                Stage(deep, deep, e, context, "cells", ops),
            ]
        )
        self.middle = nn.ModuleList(
            [Stage(deep, deep, e, context, "cells", ops), Stage(deep, deep, e, context, "", ops)]
        )
        self._finish(channels, width, deep, context, ops)

    def _finish(self, channels: int, width: int, deep: int, context: int, ops: Any) -> None:
        """Make what follows the way down."""
        raise NotImplementedError

    def embed(self, timesteps: Tensor, context: Tensor) -> Tensor:
        """Noise level and the summary of the prompt in one vector [B, 4 width]."""
        noise = noise_embedding(timesteps, self.width).to(context.dtype)
        return F.silu(self.noise2(F.silu(self.noise1(noise))) + self.prompt(context[:, 0]))

    def descend(self, x: Tensor, embedding: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The middle's output and the skips, from fine to coarse."""
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding, context) if isinstance(layer, Stage) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding, context)
        return x, skips


class TinyUNet(_Trunk):
    """F(c_in x; c_noise, words)."""

    def _finish(self, channels: int, width: int, deep: int, context: int, ops: Any) -> None:
        e = self.embedding
        self.up = nn.ModuleList(
            [
                Stage(2 * deep, deep, e, context, "cells", ops),
                Stage(2 * deep, deep, e, context, "cells", ops),
                Stage(2 * deep, deep, e, context, "", ops),
                ops.Conv2d(deep, 4 * width, 1),
                Stage(2 * width, width, e, context, "words", ops),
                Stage(2 * width, width, e, context, "words", ops),
                Stage(2 * width, width, e, context, "", ops),
            ]
        )
        self.norm_out, self.conv_out = ops.GroupNorm(16, width), ops.Conv2d(width, channels // FOLD**2, 3, padding=1)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, control: dict[str, list[Tensor | None]] | None = None,
        transformer_options: dict[str, Any] | None = None, **_ignored: Any,
    ) -> Tensor:  # fmt: skip
        """Compute F.

        Args:
            x: Scaled noisy latents [B, channels, H, W].
            timesteps: c_noise [B].
            context: Word vectors [B, words, context].
            control: Residuals of a ControlNet: ``middle`` (one) and ``output`` (one a skip, fine to coarse).
        """
        embedding = self.embed(timesteps, context)
        h, skips = self.descend(self.conv_in(F.pixel_shuffle(x, FOLD)), embedding, context)
        h = _add(h, _take(control, "middle"))
        for layer in self.up:
            if isinstance(layer, Stage):
                h = torch.cat([h, _add(skips.pop(), _take(control, "output"))], dim=1)
                h = layer(h, embedding, context)
            else:
                h = F.pixel_shuffle(layer(h), 2)
        return F.pixel_unshuffle(self.conv_out(F.silu(self.norm_out(h))), FOLD)


class TinyControlNet(_Trunk):
    """A copy of the way down that also sees a picture of edges, and answers with residuals for ``TinyUNet``.

    The hint is [B, 3, 8H, 8W] in 0..1: white lines on black, as edge detectors give them.
    """

    def _finish(self, channels: int, width: int, deep: int, context: int, ops: Any) -> None:
        self.hint = nn.Sequential(
            nn.PixelUnshuffle(4), ops.Conv2d(48, width, 3, padding=1), nn.SiLU(), ops.Conv2d(width, width, 3, padding=1),
            nn.SiLU(), ops.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip
        sizes = [width, width, width, deep, deep, deep]
        self.zero = nn.ModuleList(ops.Conv2d(c, c, 1) for c in sizes)
        self.zero_middle = ops.Conv2d(deep, deep, 1)

    def start_at(self, unet: TinyUNet) -> None:
        """Copy the trunk of ``unet`` and silence every output, so that training starts from the unchanged U-Net."""
        state = self.state_dict()
        self.load_state_dict({**state, **{k: v for k, v in unet.state_dict().items() if k in state}})
        for layer in (*self.zero, self.zero_middle, self.hint[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor, **_ignored: Any
    ) -> dict[str, list[Tensor | None]]:
        """Residuals ``middle`` and ``output``; the U-Net takes each list from its end."""
        embedding = self.embed(timesteps, context)
        x = self.conv_in(F.pixel_shuffle(x, FOLD)) + self.hint(hint.to(x.dtype))
        h, skips = self.descend(x, embedding, context)
        outputs: list[Tensor | None] = [zero(s) for zero, s in zip(self.zero, skips, strict=True)]
        return {"middle": [self.zero_middle(h)], "output": outputs}


def _take(control: dict[str, list[Tensor | None]] | None, key: str) -> Tensor | None:
    residuals = (control or {}).get(key)
    return residuals.pop() if residuals else None


def _add(h: Tensor, residual: Tensor | None) -> Tensor:
    return h if residual is None else h + residual


class Denoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) around ``network`` (EDM, Table 1), for training and tests."""

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.network, self.sigma_data = network, sigma_data

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor, **extra: Any) -> Tensor:
        """Denoise ``x`` [B, C, H, W] at ``sigma`` [B]."""
        s = sigma.view(-1, 1, 1, 1)
        f = self.network(scaled_input(x, s, self.sigma_data), noise_label(sigma), context, **extra)
        return denoised(x, f.float(), s, self.sigma_data, squared_last=True)


def heun(
    denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Sequence[float] | Tensor
) -> Tensor:
    """EDM Algorithm 1: deterministic Heun from ``noise`` (unit variance) through ``sigmas`` (last 0).

    ``denoise(x, sigma[B]) -> D``.
    """
    sigmas = torch.as_tensor(sigmas, dtype=noise.dtype)
    x = noise * sigmas[0]
    ones = noise.new_ones(len(noise))
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        d = (x - denoise(x, sigma * ones)) / sigma
        predicted = x + (following - sigma) * d
        if following > 0:
            d = (d + (predicted - denoise(predicted, following * ones)) / following) / 2
            predicted = x + (following - sigma) * d
        x = predicted
    return x
