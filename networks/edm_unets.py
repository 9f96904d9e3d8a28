"""EDM's U-Nets F: DDPM++ and NCSN++ (``SongUNet``), ADM (``DhariwalUNet``).

Tables are those of Karras et al. (arXiv 2206.00364). Parameter names and constructor arguments are those of the released
checkpoints (NVlabs/edm, mingyuanzhou/SiD), so that every EDM, SiD and SiDA state dict loads strictly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .edm_layers import (
    BlockStyle,
    Conv2d,
    FourierEmbedding,
    FusedDownConv2d,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    Resample,
    UNetBlock,
    norm_silu_conv,
    on_fast_path,
)


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
        if on_fast_path(x):
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
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None,
        return_features: bool = False,
    ) -> Any:  # fmt: skip
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
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, augment_dim: int = 0,
        model_channels: int = 128, channel_mult: Sequence[int] = (1, 2, 2, 2), channel_mult_emb: int = 4,
        num_blocks: int = 4, attn_resolutions: Sequence[int] = (16,), dropout: float = 0.10, label_dropout: float = 0.0,
        embedding_type: str = "positional", channel_mult_noise: int = 1, encoder_type: str = "standard",
        decoder_type: str = "standard", resample_filter: Sequence[float] = (1, 1),
    ) -> None:  # fmt: skip
        super().__init__(label_dropout)
        require_choice("embedding_type", embedding_type, ("positional", "fourier"))
        require_choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        require_choice("decoder_type", decoder_type, ("standard", "skip"))
        noise, embedding = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        init = Init(xavier=True)
        style = BlockStyle(
            embedding, dropout, eps=1e-6, skip_scale=math.sqrt(0.5), adaptive=False, head=None, project_resampled=True,
            taps=resample_filter, init=init, init_last=Init(xavier=True, weight=1e-5),
            init_attention=Init(xavier=True, weight=math.sqrt(0.2)),
        )  # fmt: skip
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
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, augment_dim: int = 0,
        model_channels: int = 192, channel_mult: Sequence[int] = (1, 2, 3, 4), channel_mult_emb: int = 4,
        num_blocks: int = 3, attn_resolutions: Sequence[int] = (32, 16, 8), dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(label_dropout)
        embedding = model_channels * channel_mult_emb
        init = Init(xavier=False, weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
        zero = Init(xavier=False, weight=0.0)
        style = BlockStyle(
            embedding, dropout, eps=1e-5, skip_scale=1.0, adaptive=True, head=64, project_resampled=False, taps=(1, 1),
            init=init, init_last=zero, init_attention=init,
        )  # fmt: skip
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


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a ``value`` that isn't among ``choices``.

    Raises:
        ValueError: It isn't.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")
