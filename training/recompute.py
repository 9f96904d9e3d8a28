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
    """``denoise`` (x [B, ...], sigma [B, ...], labels [B]), whose passes with gradients are made picture by picture, and again
    in the backward pass. The same to rounding; a forward pass more each.
    """

    def one_by_one(x: Tensor, sigma: Tensor, labels: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return denoise(x, sigma, labels)
        rows = [slice(row, row + 1) for row in range(len(x))]
        return torch.cat([checkpoint(denoise, x[row], sigma[row], labels[row], use_reentrant=False) for row in rows])

    return one_by_one
