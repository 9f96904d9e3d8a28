"""Passes through a network that keep nothing but what went in, until the backward pass comes to them.

SiD differentiates through generator, fake score and teacher in one loss, each with guidance: five pictures' passes for one
picture. Computed again one by one (arXiv 1604.06174), only one of them is ever held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Denoise = Callable[..., Tensor]


def apart(denoise: Denoise) -> Denoise:
    """``denoise`` (x [B, ...], sigma [B, ...], labels [B]), which goes through the network picture by picture.

    With gradients each picture's pass is made again in the backward pass. The same to rounding; a forward pass more for each
    that is learned from.
    """

    def one(x: Tensor, sigma: Tensor, labels: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return denoise(x, sigma, labels)
        again: Tensor = checkpoint(denoise, x, sigma, labels, use_reentrant=False)
        return again

    def one_by_one(x: Tensor, sigma: Tensor, labels: Any) -> Tensor:
        rows = [slice(row, row + 1) for row in range(len(x))]
        return torch.cat([one(x[row], sigma[row], labels[row]) for row in rows])

    return one_by_one
