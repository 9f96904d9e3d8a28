"""Noise levels: of training timesteps and presets, and the one that a refinement starts from.

Noise levels ("sigma") are ComfyUI's: x = x0 + sigma * noise for discrete and EDM models, so that
sigma^2 = (1 - abar) / abar with the training's cumulative alphas; x = (1 - sigma) x0 + sigma * noise for flow models.
Everything here is torch alone; a model's own ``model_sampling`` may be handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

TRAINING_TIMESTEPS = 1000
INIT_SIGMA, INIT_TIMESTEP = 2.5, 625  # where SiD's generators draw from: EDM networks, Stable Diffusion
LCM_GRID = 50  # LCM and TCD were distilled on every twentieth timestep

# (steps, denoise) -> falling noise levels without the final 0: timesteps of discrete models, sigmas of the others
Rule = Callable[[int, float], list[float]]


def tail(grid: Callable[[int], list[float]]) -> Rule:
    """As the stock KSampler: with denoise < 1, the last ``steps`` of a grid of int(steps / denoise)."""
    return lambda steps, denoise: grid(max(int(steps / denoise), steps))[-steps:]


def lcm_timesteps(steps: int) -> list[float]:
    """Evenly skipped over the 50-step grid 999, 979, ... 19 (arXiv 2310.04378; diffusers ``LCMScheduler``)."""
    if steps > LCM_GRID:
        raise ValueError(f"This preset has a grid of {LCM_GRID} steps, and {steps} were asked for; raise denoise or take fewer.")
    skip = TRAINING_TIMESTEPS // LCM_GRID
    grid = [skip * k - 1 for k in range(LCM_GRID, 0, -1)]
    return [float(grid[int(i)]) for i in np.floor(np.linspace(0, LCM_GRID, steps, endpoint=False))]


def trailing_timesteps(steps: int) -> list[float]:
    """Ends of ``steps`` equal parts: 999, 749, 499, 249 (arXiv 2305.08891, Table 2, "trailing")."""
    return [float(t) - 1 for t in np.round(np.arange(TRAINING_TIMESTEPS, 0, -TRAINING_TIMESTEPS / steps))]


def turbo_timesteps(steps: int, denoise: float = 1.0) -> list[float]:
    """The first ``steps`` of 999, 899, 799, ... (Stability's rule; ComfyUI's ``SDTurboScheduler``)."""
    grid = [float(100 * k - 1) for k in range(10, 0, -1)]
    start = 10 - int(10 * denoise)
    chosen = grid[start : start + steps]
    if len(chosen) < steps:
        raise ValueError(
            f"This preset has {len(grid) - start} steps at denoise {denoise:g}, and {steps} were asked for; take fewer."
        )
    return chosen


def shifted_flow(shift: float) -> Rule:
    """Flow times 1, 1 - 1/N, ... 1/N, shifted: s t / (1 + (s - 1) t) (arXiv 2403.03206, section 5.3.2)."""

    def grid(steps: int) -> list[float]:
        times = [1 - i / steps for i in range(steps)]
        return [shift * t / (1 + (shift - 1) * t) for t in times]

    return tail(grid)


def normal_flow(shift: float) -> Rule:
    """ComfyUI's scheduler "normal" on a flow model: evenly from its highest to its lowest of 1000 levels, shifted (once more)."""
    lowest = shift * 0.001 / (1 + (shift - 1) * 0.001)

    def grid(steps: int) -> list[float]:
        return [shift * t / (1 + (shift - 1) * t) for t in np.linspace(1, lowest, steps).tolist()]

    return tail(grid)


def sgm_uniform_flow(shift: float) -> Rule:
    """ComfyUI's scheduler "sgm_uniform" on a flow model: ``normal_flow`` of a step more, without its lowest level."""
    rule = normal_flow(shift)
    return tail(lambda steps: rule(steps + 1, 1.0)[:-1])


def listed(*levels: float) -> Rule:
    """Levels that the authors list; with denoise < 1 the last part of them."""

    def rule(steps: int, denoise: float) -> list[float]:
        if steps != len(levels):
            raise ValueError(f"This preset has exactly {len(levels)} steps, and {steps} were asked for; leave steps at 0.")
        return list(levels)[-max(1, int(len(levels) * denoise)) :]

    return rule


def flux2_shift(steps: int, tiles: float) -> float:
    """The shift of FLUX.2's schedule (black-forest-labs/flux2, ``compute_empirical_mu``; ComfyUI's Flux2Scheduler)."""
    tiles = round(tiles)
    at_200 = 0.00016927 * tiles + 0.45666666
    at_10 = 8.73809524e-05 * tiles + 1.89833333
    return math.exp(at_200 if tiles > 4300 else at_10 + (at_200 - at_10) * (steps - 10) / 190)


def flux_shift(steps: int, tiles: float) -> float:
    """The shift of FLUX.1's schedule, which other families take too: mu from 0.5 at 256 tiles to 1.15 at 4096."""
    return math.exp(0.5 + (1.15 - 0.5) * (tiles - 256) / (4096 - 256))


def fixed(timestep: float) -> Rule:
    """One step at a fixed timestep; with denoise < 1 at that part of it."""
    return lambda steps, denoise: [float(math.floor(timestep * denoise))]


def sid_lsg_timesteps(steps: int, first: int = INIT_TIMESTEP) -> list[float]:
    """trunc(first (1 - i / N)) (arXiv 2406.01561, official code: t_init = 625), in whole numbers: floats miss 125 of 5 steps."""
    return [float(first * (steps - i) // steps) for i in range(steps)]


def sid_edm_sigmas(steps: int, first: float = INIT_SIGMA) -> list[float]:
    """SiD's one step at 2.5 (arXiv 2404.04057); with more, evenly down from there (the authors' EDM2 code, branch sida)."""
    return [first * (steps - i) / steps for i in range(steps)]


def tiny_world_sigmas(steps: int) -> list[float]:
    """80, then from 6 down to 0.4 in equal ratios: where the embedded student's sheets look best."""
    if steps <= 2:
        return [80.0, math.sqrt(6 * 0.4)][:steps]
    return [80.0, *np.geomspace(6, 0.4, steps - 1).tolist()]


@lru_cache(maxsize=1)
def _stable_diffusion_log_sigmas() -> np.ndarray[Any, np.dtype[np.float64]]:
    """ln sigma of SD 1.5's and SDXL's training timesteps: betas = linspace(sqrt 0.00085, sqrt 0.012)^2."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, TRAINING_TIMESTEPS) ** 2
    abar = np.cumprod(1 - betas)
    return 0.5 * np.log((1 - abar) / abar)


def timestep_sigma(timestep: float, model_sampling: Any = None) -> float:
    """The noise level of a training timestep (0..999; of Stable Cascade 0..1), interpolated in ln sigma between whole ones."""
    if model_sampling is not None:
        return float(model_sampling.sigma(torch.tensor(float(timestep))))
    table = _stable_diffusion_log_sigmas()
    return float(np.exp(np.interp(timestep, np.arange(len(table)), table)))


_KINDS = {"CONST": "flow", "COSMOS_RFLOW": "rflow", "StableCascadeSampling": "cascade", "ModelSamplingDiscreteEDM": "edm"}


def sampling_kind(model_sampling: Any) -> str:
    """What the noise levels of a model mean, from the classes that ComfyUI composes its sampling of.

    Returns:
        "discrete": of training timesteps 0..999; "flow": the flow time itself; "rflow": flow time t as t / (1 - t) (Cosmos,
        Anima); "cascade": of a time 0..1 (Stable Cascade); "edm": any from sigma_min to sigma_max.

    Raises:
        ValueError: It is none of them.
    """
    classes = {cls.__name__ for cls in type(model_sampling).__mro__}
    for name, kind in _KINDS.items():
        if name in classes:
            return kind
    if any("Continuous" in name for name in classes):
        return "edm"
    if hasattr(model_sampling, "num_timesteps"):
        return "discrete"
    raise ValueError(
        f"What a part of the noise means is not known for {type(model_sampling).__name__}; use a model of a kind that ComfyUI "
        "has (discrete, flow, EDM, Cosmos or Stable Cascade)."
    )


def rollback_sigma(rollback: float, model_sampling: Any) -> float:
    """The noise level to which a rejected draft is taken back (arXiv 2312.10835, Algorithm 1, line 8).

    ``rollback`` is a fraction, as the official code's ``strength``: of the training timesteps for discrete models, of the flow
    time for flow models (Cosmos's too), of Stable Cascade's time, of the way in ln sigma for EDM ones. 1 is exactly sigma_max,
    0 exactly 0. (The paper's algorithm writes a variance instead; a fraction means the same for every scheduler and number of
    steps.)

    Raises:
        ValueError: ``rollback`` is not in 0..1.
    """
    if not 0 <= rollback <= 1:
        raise ValueError(f"rollback is from 0 (keep the draft) to 1 (start from noise), not {rollback:g}.")
    low, high = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
    if rollback in (0.0, 1.0):
        return high * rollback
    kind = sampling_kind(model_sampling)
    if kind == "flow":
        return rollback
    if kind == "rflow":
        time = rollback * high / (1 + high)
        return time / (1 - time)
    if kind == "cascade":
        return timestep_sigma(rollback, model_sampling)
    if kind == "edm":
        return low ** (1 - rollback) * high**rollback
    return timestep_sigma(rollback * (model_sampling.num_timesteps - 1), model_sampling)


def rollback_of(sigmas: Tensor, model_sampling: Any) -> float:
    """The fraction, as of ``rollback_sigma``, that a schedule starts from: 1 at or above the highest level, at least 0.01."""
    first = float(sigmas.max())
    if first >= float(model_sampling.sigma_max) * (1 - 1e-6):
        return 1.0
    low, high = 0.01, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if rollback_sigma(middle, model_sampling) < first else (low, middle)
    return round(high, 6)


def refine_sigmas(schedule: Tensor, start: float) -> Tensor:
    """``start``, then the levels of the teacher's ``schedule`` that are below it.

    So a refinement takes part of the teacher's steps (diffusers' ``strength``), and at the highest level all of them.
    """
    if start <= 0:
        return schedule[:0]
    if start >= float(schedule[0]) * (1 - 1e-6):
        return schedule
    below = schedule[schedule < start * (1 - 1e-6)]
    return torch.cat([torch.tensor([start], dtype=schedule.dtype), below])
