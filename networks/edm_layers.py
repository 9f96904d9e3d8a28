"""Layers of EDM's U-Nets: what computes in the dtype of its input, resampling, the residual block, embeddings of noise levels.

Parameter names are those of the released checkpoints (NVlabs/edm). The code is our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Resampling = Literal["up", "down"]


@dataclass(frozen=True)
class Init:
    """Uniform in +-gain sqrt(3 / fan), which has variance gain^2 / fan.

    Args:
        xavier: fan is the mean of inputs and outputs (Glorot); otherwise it is the inputs (Kaiming).
        weight: Gain of the weights.
        bias: Gain of the biases.
    """

    xavier: bool
    weight: float = 1.0
    bias: float = 0.0

    def fill(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Initialise ``layer`` in place."""
        outputs, inputs = layer.weight.shape[:2]
        kernel = math.prod(layer.weight.shape[2:])
        bound = math.sqrt(3 / (kernel * ((inputs + outputs) / 2 if self.xavier else inputs)))
        nn.init.uniform_(layer.weight, -bound * self.weight, bound * self.weight)
        if layer.bias is not None:
            nn.init.uniform_(layer.bias, -bound * self.bias, bound * self.bias)


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


class Linear(nn.Linear):
    """``nn.Linear`` that computes in the dtype of its input, whatever its weights are stored in."""

    def __init__(self, inputs: int, outputs: int, init: Init, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        init.fill(self)

    def reset_parameters(self) -> None:
        """Leave the initialisation to ``Init``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), _like(self.bias, x))


class GroupNorm(nn.GroupNorm):
    """Up to 32 groups of at least 4 channels; computes in the dtype of its input."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(max(1, min(32, channels // 4)), channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, _like(self.weight, x), _like(self.bias, x), self.eps)


def outer_filter(taps: Sequence[float]) -> Tensor:
    """[1, 1, n, n] filter of sum 1 out of its n one-dimensional ``taps``."""
    f = torch.as_tensor(taps, dtype=torch.float32)
    return torch.outer(f, f)[None, None] / f.sum().square()


class Resample(nn.Module):
    """Halve or double the grid with a separable filter, zeros beyond the edge.

    The filter is a buffer because the released state dicts have it. The 2x2 box needs none: it is the mean of a cell's
    four (down) or a copy to them (up).
    """

    resample_filter: Tensor

    def __init__(self, direction: Resampling, taps: Sequence[float]) -> None:
        super().__init__()
        self.direction, self.box = direction, list(taps) == [1, 1]
        self.register_buffer("resample_filter", outer_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return resample(x, self.direction, None if self.box else self.resample_filter)


def resample(x: Tensor, direction: Resampling, kernel: Tensor | None) -> Tensor:
    """Halve or double the grid of ``x`` [B, C, H, W] with ``kernel`` [1, 1, n, n], n even (``None``: the 2x2 box)."""
    if kernel is None:
        return F.avg_pool2d(x, 2) if direction == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")
    padding, channels = (kernel.shape[-1] - 1) // 2, x.shape[1]
    kernel = kernel.to(x.dtype).expand(channels, -1, -1, -1)
    if direction == "down":
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)


class Conv2d(nn.Conv2d):
    """Convolution of odd kernel that keeps the grid, or resamples it first; computes in the dtype of its input."""

    resample_filter: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, kernel: int, init: Init, direction: Resampling | None = None,
        taps: Sequence[float] = (1, 1),
    ) -> None:  # fmt: skip
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.direction, self.box = direction, list(taps) == [1, 1]
        self.register_buffer("resample_filter", outer_filter(taps) if direction else None)
        init.fill(self)

    def reset_parameters(self) -> None:
        """Leave the initialisation to ``Init``."""

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Convolve ``x``; ``gain`` scales the result by way of the weights, which are far smaller."""
        weight, bias = self.scaled(gain, x.dtype)
        if self.direction is None:
            return F.conv2d(x, weight, bias, padding=self.padding)
        kernel = None if self.box else self.resample_filter
        if self.direction == "up" and weight.shape[-1] == 1:
            # A 1x1 convolution commutes with the filter, and is cheaper on the small grid.
            x = resample(F.conv2d(x, weight), "up", kernel)
            return x if bias is None else x + bias[:, None, None]
        return F.conv2d(resample(x, self.direction, kernel), weight, bias, padding=self.padding)

    def scaled(self, gain: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias times ``gain``."""
        assert self.bias is not None
        weight, bias = (self.weight, self.bias) if gain == 1.0 else (self.weight * gain, self.bias * gain)
        return weight.to(dtype), bias.to(dtype)


class FusedDownConv2d(Conv2d):
    """Convolve, then filter and halve the grid: NCSN++'s residual branch."""

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        weight, bias = self.scaled(gain, x.dtype)
        assert self.resample_filter is not None
        kernel, channels = self.resample_filter.to(x.dtype).expand(x.shape[1], -1, -1, -1), x.shape[1]
        # All channels share one filter, so it commutes with the convolution; filtering first spares the convolution
        # three quarters of its outputs, which halving would drop.
        padding = self.kernel_size[0] // 2 + (kernel.shape[-1] - 1) // 2
        return F.conv2d(F.conv2d(x, kernel, padding=padding, groups=channels), weight, bias, stride=2)


def norm_silu_conv(
    x: Tensor, norm: GroupNorm, conv: Conv2d, modulation: Tensor | None = None, dropout: float = 0.0, gain: float = 1.0,
) -> Tensor:  # fmt: skip
    """gain * conv(dropout(silu(norm(x)))), with ``modulation`` [B, 2C] = (scale - 1, shift) after the norm if given."""
    if on_fast_path(x) and conv.direction is None:
        h = _norm_on_fast_path(x, norm, modulation)
    else:
        h = norm(x)
        if modulation is not None:
            scale, shift = _grid(modulation).chunk(2, dim=1)
            h = torch.addcmul(shift, h, scale + 1)
    return conv(F.dropout(F.silu(h), dropout), gain)


def on_fast_path(x: Tensor) -> bool:
    """Whether ``x`` is for the CPU's own path, channels last: for few pictures its many small steps cost more than it saves."""
    wide = x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and wide and len(x) >= 8 and not torch.is_autocast_enabled("cpu")


def _norm_on_fast_path(x: Tensor, norm: GroupNorm, modulation: Tensor | None) -> Tensor:
    """The group norm with its modulation in one; on small grids by means alone, which PyTorch's kernel is no faster than."""
    scale, shift = norm.weight[None].to(x.dtype), norm.bias[None].to(x.dtype)
    if modulation is not None:
        extra, offset = modulation.chunk(2, dim=1)
        scale, shift = scale * (extra + 1), torch.addcmul(offset, shift, extra + 1)
    if x[0, 0].numel() >= 1024:
        if len(scale) == 1:
            return F.group_norm(x, norm.num_groups, scale[0], shift[0], norm.eps)
        return torch.addcmul(_grid(shift), F.group_norm(x, norm.num_groups, eps=norm.eps), _grid(scale))
    of_groups, width = (len(x), norm.num_groups, -1), x.shape[1] // norm.num_groups
    mean = x.mean((2, 3)).view(of_groups).mean(2)
    centred = x - _grid(mean.repeat_interleave(width, dim=1))
    rstd = (centred.square().mean((2, 3)).view(of_groups).mean(2) + norm.eps).rsqrt()
    return torch.addcmul(_grid(shift), centred, _grid(scale * rstd.repeat_interleave(width, dim=1)))


def _grid(per_channel: Tensor) -> Tensor:
    """[B, C] -> [B, C, 1, 1]."""
    return per_channel.view(*per_channel.shape, 1, 1)


@dataclass(frozen=True)
class BlockStyle:
    """What distinguishes the residual blocks of DDPM++ and NCSN++ from those of ADM.

    Args:
        embedding: Width of the embedding.
        dropout: Probability, before the second convolution.
        eps: Of the group norms.
        skip_scale: What each residual sum is multiplied with.
        adaptive: The embedding scales and shifts the normalised activations; otherwise it is added before the norm.
        head: Channels of an attention head; ``None`` gives one head.
        project_resampled: A resampling block's skip has a 1x1 convolution even where the widths agree.
        taps: Of the resampling filter.
        init: Of ordinary layers.
        init_last: Of the layers that end a residual branch.
        init_attention: Of the layer that makes queries, keys and values.
    """

    embedding: int
    dropout: float
    eps: float
    skip_scale: float
    adaptive: bool
    head: int | None
    project_resampled: bool
    taps: Sequence[float]
    init: Init
    init_last: Init
    init_attention: Init


class UNetBlock(nn.Module):
    """Residual block with an embedding, optional resampling and optional self-attention over the grid."""

    def __init__(
        self, inputs: int, outputs: int, style: BlockStyle, direction: Resampling | None = None, attention: bool = False
    ) -> None:
        super().__init__()
        self.style, self.out_channels = style, outputs
        self.heads = (1 if style.head is None else outputs // style.head) if attention else 0
        self.norm0 = GroupNorm(inputs, style.eps)
        self.conv0 = Conv2d(inputs, outputs, 3, style.init, direction, style.taps)
        self.affine = Linear(style.embedding, outputs * (2 if style.adaptive else 1), style.init)
        self.norm1 = GroupNorm(outputs, style.eps)
        self.conv1 = Conv2d(outputs, outputs, 3, style.init_last)
        self.skip: nn.Module | None = None
        if inputs != outputs or (direction and style.project_resampled):
            self.skip = Conv2d(inputs, outputs, 1, style.init, direction, style.taps)
        elif direction:
            self.skip = Resample(direction, style.taps)
        if self.heads:
            self.norm2 = GroupNorm(outputs, style.eps)
            self.qkv = Conv2d(outputs, 3 * outputs, 1, style.init_attention)
            self.proj = Conv2d(outputs, outputs, 1, style.init_last)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``x`` [B, C, H, W] in the network's dtype, ``embedding`` [B, width] in float32."""
        s = self.style
        h = norm_silu_conv(x, self.norm0, self.conv0)
        # The embedding stays in float32 through its linear layer, whatever dtype the grid has.
        modulation = self.affine(embedding).to(x.dtype)
        if not s.adaptive:
            h = h.add_(_grid(modulation))
        dropout = s.dropout if self.training else 0.0
        h = norm_silu_conv(h, self.norm1, self.conv1, modulation if s.adaptive else None, dropout, gain=s.skip_scale)
        x = h.add_(x if self.skip is None else self.skip(x), alpha=s.skip_scale)
        return self.attend(x).add_(x, alpha=s.skip_scale) if self.heads else x

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over the cells of ``x`` [B, C, H, W], times the skip scale."""
        b, c, height, width = x.shape
        weight, bias = self.qkv.scaled(1.0, x.dtype)
        # The released weights interleave the queries, keys and values of each channel. Reordering the weights, which are
        # small, gives three blocks that the attention kernels can read without a copy.
        weight, bias = (t.view(c, 3, -1).transpose(0, 1).reshape(3 * c, -1) for t in (weight, bias))
        qkv = F.linear(self.norm2(x).flatten(2).transpose(1, 2), weight, bias.flatten())
        q, k, v = qkv.view(b, height * width, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        weight, bias = self.proj.scaled(self.style.skip_scale, x.dtype)
        out = F.linear(attended, weight.flatten(1), bias).transpose(1, 2).view(b, c, height, width)
        return out.contiguous() if x.is_contiguous() else out


class PositionalEmbedding(nn.Module):
    """Cosines, then sines, at geometric frequencies from 1 down to 1/10000 (``endpoint``: which the last one reaches)."""

    def __init__(self, channels: int, endpoint: bool = False) -> None:
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        dtype = torch.promote_types(x.dtype, torch.float32)
        exponents = torch.arange(half, dtype=dtype, device=x.device) / (half - self.endpoint)
        angles = torch.outer(x, (1e-4**exponents).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines, then sines, at random normal frequencies, which are part of the state dict."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, (2 * math.pi * self.freqs).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)
