"""Clicked pictures as a model's own latents, with the noise that each was drawn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..training.clicks import ClickedPicture, Clicks
from ..training.preference import Preferences
from .latents import family
from .noise import batch_noise
from .training import latent_shape

_SIDE = 512  # of pictures whose size nobody says


def clicked_shape(model: Any, clicks: Clicks, size: tuple[int, int]) -> tuple[int, ...]:
    """The shape of one latent: of ``size`` (width, height), or where that is 0, of most clicked pictures that fit the model.

    Raises:
        ValueError: The model draws no pictures.
    """
    like = latent_shape(model, (size[0] or _SIDE, size[1] or _SIDE))
    kind = family(model)
    origins = (clicks.pictures[key].origin for key in clicks.clicked)
    kept = Counter(origin.latents.shape for origin in origins if origin is not None and origin.fits(kind, origin.latents.shape))
    fitting = [shape for shape, _count in kept.most_common() if shape[:-2] == like[:-2]]
    return like if all(size) or not fitting else tuple(fitting[0])


def preferences_of(model: Any, vae: Any, clicks: Clicks, shape: tuple[int, ...], prompts: Sequence[str]) -> Preferences:
    """Clicked pictures as latents of this shape, as the network has them.

    Kept latents are taken as they are; pictures without, or of another size or family, are encoded from the small picture that
    was kept.

    Args:
        prompts: All prompts of them, each once.
    """
    keys = clicks.clicked
    place, latents, noise = {key: i for i, key in enumerate(keys)}, [], []
    kind = family(model)
    for key in keys:
        picture = clicks.pictures[key]
        origin = picture.origin if picture.origin is not None and picture.origin.fits(kind, shape) else None
        if origin is None:
            latents.append(_encoded(vae, picture, shape))
        else:
            latents.append(torch.from_numpy(origin.latents.astype("float32")))
        own = torch.full(shape, torch.nan)
        if origin is not None and origin.seed is not None:
            own = batch_noise({"samples": torch.zeros(1, *shape), "batch_index": [origin.place]}, origin.seed)[0].float()
        noise.append(own)
    inside = model.model.process_latent_in(torch.stack(latents)).float()
    rows = torch.tensor([prompts.index(clicks.pictures[key].prompt) for key in keys])
    return Preferences(inside, torch.stack(noise), rows, [(place[a], place[b]) for a, b in clicks.pairs])


def _encoded(vae: Any, picture: ClickedPicture, shape: tuple[int, ...]) -> Tensor:
    pixels = torch.from_numpy(picture.pixels.copy())[None].float() / 255
    ratio = vae.spacial_compression_encode()
    size = (shape[-2] * ratio, shape[-1] * ratio)
    pixels = torch.nn.functional.interpolate(pixels.movedim(-1, 1), size, mode="bicubic", antialias=True).clamp(0, 1)
    with torch.inference_mode():  # in which nodes load VAEs: elsewhere their weights can't be computed with
        encoded: Tensor = vae.encode(pixels.movedim(1, -1))
    return encoded.clone().float().cpu().reshape(shape)
