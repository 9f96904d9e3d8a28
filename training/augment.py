"""Augmentation of small pictures that tells the network what was done (EDM): it can't leak into what is generated.

A picture is flipped, zoomed, turned, stretched and shifted, each with a small probability, and the network is given the
amounts as nine numbers; at sampling time they are zero, "not augmented". SiD trains the fake score network so where its
teacher was: p = 0.12 on CIFAR-10, 0.15 on FFHQ and AFHQ, none on ImageNet.

Sources: EDM (arXiv 2206.00364, Appendix F.2, Table 6), whose geometry and antialiasing are StyleGAN2-ADA's (2006.06676,
Appendix B). Where the paper's formula and the authors' code differ, the code made the published numbers and is followed.
Left out, since no published run of EDM or SiD uses them: turns by whole quarters, shifts by whole pixels, and all of colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

LABELS = (
    "xflip", "yflip", "scale", "cos(rotate) - 1", "sin(rotate)", "aniso cos(axis)", "aniso sin(axis)", "shift x", "shift y",
)  # fmt: skip
"""What the nine labels hold: amounts before their std (0 or 1 for flips), 0 where the step was skipped or is off."""

SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
"""Daubechies' least asymmetric wavelet with six vanishing moments: the low-pass filter (PyWavelets, sym6, dec_lo)."""

TAPS = len(SYM6)


@dataclass(frozen=True)
class AugmentDraws:
    """The random numbers of a batch, all of them [B] but ``translate_frac`` [2, B], in the order in which they are drawn.

    A step is done where its ``_gate``, uniform in [0, 1), lies below the step's probability.

    Attributes:
        xflip: 0 or 1, whether to mirror left and right.
        yflip: 0 or 1, whether to mirror top and bottom.
        scale: Standard normal, how much to zoom.
        rotate_frac: Uniform in [0, 1), how far to turn.
        aniso: Standard normal, how much to stretch one axis and shrink the other.
        aniso_axis: Uniform in [0, 1), which way that axis points; horizontal where ``aniso_axis_gate`` says so.
        translate_frac: Standard normal, how far to shift: x, then y.
    """

    xflip: Tensor
    xflip_gate: Tensor
    yflip: Tensor
    yflip_gate: Tensor
    scale: Tensor
    scale_gate: Tensor
    rotate_frac: Tensor
    rotate_frac_gate: Tensor
    aniso: Tensor
    aniso_axis: Tensor
    aniso_gate: Tensor
    aniso_axis_gate: Tensor
    translate_frac: Tensor
    translate_frac_gate: Tensor

    @classmethod
    def draw(cls, batch: int, generator: torch.Generator) -> AugmentDraws:
        """Fresh numbers for ``batch`` pictures, those that the authors' code draws from this state with all steps on."""

        def coin() -> Tensor:
            return torch.randint(2, (batch,), generator=generator, device=generator.device)

        def uniform() -> Tensor:
            return torch.rand(batch, generator=generator, device=generator.device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device)

        # Python evaluates keyword arguments in the order in which they are written: the order of the draws.
        return cls(
            xflip=coin(), xflip_gate=uniform(),
            yflip=coin(), yflip_gate=uniform(),
            scale=normal(batch), scale_gate=uniform(),
            rotate_frac=uniform(), rotate_frac_gate=uniform(),
            aniso=normal(batch), aniso_axis=uniform(), aniso_gate=uniform(), aniso_axis_gate=uniform(),
            translate_frac=normal(2, batch), translate_frac_gate=uniform(),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.xflip)

    def rows(self, part: slice | Tensor) -> AugmentDraws:
        """A part of the batch: a slice, or which [B]."""
        return AugmentDraws(**{f.name: getattr(self, f.name)[..., part] for f in fields(self)})

    def to(self, device: torch.device | str) -> AugmentDraws:
        """On another device."""
        return AugmentDraws(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def augment(
    images: Tensor, draws: AugmentDraws, p: float = 0.12, *, xflip: float = 1e8, yflip: float = 1, scale: float = 1,
    rotate_frac: float = 1, aniso: float = 1, translate_frac: float = 1, scale_std: float = 0.2, rotate_frac_max: float = 1,
    aniso_std: float = 0.2, aniso_rotate_prob: float = 0.5, translate_frac_std: float = 0.125,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Augment ``images`` and say how.

    Each of the six steps is done with probability p times its factor (so ``xflip=1e8`` is always, if p isn't 0; the coin
    then mirrors half of the pictures, which doubles the data set). A factor of 0 turns a step off; its labels stay, as 0.

    Args:
        images: [B, C, H, W], any range and number of channels. Beyond their borders they go on mirrored.
        draws: For B pictures.
        p: Augmentation probability.
        xflip, yflip, scale, rotate_frac, aniso, translate_frac: Factors of p.
        scale_std: Zoom by 2^(std normal).
        rotate_frac_max: Turn up to this much of a full circle, 1 = -180 to 180 degrees.
        aniso_std: Stretch one axis by 2^(std normal), shrink the one across by as much.
        aniso_rotate_prob: How often that axis points anywhere, rather than along x.
        translate_frac_std: Shift by std normal of the width, and of the height.

    Returns:
        The images, and their labels [B, 9] in the order of ``LABELS``, at least in float32.

    Raises:
        ValueError: The draws are for another number of pictures.
    """
    if len(draws) != len(images):
        raise ValueError(f"There are draws for {len(draws)} pictures, but {len(images)} pictures.")
    dtype = torch.promote_types(images.dtype, torch.float32)
    d = draws.to(images.device)

    def gated(value: Tensor, gate: Tensor, probability: float) -> Tensor:
        return value.to(dtype) * (gate < probability)

    mirror_x = gated(d.xflip, d.xflip_gate, xflip * p)
    mirror_y = gated(d.yflip, d.yflip_gate, yflip * p)
    zoom = gated(d.scale, d.scale_gate, scale * p)
    angle = gated((d.rotate_frac * 2 - 1) * (math.pi * rotate_frac_max), d.rotate_frac_gate, rotate_frac * p)
    stretch = gated(d.aniso, d.aniso_gate, aniso * p)
    axis = gated((d.aniso_axis * 2 - 1) * math.pi, d.aniso_axis_gate, aniso_rotate_prob)
    shift = gated(d.translate_frac, d.translate_frac_gate, translate_frac * p)
    labels = [
        mirror_x, mirror_y, zoom, angle.cos() - 1, angle.sin(), stretch * axis.cos(), stretch * axis.sin(), *shift,
    ]  # fmt: skip

    out = torch.where(mirror_x.bool().view(-1, 1, 1, 1), images.flip(3), images)
    out = torch.where(mirror_y.bool().view(-1, 1, 1, 1), out.flip(2), out)
    pixels = shift.T * translate_frac_std * shift.new_tensor([images.shape[3], images.shape[2]])
    moved = (zoom != 0) | (angle != 0) | (stretch != 0) | (shift != 0).any(0)
    _move(out, moved, *inverse_motion((zoom * scale_std).exp2(), angle, (stretch * aniso_std).exp2(), axis, pixels))
    return out, torch.stack(labels, dim=1)


def _move(images: Tensor, moved: Tensor, linear: Tensor, offset: Tensor) -> None:
    """Resample where ``moved`` [B] says so, in place: most pictures stay as they are."""
    if moved.any():
        margins = reflected_margins(linear, offset, *images.shape[2:])
        pixels = images[moved].to(linear.dtype)
        images[moved] = warp(pixels, linear[moved], offset[moved], margins).to(images.dtype)


def rotation(angle: Tensor) -> Tensor:
    """[[cos, -sin], [sin, cos]] for angles [B]: [B, 2, 2]. With y downwards it turns clockwise."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))


def inverse_motion(zoom: Tensor, angle: Tensor, stretch: Tensor, axis: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Where an output pixel comes from: x_in = L x_out + o, in pixels from the centre, x to the right and y downwards.

    L = R(angle) R(axis)^T diag(1 / stretch, stretch) R(axis) / zoom, and o = -L shift: the picture is zoomed, turned
    counter-clockwise, stretched and then shifted.

    Args:
        zoom, stretch: Factors [B].
        angle, axis: Radians [B].
        shift: Pixels [B, 2].

    Returns:
        L [B, 2, 2] and o [B, 2].
    """
    frame = rotation(axis)
    squeeze = frame.mT * torch.stack([1 / stretch, stretch], dim=-1).unsqueeze(-2) @ frame
    linear = rotation(angle) @ squeeze / zoom.view(-1, 1, 1)
    return linear, -(linear @ shift.unsqueeze(-1)).squeeze(-1)


def reflected_margins(linear: Tensor, offset: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """How many pixels the batch needs beyond its borders: left, right, top, bottom.

    As far as the output's corners reach in any picture, and half a filter's length; at most a whole reflection, and what
    lies beyond that is 0. The authors decide so for a batch together, hence a picture may depend on its neighbours: by
    1e-4 at most (seen on noise in -1..1, most of it rounding).
    """
    centre = offset.new_tensor([width - 1, height - 1]) / 2
    signs = offset.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = offset.unsqueeze(1) + (signs * centre) @ linear.mT  # [B, 4, 2]
    reach = torch.stack([(-corners).amax((0, 1)), corners.amax((0, 1))], dim=-1)  # [2, 2]: x and y, low and high
    margins = (reach + (TAPS // 2 - centre).unsqueeze(-1)).clamp(min=0).ceil().long()
    (left, right), (top, bottom) = margins.tolist()
    return min(left, width - 1), min(right, width - 1), min(top, height - 1), min(bottom, height - 1)


def warp(images: Tensor, linear: Tensor, offset: Tensor, margins: tuple[int, int, int, int]) -> Tensor:
    """Resample images [B, C, H, W] at x_in = L x_out + o, antialiased: doubled by the wavelet, moved, halved by it.

    The wavelet is orthogonal, so nothing but rounding is lost where nothing moves.

    Args:
        images: Of float32 or float64.
        linear: L [B, 2, 2], see ``inverse_motion``.
        offset: o [B, 2].
        margins: See ``reflected_margins``.

    Returns:
        [B, C, H, W].
    """
    left, right, top, bottom = margins
    batch, channels, height, width = images.shape
    fine = upsample(F.pad(images, margins, mode="reflect"))
    offset = offset + offset.new_tensor([left - right, top - bottom]) / 2  # from the padded image's centre
    # A pixel x from the centre lies at 2 x - 1/2 among the fine pixels, since 2 n of them have their centre between two.
    offset = 2 * offset + linear.sum(-1) / 2 - 0.5
    size = (2 * height + TAPS - 2, 2 * width + TAPS - 2)
    # affine_grid counts in half images, its own input's and its own output's.
    half_in = offset.new_tensor([fine.shape[3], fine.shape[2]]) / 2
    half_out = offset.new_tensor([size[1], size[0]]) / 2
    theta = torch.cat([linear * half_out, offset.unsqueeze(-1)], dim=-1) / half_in.unsqueeze(-1)
    grid = F.affine_grid(theta, [batch, channels, *size], align_corners=False)
    return downsample(F.grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=False))


def wavelet_matrix(n: int, like: Tensor) -> Tensor:
    """The wavelet filter at every second of 2 n + 10 samples: [n, 2 n + 10], with type and device of ``like``.

    Small pictures are resampled several times faster by products with it than by strided convolutions.
    """
    matrix = like.new_zeros(n, 2 * n + TAPS - 2)
    i = torch.arange(n, device=like.device).unsqueeze(1)
    matrix[i, 2 * i + torch.arange(TAPS, device=like.device)] = like.new_tensor(SYM6)
    return matrix


def upsample(images: Tensor) -> Tensor:
    """From [B, C, H, W] to [B, C, 2 H, 2 W] by the transposed filter. It halves the values; ``downsample`` doubles them."""
    ends = slice(TAPS // 2 - 1, 1 - TAPS // 2)  # five samples each side are the filter's ends, of the outer pixels only
    rows, columns = (wavelet_matrix(n, images)[:, ends] for n in images.shape[2:])
    return rows.T @ (images @ columns)


def downsample(images: Tensor) -> Tensor:
    """From [B, C, 2 H + 10, 2 W + 10], five samples more each side for the filter's ends, to [B, C, H, W]."""
    rows, columns = (wavelet_matrix((n - TAPS + 2) // 2, images) for n in images.shape[2:])
    return rows @ (images @ columns.T)
