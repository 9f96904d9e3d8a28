"""Simulated artists of known taste, for benchmarks of what clicks teach."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .figures import Array

TEMPERATURE = 0.4  # of clicks, in units of a taste: about one in five contradicts it


def tastes_of(pictures: Tensor, published: Array, pairs: tuple[Array, Array] | None = None) -> dict[str, Array]:
    """What each artist thinks of pictures [B, H, W, 3], in units of how much two pictures of one prompt differ (RMS).

    Args:
        pairs: Places of the pictures that the unit and 0 are taken from, two of one prompt in each pair; the halves without.
    """
    half = np.arange(len(pictures) // 2)
    first, second = pairs or (half, half + len(half))
    flat = pictures.flatten(1, 2).double()
    warm = (flat[..., 0] - flat[..., 2]).mean(1).numpy()
    bold = flat.std(1).mean(1).numpy()
    edges = (pictures.diff(dim=1).abs().mean((1, 2, 3)) + pictures.diff(dim=2).abs().mean((1, 2, 3))).double().numpy()

    def scaled(values: Array) -> Array:
        mean = np.concatenate([values[first], values[second]]).mean()
        return (values - mean) / np.sqrt(np.mean((values[first] - values[second]) ** 2))

    return {"warm": scaled(warm), "bold": scaled(bold), "right and plain": scaled(scaled(published) - scaled(edges))}
