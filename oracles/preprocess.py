"""Pictures as the authors of each oracle prepare them, exactly, and with gradients.

The published forms resize with PIL, on bytes, which has no gradient. Here the value is PIL's to the bit, and the gradient is
that of the same resampling on floats ("straight-through"): a score is the authors', and can still be climbed.

Pictures are [B, H, W, 3] in 0..1, as ComfyUI's IMAGE; results are [B, 3, size, size], normalised.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Offset = Callable[[int, int], int]


def round_half_even(length: int, size: int) -> int:
    """Where torchvision's ``CenterCrop`` starts: round((length - size) / 2), halves to the even number."""
    return round((length - size) / 2.0)


def floor_offset(length: int, size: int) -> int:
    """Where transformers' ``center_crop`` starts: floor((length - size) / 2)."""
    return (length - size) // 2


def normalise(images: Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD) -> Tensor:
    """(images - mean) / std per channel, for [B, 3, H, W]."""
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after the short side was brought to ``size``; the long side is cut off to a whole number."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def resize_pil(images: Tensor, height: int, width: int) -> Tensor:
    """PIL's bicubic resize of ``images`` [B, H, W, 3] rounded to bytes: [B, 3, height, width] in 0..1, with gradient.

    The gradient is that of antialiased bicubic interpolation on floats, which is what PIL computes before it rounds.
    """
    pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    resized = [Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC) for p in pixels]
    exact = torch.from_numpy(np.stack([np.asarray(r) for r in resized])).to(images.device).movedim(-1, 1).float() / 255
    if not (torch.is_grad_enabled() and images.requires_grad):
        return exact
    smooth = F.interpolate(images.movedim(-1, 1).float(), (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    return smooth + (exact - smooth).detach()


def crop(images: Tensor, size: int, offset: Offset) -> Tensor:
    """The middle ``size`` x ``size`` of [B, 3, H, W]."""
    top, left = offset(images.shape[-2], size), offset(images.shape[-1], size)
    return images[..., top : top + size, left : left + size]


def resize_and_crop(images: Tensor, size: int = 224, offset: Offset = round_half_even) -> Tensor:
    """Short side to ``size`` (PIL bicubic), middle square, CLIP's mean and deviation.

    ``round_half_even`` is OpenAI's, open_clip's and ImageReward's form, ``floor_offset`` is that of transformers' CLIP processor.
    """
    height, width = short_side(images.shape[1], images.shape[2], size)
    return normalise(crop(resize_pil(images, height, width), size, offset))


def resize_and_pad(images: Tensor, size: int = 224) -> Tensor:
    """HPSv2's form: the long side to ``size`` by bicubic interpolation of floats, black around, then CLIP's normalisation.

    Antialiased, as torchvision has done since 0.17 (at the authors' time it was not), and not clamped; an odd pixel of
    padding goes right or below.
    """
    height, width = images.shape[1:3]
    scale = size / max(height, width)
    new = (round(height * scale), round(width * scale))
    x = images.movedim(-1, 1).float()
    if new != (height, width):
        x = F.interpolate(x, new, mode="bicubic", antialias=True)
    down, right = size - new[0], size - new[1]
    return normalise(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))
