"""Where a clicked picture came from: its latents, and what names its noise. Kept beside it in a file of clicks."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_BYTES = 600_000  # of a picture's latents: a line of the file holds them, and the small picture
EDM = "EDMPixels"
"""The family of EDM networks' pictures, in their nodes' words."""
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Origin:
    """What a picture was decoded from.

    Attributes:
        latents: [C, h, w] (or [C, 1, h, w]), float16, as LATENTs have them.
        seed: Of its noise; None where it wasn't drawn from noise alone.
        place: Its ``batch_index``: with the seed it names the noise.
        family: ComfyUI's name of the latents' format, "" where nobody knows: other families' latents of this shape are others.
    """

    latents: Array
    seed: int | None = None
    place: int = 0
    family: str = ""

    def fits(self, family: str, shape: tuple[int, ...]) -> bool:
        """Whether a model of this family can take the latents as they are, for pictures of this shape."""
        return self.latents.shape == shape and self.family in ("", family)

    @property
    def small(self) -> bool:
        """Whether a file of clicks can hold it."""
        return bool(self.latents.nbytes <= MOST_BYTES)

    def encoded(self) -> dict[str, Any]:
        """As JSON has it."""
        values = base64.b64encode(self.latents.astype("<f2").tobytes()).decode()
        told = {"latents": values, "shape": list(self.latents.shape), "seed": self.seed, "place": self.place}
        return told | ({"family": self.family} if self.family else {})


def decoded(content: Any) -> Origin | None:
    """An origin from a stranger's file; None where it is none.

    Raises:
        ValueError, KeyError, TypeError: It is none.
    """
    if content is None:
        return None
    shape = [int(side) for side in content["shape"]]
    raw = base64.b64decode(content["latents"], validate=True)
    if not 3 <= len(shape) <= 4 or min(shape) < 1 or len(raw) > MOST_BYTES or 2 * math.prod(shape) != len(raw):
        raise ValueError("no latents")
    latents = np.frombuffer(raw, dtype="<f2").reshape(shape)
    if not np.isfinite(latents).all():
        raise ValueError("latents that are no numbers")
    seed, place = content.get("seed"), content.get("place", 0)
    whole = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**64
    if not (seed is None or whole) or not isinstance(place, int) or not 0 <= place < 4096:
        raise ValueError("no seed and place")
    if not isinstance(family := content.get("family", ""), str) or len(family) > 100:
        raise ValueError("no family")
    return Origin(latents, seed, place, family)


def stock_noise(shape: tuple[int, ...], seed: int, place: int) -> Tensor:
    """The unit noise that ComfyUI draws for the picture at this place of a batch (its ``prepare_noise``)."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(place + 1):
        noise = torch.randn(1, *shape, generator=generator)
    return noise[0]
