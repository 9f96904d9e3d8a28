"""How SiD's students are drawn with: one step from one noise level, or a few with fresh noise in between.

SiD (arXiv 2404.04057): G(z) = D(2.5 z, 2.5, labels) on EDM networks. SiD-LSG (arXiv 2406.01561): the same at timestep 625 of
Stable Diffusion. The few-step form of the official code renoises the picture and denoises it again, at falling levels.
Everything here is torch alone; ``comfy_edm.draw_sid`` draws.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .schedules import INIT_SIGMA, INIT_TIMESTEP, sampling_kind, sid_edm_sigmas, sid_lsg_timesteps, timestep_sigma

MOST_STEPS = 16


def sid_levels(
    model_sampling: Any, steps: int = 1, init_sigma: float = INIT_SIGMA, init_timestep: int = INIT_TIMESTEP
) -> list[float]:
    """Where the generator is called, falling: timesteps trunc(init_timestep (1 - i / steps)) of a discrete model, noise levels
    init_sigma (1 - i / steps) of an EDM one.

    Raises:
        ValueError: It is another kind of model, or a number is out of range.
    """
    kind = sampling_kind(model_sampling)
    if kind not in ("edm", "discrete"):
        what = {"flow": "a flow model", "cascade": "Stable Cascade"}.get(kind, f"of kind {kind}")
        raise ValueError(
            f"SiD Sampler is for EDM networks and Stable Diffusion, and this is {what}: use Student Sampler or KSampler."
        )
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"SiD draws in 1 to {MOST_STEPS} steps, not {steps}.")
    if kind == "edm":
        return sid_edm_sigmas(steps, init_sigma)
    return sid_lsg_timesteps(steps, init_timestep)


def sid_sigmas(model_sampling: Any, steps: int = 1, init_sigma: float = INIT_SIGMA, init_timestep: int = INIT_TIMESTEP) -> Tensor:
    """The noise levels [steps + 1] of ``sid_levels``, the last 0.

    Raises:
        ValueError: As there.
    """
    levels = sid_levels(model_sampling, steps, init_sigma, init_timestep)
    if sampling_kind(model_sampling) == "discrete":
        levels = [timestep_sigma(t, model_sampling) for t in levels]
    return torch.tensor([*levels, 0.0], dtype=torch.float32)


def start_scale(sigma: float, sigma_max: float) -> float:
    """What the first noise is multiplied by, so that the network sees sigma z (in SD's form sqrt(1 - abar) z) at every level.

    At a model's highest level ComfyUI starts from noise of sqrt(1 + sigma^2) instead of sigma.
    """
    return sigma / math.sqrt(1 + sigma**2) if sigma >= sigma_max * (1 - 1e-5) else 1.0


def tile(images: Tensor, columns: int = 0) -> Tensor:
    """Pictures [B, H, W, C] side by side in one [1, rows H, columns W, C]; row by row, empty places black.

    Args:
        columns: How many in a row; 0 for as many as rows, or one more.
    """
    count, height, width, channels = images.shape
    columns = min(columns, count) or math.ceil(math.sqrt(count))
    rows = -(-count // max(columns, 1))
    cells = images.new_zeros(rows * columns, height, width, channels)
    cells[:count] = images
    grid = cells.view(rows, columns, height, width, channels).movedim(2, 1)
    return grid.reshape(1, rows * height, columns * width, channels)
