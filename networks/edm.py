"""The pixel-space networks of EDM and SiD: ``EDMPrecond`` over DDPM++ or NCSN++ (``SongUNet``) or ADM (``DhariwalUNet``).

Equations and tables are those of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
(arXiv 2206.00364). Parameter names and constructor arguments are those of the released checkpoints (NVlabs/edm,
mingyuanzhou/SiD), so that every EDM, SiD and SiDA state dict loads strictly. The code is our own, and made for speed on a
CPU: channels last, and a backward pass that recomputes what is cheap.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..files import UnreadableFile
from .limits import refuse_hollow, refuse_immodest, without_memory

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
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        init: Init,
        direction: Resampling | None = None,
        taps: Sequence[float] = (1, 1),
    ) -> None:
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


class NormSiluConv(torch.autograd.Function):
    """conv(dropout(silu(scale * norm(x) + shift))), keeping only x for the backward pass.

    All but the convolution is elementwise, so computing it again costs little, and spares two of three activations. It has
    no second derivative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        dropout: float,
    ) -> Tensor:
        """``x`` [B, C, H, W]; ``scale`` and ``shift`` [1 or B, C]; ``weight`` of odd, square kernel."""
        h, mean, rstd = _group_norm(x, scale, shift, groups, eps)
        h, mask = F.silu(h, inplace=True), None
        if dropout:
            h, mask = torch.native_dropout(h, dropout, True)
        ctx.save_for_backward(x, scale, shift, weight, mean, rstd, mask)
        ctx.keep = 1.0 - dropout
        return F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight, mean, rstd, mask = ctx.saved_tensors
        need_x, need_weight, need_bias = any(ctx.needs_input_grad[:3]), ctx.needs_input_grad[3], ctx.needs_input_grad[4]
        groups = mean.shape[1]
        mean, rstd = (t.repeat_interleave(x.shape[1] // t.shape[1], dim=1) for t in (mean, rstd))
        slope = scale * rstd
        normed = torch.addcmul(_grid(shift - mean * slope), x, _grid(slope))
        h = F.silu(normed) if need_weight else normed
        if mask is not None:
            h = h * mask / ctx.keep
        padding = [weight.shape[-1] // 2] * 2
        d, d_weight, _ = torch.ops.aten.convolution_backward(
            grad, h, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [need_x, need_weight, False]
        )
        d_bias = grad.sum((2, 3)).sum(0) if need_bias else None
        if not need_x:
            return None, None, None, d_weight, d_bias, None, None, None
        if mask is not None:
            d = d.mul_(mask).div_(ctx.keep)
        torch.ops.aten.silu_backward.grad_input(d, normed, grad_input=d)
        d_x, d_scale, d_shift = _group_norm_backward(d, x, scale, mean, rstd, groups, normed)
        return d_x, d_scale, d_shift, d_weight, d_bias, None, None, None


def _group_norm(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised ``x``, scaled and shifted; means and reciprocal standard deviations [B, groups]."""
    b, c, height, width = x.shape
    if height * width >= 1024:
        if len(scale) == 1:
            return torch.native_group_norm(x, scale[0], shift[0], b, c, height * width, groups, eps)
        normed, mean, rstd = torch.native_group_norm(x, None, None, b, c, height * width, groups, eps)
        return torch.addcmul(_grid(shift), normed, _grid(scale), out=normed), mean, rstd
    # On smaller grids PyTorch's kernel is several times slower than this, if channels come last.
    mean = x.mean((2, 3)).view(b, groups, -1).mean(2)
    centred = x - _grid(mean.repeat_interleave(c // groups, dim=1))
    rstd = (centred.square().mean((2, 3)).view(b, groups, -1).mean(2) + eps).rsqrt()
    slope = scale * rstd.repeat_interleave(c // groups, dim=1)
    return torch.addcmul(_grid(shift), centred, _grid(slope), out=centred), mean, rstd


def _group_norm_backward(
    d: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, groups: int, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x, scale and shift, given ``d`` for scale * (x - mean) * rstd + shift; mean and rstd [B, C].

    Overwrites ``d`` and ``out``, which becomes the first result.
    """
    d_shift = d.sum((2, 3))
    d_scale = (torch.mul(d, x, out=out).sum((2, 3)) - mean * d_shift) * rstd
    # Mean and rstd of a group depend on each of its cells alike.
    shared = (torch.stack([d_shift, d_scale]) * scale).unflatten(2, (groups, -1))
    shared = shared.sum(3, keepdim=True).expand_as(shared).flatten(2) * (rstd * (groups / x[0].numel()))
    linear = -rstd * shared[1]
    d_x = torch.addcmul(_grid(-mean * linear - shared[0]), x, _grid(linear), out=out)
    d_x.addcmul_(d, _grid(scale * rstd))
    return d_x, d_scale.sum_to_size(scale.shape), d_shift.sum_to_size(scale.shape)


def _grid(per_channel: Tensor) -> Tensor:
    """[B, C] -> [B, C, 1, 1]."""
    return per_channel.view(*per_channel.shape, 1, 1)


def norm_silu_conv(
    x: Tensor,
    norm: GroupNorm,
    conv: Conv2d,
    modulation: Tensor | None = None,
    dropout: float = 0.0,
    gain: float = 1.0,
) -> Tensor:
    """gain * conv(dropout(silu(norm(x)))), with ``modulation`` [B, 2C] = (scale - 1, shift) after the norm if given."""
    if not _on_fast_path(x) or conv.direction is not None:
        h = norm(x)
        if modulation is not None:
            scale, shift = _grid(modulation).chunk(2, dim=1)
            h = torch.addcmul(shift, h, scale + 1)
        return conv(F.dropout(F.silu(h), dropout), gain)
    scale, shift = norm.weight[None].to(x.dtype), norm.bias[None].to(x.dtype)
    if modulation is not None:
        extra, offset = modulation.chunk(2, dim=1)
        scale, shift = scale * (extra + 1), torch.addcmul(offset, shift, extra + 1)
    return NormSiluConv.apply(x, scale, shift, *conv.scaled(gain, x.dtype), norm.num_groups, norm.eps, dropout)


def _on_fast_path(x: Tensor) -> bool:
    """Whether ``x`` is for the CPU's own path: for few pictures its many small steps cost more than it saves."""
    wide = x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and wide and len(x) >= 8 and not torch.is_autocast_enabled("cpu")


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


@dataclass(frozen=True)
class Plan:
    """The shape of a U-Net.

    Args:
        grids: Height and width of each level, from fine to coarse.
        widths: Channels of each level.
        stem: Channels of the first convolution.
        blocks: Residual blocks a level (the decoder has one more).
        attention: Grids with self-attention.
        attend_all: Every block of the decoder attends on those grids; otherwise the last one of each level.
        style: Of the blocks.
        encoder: ``standard``; ``residual`` and ``skip`` feed the input to every level as well.
        decoder: ``standard``; ``skip`` sums an output of every level.
    """

    grids: list[int]
    widths: list[int]
    stem: int
    blocks: int
    attention: frozenset[int]
    attend_all: bool
    style: BlockStyle
    encoder: str = "standard"
    decoder: str = "standard"


def encoder_layers(plan: Plan, channels: int) -> Iterator[tuple[str, nn.Module]]:
    """The encoder's layers in the order in which they run, by their names in the released state dicts."""
    p, width, aux = plan, plan.stem, channels
    for level, (grid, outputs) in enumerate(zip(p.grids, p.widths, strict=True)):
        name = f"{grid}x{grid}"
        if level == 0:
            yield f"{name}_conv", Conv2d(channels, width, 3, p.style.init)
        else:
            yield f"{name}_down", UNetBlock(width, width, p.style, "down")
        if level and p.encoder == "skip":
            yield f"{name}_aux_down", Resample("down", p.style.taps)
            yield f"{name}_aux_skip", Conv2d(aux, width, 1, p.style.init)
        if level and p.encoder == "residual":
            yield f"{name}_aux_residual", FusedDownConv2d(aux, width, 3, p.style.init, "down", p.style.taps)
            aux = width
        for i in range(p.blocks):
            yield f"{name}_block{i}", UNetBlock(width, outputs, p.style, attention=grid in p.attention)
            width = outputs


def decoder_layers(plan: Plan, skips: list[int], channels: int) -> Iterator[tuple[str, nn.Module]]:
    """The decoder's layers likewise; ``skips`` are the widths of what the encoder hands over, in its order."""
    p, width = plan, skips[-1]
    for level in reversed(range(len(p.grids))):
        grid, outputs, coarsest = p.grids[level], p.widths[level], level == len(p.grids) - 1
        name = f"{grid}x{grid}"
        if coarsest:
            yield f"{name}_in0", UNetBlock(width, width, p.style, attention=True)
            yield f"{name}_in1", UNetBlock(width, width, p.style)
        else:
            yield f"{name}_up", UNetBlock(width, width, p.style, "up")
        for i in range(p.blocks + 1):
            attention = grid in p.attention and (p.attend_all or i == p.blocks)
            yield f"{name}_block{i}", UNetBlock(width + skips.pop(), outputs, p.style, attention=attention)
            width = outputs
        if p.decoder == "skip" and not coarsest:
            yield f"{name}_aux_up", Resample("up", p.style.taps)
        if p.decoder == "skip" or (p.decoder == "standard" and level == 0):
            yield f"{name}_aux_norm", GroupNorm(width, p.style.eps)
            yield f"{name}_aux_conv", Conv2d(width, channels, 3, p.style.init_last)


class _UNet(nn.Module):
    """What the two architectures share: everything but the embedding and the names of ADM's last layers.

    ``checkpointing = True`` recomputes whole blocks in the backward pass: least memory, a third more time.
    """

    map_label: Linear | None
    map_augment: Linear | None
    map_layer0: Linear
    map_layer1: Linear
    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def __init__(self, label_dropout: float) -> None:
        super().__init__()
        self.label_dropout, self.checkpointing = label_dropout, False

    def _build(self, plan: Plan, in_channels: int, out_channels: int) -> None:
        self.enc = nn.ModuleDict(dict(encoder_layers(plan, in_channels)))
        skips = [int(layer.out_channels) for name, layer in self.enc.items() if "aux" not in name]  # type: ignore[arg-type]
        self.dec = nn.ModuleDict(dict(decoder_layers(plan, skips, out_channels)))

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The embedding [B or 1, width] that the blocks take; arguments as in ``forward``."""
        raise NotImplementedError

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The encoder's last activations, and what it hands over to the decoder, from fine to coarse."""
        if _on_fast_path(x):
            x = x.contiguous(memory_format=torch.channels_last)
        h = aux = x
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("_aux_down"):
                aux = layer(aux)
            elif name.endswith("_aux_skip"):
                h = skips[-1] = h + layer(aux)
            elif name.endswith("_aux_residual"):
                h = skips[-1] = aux = (h + layer(aux)) * math.sqrt(0.5)
            else:
                h = self._run(layer, h, embedding)
                skips.append(h)
        return h, skips

    def decode(self, h: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """F, out of what ``encode`` gave (``skips`` is used up)."""
        out: Tensor | None = None
        for name, layer in self.dec.items():
            if name.endswith("_aux_up"):
                out = layer(out)
            elif name.endswith("_aux_norm"):
                norm = layer
            elif name.endswith("_aux_conv"):
                term = norm_silu_conv(h, norm, layer)  # type: ignore[arg-type]
                out = term if out is None else term + out
            else:
                if "_block" in name:
                    h = torch.cat([h, skips.pop()], dim=1)
                h = self._run(layer, h, embedding)
        return h if out is None else out

    def _run(self, layer: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if not isinstance(layer, UNetBlock):
            return layer(x)
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, x, embedding, use_reentrant=False)
        return layer(x, embedding)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        return_features: bool = False,
    ) -> Any:
        """Compute F(x; noise_labels, labels).

        Args:
            x: Scaled noisy images c_in x [B, C, H, W], in the dtype to compute in.
            noise_labels: c_noise [B or 1], float32.
            class_labels: One-hot [B or 1, label_dim]; zeros or ``None`` for no label.
            augment_labels: [B or 1, augment_dim]; ``None`` leaves their term out.
            return_features: Return (F, the encoder's last activations).
        """
        embedding = self.embed(noise_labels, class_labels, augment_labels)
        features, skips = self.encode(x, embedding)
        f = self.decode(features, skips, embedding).contiguous()
        return (f, features.contiguous()) if return_features else f

    def _add_label(self, h: Tensor, class_labels: Tensor | None, scale: float = 1.0) -> Tensor:
        """Add the class label's term; training drops labels at random, for classifier-free guidance."""
        if self.map_label is None:
            return h
        if class_labels is None:
            class_labels = h.new_zeros(1, self.map_label.in_features)
        class_labels = class_labels.to(h.dtype)
        if self.training and self.label_dropout:
            kept = torch.rand(max(len(h), len(class_labels)), 1, device=h.device) >= self.label_dropout
            class_labels = class_labels * kept
        return h + self.map_label(class_labels * scale)

    def _add_augment(self, h: Tensor, augment_labels: Tensor | None) -> Tensor:
        if self.map_augment is None or augment_labels is None:
            return h
        return h + self.map_augment(augment_labels.to(h.dtype))


class SongUNet(_UNet):
    """DDPM++ and NCSN++ (Song et al., arXiv 2011.13456) as EDM trains them (its Table 1 and appendix F.1).

    Args:
        img_resolution: Height and width; 2^(levels - 1) divides it.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        label_dim: Number of classes; 0 is unconditional.
        augment_dim: Width of the augmentation labels; 0 for none.
        model_channels: Base width, a multiple of 4.
        channel_mult: Width of each level over ``model_channels``, from fine to coarse.
        channel_mult_emb: Width of the embedding over ``model_channels``.
        num_blocks: Residual blocks a level.
        attn_resolutions: Grids with self-attention.
        dropout: Probability.
        label_dropout: Probability with which training drops a class label.
        embedding_type: ``positional`` (DDPM++) or ``fourier`` (NCSN++).
        channel_mult_noise: Width of the noise embedding over ``model_channels``: 1 (DDPM++) or 2 (NCSN++).
        encoder_type: ``standard`` (DDPM++), ``residual`` (NCSN++) or ``skip``.
        decoder_type: ``standard`` (both) or ``skip``.
        resample_filter: Taps, an even number: [1, 1] (DDPM++) or [1, 3, 3, 1] (NCSN++).

    Raises:
        ValueError: An argument is not one of those named here.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__(label_dropout)
        _choose("embedding_type", embedding_type, ("positional", "fourier"))
        _choose("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _choose("decoder_type", decoder_type, ("standard", "skip"))
        noise, embedding = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        init = Init(xavier=True)
        style = BlockStyle(
            embedding,
            dropout,
            eps=1e-6,
            skip_scale=math.sqrt(0.5),
            adaptive=False,
            head=None,
            project_resampled=True,
            taps=resample_filter,
            init=init,
            init_last=Init(xavier=True, weight=1e-5),
            init_attention=Init(xavier=True, weight=math.sqrt(0.2)),
        )
        positional = embedding_type == "positional"
        self.map_noise = PositionalEmbedding(noise, endpoint=True) if positional else FourierEmbedding(noise)
        self.map_label = Linear(label_dim, noise, init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise, init, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(noise, embedding, init), Linear(embedding, embedding, init)
        grids, widths = _levels(img_resolution, model_channels, channel_mult)
        attention = frozenset(attn_resolutions)
        plan = Plan(
            grids, widths, model_channels, num_blocks, attention, False, style, encoder_type, decoder_type
        )  # fmt: skip
        self._build(plan, in_channels, out_channels)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        cosines, sines = self.map_noise(noise_labels).chunk(2, dim=1)
        h = torch.cat([sines, cosines], dim=1)
        # A one-hot label scaled so has entries of unit variance.
        scale = math.sqrt(self.map_label.in_features) if self.map_label is not None else 1.0
        h = self._add_augment(self._add_label(h, class_labels, scale), augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(h))))


class DhariwalUNet(_UNet):
    """ADM (Dhariwal & Nichol, arXiv 2105.05233) as EDM trains it.

    Args: as in ``SongUNet``. Attention has heads of 64 channels and, on its grids, follows every block.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__(label_dropout)
        embedding = model_channels * channel_mult_emb
        init = Init(xavier=False, weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
        zero = Init(xavier=False, weight=0.0)
        style = BlockStyle(
            embedding,
            dropout,
            eps=1e-5,
            skip_scale=1.0,
            adaptive=True,
            head=64,
            project_resampled=False,
            taps=(1, 1),
            init=init,
            init_last=zero,
            init_attention=init,
        )
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, zero, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(model_channels, embedding, init), Linear(embedding, embedding, init)
        self.map_label = Linear(label_dim, embedding, init, bias=False) if label_dim else None
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)  # so a one-hot label's term has unit variance
        grids, widths = _levels(img_resolution, model_channels, channel_mult)
        attention = frozenset(attn_resolutions)
        plan = Plan(grids, widths, widths[0], num_blocks, attention, True, style, decoder="adm")
        self._build(plan, in_channels, out_channels)
        self.out_norm = GroupNorm(widths[0], style.eps)
        self.out_conv = Conv2d(widths[0], out_channels, 3, zero)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        h = self._add_augment(self.map_noise(noise_labels), augment_labels)
        return F.silu(self._add_label(self.map_layer1(F.silu(self.map_layer0(h))), class_labels))

    def decode(self, h: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        return norm_silu_conv(super().decode(h, skips, embedding), self.out_norm, self.out_conv)


def _levels(img_resolution: int, model_channels: int, channel_mult: Sequence[int]) -> tuple[list[int], list[int]]:
    """Grids and widths of the levels, from fine to coarse."""
    levels = len(channel_mult)
    if levels == 0 or img_resolution % 2 ** (levels - 1):
        raise ValueError(f"A resolution of {img_resolution} cannot be halved {levels - 1} times for {levels} levels.")
    return [img_resolution >> level for level in range(levels)], [model_channels * mult for mult in channel_mult]


_FINEST = 2_048  # pixels a side; the authors' networks draw 32 to 512


def restore_edm(config: dict[str, Any], weights: Mapping[str, Tensor], name: str) -> EDMPrecond:
    """The network of a snapshot, in float32; weights that are float32 already are shared with ``weights``, not copied.

    Args:
        config: As ``build_edm`` takes it.
        weights: Its state dict.
        name: Of the file, for messages.

    Raises:
        UnreadableFile: The network can't be built, it is larger than its weights, or they are not its.
    """
    refuse_hollow(weights, name)
    refuse_immodest(config, name)
    try:
        if not 1 <= int(config.get("img_resolution", 1)) <= _FINEST:
            raise ValueError(f"It draws in {str(config['img_resolution'])[:20]} pixels, and no such network does.")
        with without_memory(len(weights)):  # no memory and no initialisation: all weights are the file's
            network = build_edm(config)
        network.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    except ValueError as error:
        raise UnreadableFile(f"{name} can't be loaded. {str(error).rstrip('.')}.") from error
    except RuntimeError as error:
        raise UnreadableFile(f"{name} holds weights that don't fit the network that it names; use the authors' file.") from error
    except (TypeError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        raise UnreadableFile(f"{name} describes a network that can't be built ({error}).") from error
    return network


def _choose(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")


# SiDA's classes are the same networks with a second output.
_UNETS: dict[str, type[SongUNet] | type[DhariwalUNet]] = {
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
    "SongUNet_EncoderDecoder": SongUNet,
    "DhariwalUNet_EncoderDecoder": DhariwalUNet,
}
_PRECONDITIONINGS = ("EDMPrecond", "EDMPrecond_EncoderDecoder")


class EDMPrecond(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise): EDM's eq. 7, coefficients of its Table 1.

    Args:
        img_resolution: Height and width of the images.
        img_channels: Their channels.
        label_dim: Number of classes; 0 is unconditional.
        use_fp16: Run F in float16 on a GPU; parameters and D stay float32.
        sigma_min: Least noise level that samplers may ask for.
        sigma_max: Greatest one.
        sigma_data: Standard deviation of the images, which are about -1..1.
        model_type: ``SongUNet`` or ``DhariwalUNet``.
        **model_kwargs: That class's arguments.

    Raises:
        ValueError: ``model_type`` or one of that class's choices is unknown.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.0,
        sigma_max: float = float("inf"),
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__()
        _choose("model_type", model_type, tuple(_UNETS))
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.use_fp16, self.sigma_data = use_fp16, sigma_data
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.model = _UNETS[model_type](img_resolution, img_channels, img_channels, label_dim, **model_kwargs)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        force_fp32: bool = False,
        return_features: bool = False,
    ) -> Any:
        """Denoise ``x``.

        Args:
            x: Noisy images [B, C, H, W]; clean ones are about -1..1.
            sigma: Their noise level, one for all or B of them in any shape; greater than 0.
            class_labels: One-hot [B or 1, label_dim]; ``None`` is the all-zero label. An unconditional network ignores it.
            augment_labels: [B or 1, augment_dim]; ``None`` leaves their term out.
            force_fp32: Run F in float32 even where ``use_fp16`` is set.
            return_features: Return (D, features) from one pass; features are what ``encode`` gives.

        Returns:
            D [B, C, H, W], float32 (float64 if the parameters are).
        """
        x, sigma, scaled, labels = self._prepare(x, sigma, class_labels, force_fp32)
        f, features = self.model(scaled, sigma.flatten().log() / 4, labels, augment_labels, return_features=True)
        variance = sigma**2 + self.sigma_data**2
        d = x * (self.sigma_data**2 / variance) + f.to(x.dtype) * (sigma * self.sigma_data / variance.sqrt())
        return (d, features.to(x.dtype)) if return_features else d

    def encode(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        force_fp32: bool = False,
    ) -> Tensor:
        """The encoder's last activations [B, width, h, w], float32; arguments as in ``forward``.

        Their mean over the channels is the discriminator's map of logits in SiDA (arXiv 2410.14919).
        """
        x, sigma, scaled, labels = self._prepare(x, sigma, class_labels, force_fp32)
        embedding = self.model.embed(sigma.flatten().log() / 4, labels, augment_labels)
        return self.model.encode(scaled, embedding)[0].to(x.dtype).contiguous()

    def _prepare(
        self, x: Tensor, sigma: Tensor, class_labels: Tensor | None, force_fp32: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x, sigma [B or 1, 1, 1, 1], c_in x in the dtype of F, and the labels."""
        wide = torch.float64 if self.model.map_layer0.weight.dtype == torch.float64 else torch.float32
        narrow = torch.float16 if self.use_fp16 and not force_fp32 and x.is_cuda else wide
        x, sigma = x.to(wide), sigma.to(wide).reshape(-1, 1, 1, 1)
        labels = None if class_labels is None or not self.label_dim else class_labels.reshape(-1, self.label_dim)
        return x, sigma, (x / (sigma**2 + self.sigma_data**2).sqrt()).to(narrow), labels

    def round_sigma(self, sigma: float | Tensor) -> Tensor:
        """Return the nearest noise level that the network knows: ``sigma`` itself, as EDM's are continuous."""
        return torch.as_tensor(sigma)


def build_edm(config: dict[str, Any]) -> EDMPrecond:
    """Build the network that ``config`` describes, with the authors' initialisation.

    Args:
        config: ``EDMPrecond``'s keyword arguments, as snapshots store them. ``class_name`` or ``_class_name`` may name its
            class.

    Raises:
        ValueError: The class is another preconditioning, a key is unknown or missing, or a value is not among its choices.
    """
    kwargs = {key: value for key, value in config.items() if key not in ("class_name", "_class_name")}
    name = str(config.get("class_name") or config.get("_class_name") or "EDMPrecond").rsplit(".", 1)[-1]
    if name not in _PRECONDITIONINGS:
        raise ValueError(
            f"This network is preconditioned by {name}, and only EDMPrecond can be built. The released edm-* and SiD "
            "checkpoints have it; the baseline-* ones do not."
        )
    model_type = str(kwargs.get("model_type", "DhariwalUNet"))
    _choose("model_type", model_type, tuple(_UNETS))
    known = {*inspect.signature(EDMPrecond).parameters, *inspect.signature(_UNETS[model_type]).parameters}
    if unknown := sorted(set(kwargs) - known | set(kwargs) & {"in_channels", "out_channels", "model_kwargs"}):
        raise ValueError(f"Unknown in the configuration of a {model_type}: {', '.join(unknown)}.")
    if missing := [key for key in ("img_resolution", "img_channels") if key not in kwargs]:
        raise ValueError(f"The network's configuration lacks {' and '.join(missing)}.")
    return EDMPrecond(**kwargs)
