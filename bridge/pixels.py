"""From latents to pictures and back: one pair of functions for the VAEs of every family. Needs torch alone.

Image VAEs take batches [B, H, W, C]. VAEs for video, which Qwen-Image, Wan and others draw pictures with, take a batch for
the frames of one video, and give [B, T, H, W, C]; here every picture is a video of one frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def as_pictures(images: Tensor) -> Tensor:
    """[B, H, W, C] of any kind as [B, H, W, 3] in float32: alpha is left out, one channel is grey."""
    pictures = images.float()
    return pictures.expand(*pictures.shape[:-1], 3) if pictures.shape[-1] == 1 else pictures[..., :3]


def require_tensor(latent: dict[str, Any]) -> Tensor:
    """The latents themselves.

    Raises:
        ValueError: They are several tensors in one, as models of sound and video have them.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False) or not isinstance(samples, Tensor):
        raise ValueError(
            "These latents hold sound and video in one, which Apprentice can't judge or improve: separate them, and connect the "
            "video's or the picture's latents alone."
        )
    return samples


def to_pixels(vae: Any, samples: Tensor) -> Tensor:
    """The pictures [B, H, W, C] in 0..1 of latents [B, C, h, w] or [B, C, T, h, w]; frames count as pictures."""
    decoded: Tensor = vae.decode(samples)
    return decoded.reshape(-1, *decoded.shape[-3:])


def to_latents(vae: Any, images: Tensor) -> Tensor:
    """The latents of pictures [B, H, W, C], a row each.

    Where a side is no multiple of the VAE's ratio, the picture's edge is repeated up to one: ``to_pixels`` gives that larger
    picture back, to be cropped.
    """
    pictures = pad_to(as_pictures(images), spatial_ratio(vae))
    if getattr(vae, "latent_dim", 2) != 3:
        return vae.encode(pictures)  # type: ignore[no-any-return]
    return torch.cat([vae.encode(picture[None]) for picture in pictures])


def spatial_ratio(vae: Any) -> int:
    """Pixels a latent, along a side."""
    ask = getattr(vae, "spacial_compression_encode", None)
    return int(ask()) if ask is not None else 8


def pad_to(pictures: Tensor, multiple: int) -> Tensor:
    """[B, H, W, C] with its lower and right edge repeated until both sides are multiples."""
    down, right = (-side % multiple for side in pictures.shape[1:3])
    if not down and not right:
        return pictures
    return F.pad(pictures.movedim(-1, 1), (0, right, 0, down), mode="replicate").movedim(1, -1)


def pad_mask(mask: Tensor, size: tuple[int, int], multiple: int) -> Tensor:
    """A mask [..., h, w] of pictures of ``size`` (H, W), for the pictures that ``pad_to`` makes of them."""
    if not any(side % multiple for side in size):
        return mask
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    whole = F.interpolate(flat, size, mode="bilinear").movedim(1, -1)
    padded = pad_to(whole, multiple).movedim(-1, 1)
    return padded.reshape(*mask.shape[:-2], *padded.shape[-2:])


def as_rgb(batches: Iterable[Tensor]) -> list[Tensor]:
    """The pictures [H, W, 3] of a list of batches, whatever their sizes."""
    return [picture for batch in batches for picture in as_pictures(batch)]


def decode(vae: Any, latent: dict[str, Any]) -> Tensor:
    """Pictures [B, H, W, C] as the stock VAE Decode makes them."""
    images = to_pixels(vae, latent["samples"])
    # In the judge's memory layout, so that the oracle's scores are the judge's to the last bit.
    return images.reshape(-1, *images.shape[-3:]).contiguous()
