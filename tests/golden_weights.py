"""Weights that need no storing: numbers that follow from a network's key names alone, by one rule.

z = (crc32(salt + key) << 32) + i through splitmix64's finaliser, u = (z >> 40) 2^-24, v = 2u - 1; matrices and kernels
v sqrt(3 / fan in), vectors named ``weight`` and running variances 1 + 0.2 v, other vectors 0.2 v.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch


def uniform(key: str, count: int) -> np.ndarray:
    """``count`` numbers in -1..1 that follow from ``key``."""
    with np.errstate(over="ignore"):
        z = (np.uint64(zlib.crc32(key.encode())) << np.uint64(32)) + np.arange(count, dtype=np.uint64)
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return 2 * ((z >> np.uint64(40)).astype(np.float64) * 2.0**-24) - 1


def tensor(salt: str, key: str, shape: Sequence[int], gain: float = 1.0) -> torch.Tensor:
    """The weight called ``key``."""
    if key.endswith("logit_scale"):
        return torch.tensor(math.log(100.0), dtype=torch.float32)
    if key.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(*shape)
    v = uniform(salt + key, math.prod(shape))
    if len(shape) >= 2:
        v *= math.sqrt(3 / math.prod(shape[1:])) * gain
    elif key.endswith(("weight", "running_var")):
        v = 1 + 0.2 * v
    else:
        v *= 0.2
    return torch.from_numpy(v.reshape(shape).astype(np.float32))


def weights(salt: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """All weights of a network whose keys and shapes are given."""
    return {key: tensor(salt, key, shape) for key, shape in shapes.items()}
