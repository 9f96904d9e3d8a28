"""Where students draw: the noise levels of published few-step models, and the level that a refinement starts from.

Noise levels ("sigma") are ComfyUI's: x = x0 + sigma * noise for discrete and EDM models, so that
sigma^2 = (1 - abar) / abar with the training's cumulative alphas; x = (1 - sigma) x0 + sigma * noise for flow models.
Everything here is torch alone; a model's own ``model_sampling`` may be handed in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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


# ------------------------------------------------------------------------------------------------------ rules


def _tail(grid: Callable[[int], list[float]]) -> Rule:
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


def sid_lsg_timesteps(steps: int, first: int = INIT_TIMESTEP) -> list[float]:
    """trunc(first (1 - i / N)) (arXiv 2406.01561, official code: t_init = 625), in whole numbers: floats miss 125 of 5 steps."""
    return [float(first * (steps - i) // steps) for i in range(steps)]


def sid_edm_sigmas(steps: int, first: float = INIT_SIGMA) -> list[float]:
    """SiD's one step at 2.5 (arXiv 2404.04057); with more, evenly down from there (the authors' EDM2 code, branch sida)."""
    return [first * (steps - i) / steps for i in range(steps)]


def shifted_flow(shift: float) -> Rule:
    """Flow times 1, 1 - 1/N, ... 1/N, shifted: s t / (1 + (s - 1) t) (arXiv 2403.03206, section 5.3.2)."""

    def grid(steps: int) -> list[float]:
        times = [1 - i / steps for i in range(steps)]
        return [shift * t / (1 + (shift - 1) * t) for t in times]

    return _tail(grid)


def normal_flow(shift: float) -> Rule:
    """ComfyUI's scheduler "normal" on a flow model: evenly from its highest to its lowest of 1000 levels, shifted (once more)."""
    lowest = shift * 0.001 / (1 + (shift - 1) * 0.001)

    def grid(steps: int) -> list[float]:
        return [shift * t / (1 + (shift - 1) * t) for t in np.linspace(1, lowest, steps).tolist()]

    return _tail(grid)


def sgm_uniform_flow(shift: float) -> Rule:
    """ComfyUI's scheduler "sgm_uniform" on a flow model: ``normal_flow`` of a step more, without its lowest level."""
    rule = normal_flow(shift)
    return _tail(lambda steps: rule(steps + 1, 1.0)[:-1])


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


def tiny_world_sigmas(steps: int) -> list[float]:
    """80, then from 6 down to 0.4 in equal ratios: where the embedded student's sheets look best."""
    if steps <= 2:
        return [80.0, math.sqrt(6 * 0.4)][:steps]
    return [80.0, *np.geomspace(6, 0.4, steps - 1).tolist()]


def _fixed(timestep: float) -> Rule:
    """One step at a fixed timestep; with denoise < 1 at that part of it."""
    return lambda steps, denoise: [float(math.floor(timestep * denoise))]


# ------------------------------------------------------------------------------------------------------ table


@dataclass(frozen=True)
class Preset:
    """How one published student is drawn with.

    Attributes:
        kind: "discrete" (the rule gives training timesteps), "flow" or "edm" (the rule gives noise levels).
        sampler: ComfyUI's sampler, or "tcd".
        steps: The number that the authors recommend.
        most: The largest number that makes sense.
        unit_variance: The first input is noise of variance 1, where ComfyUI would give sigma^2 / (1 + sigma^2).
        predicts_x0: The network's output is the picture, not the noise.
        source: Where the numbers are from.
        shift: Of flow models whose shift depends on the picture's size: from steps and tiles of 16 x 16 pixels, in place of
            the rule, which is that of 1024 x 1024 pixels.
        files: How the names of its published files begin, as a pattern for ``recognise``; n is the number of steps.
    """

    kind: str
    rule: Rule
    sampler: str
    steps: int
    most: int
    source: str
    unit_variance: bool = False
    predicts_x0: bool = False
    shift: Callable[[int, float], float] | None = None
    files: str = ""


TILES = 4096  # of 16 x 16 pixels, in a picture of 1024 x 1024


def _by_size(
    shift: Callable[[int, float], float], sampler: str, steps: int, most: int, source: str, files: str
) -> Preset:
    def rule(count: int, denoise: float) -> list[float]:
        return shifted_flow(shift(count, TILES))(count, denoise)

    return Preset("flow", rule, sampler, steps, most, source, shift=shift, files=files)


_TRAILING = _tail(trailing_timesteps)

PRESETS: dict[str, Preset] = {
    "tiny-world": Preset("edm", _tail(tiny_world_sigmas), "lcm", 4, 8, "world/recipe/student.py"),
    "lcm-lora-sd15-sdxl": Preset("discrete", _tail(lcm_timesteps), "lcm", 4, 50, "arXiv 2311.05556, latent-consistency/lcm-lora-sdxl", files=r"lcm-(sdxl|ssd-1b|dreamshaper-v7)"),
    "sdxl-turbo/stability-first-n": Preset("discrete", turbo_timesteps, "euler_ancestral", 1, 10, "Stability-AI/generative-models, ComfyUI SDTurboScheduler", files=r"sd(-?xl)?-turbo"),
    "sdxl-turbo/trailing": Preset("discrete", _TRAILING, "euler_ancestral", 1, 8, "stabilityai/sdxl-turbo, scheduler_config.json"),
    "sdxl-lightning": Preset("discrete", _TRAILING, "euler", 4, 8, "ByteDance/SDXL-Lightning (2, 4 and 8 steps)", files=r"sdxl-lightning-(?P<n>[248])step"),
    "sdxl-lightning-1step/x0": Preset("discrete", _TRAILING, "euler", 1, 1, "ByteDance/SDXL-Lightning, sdxl_lightning_1step_x0", predicts_x0=True, files=r"sdxl-lightning-1step-(unet-)?x0"),
    "hyper-sd": Preset("discrete", _TRAILING, "euler", 4, 8, "ByteDance/Hyper-SD (2, 4 and 8 steps: DDIM, trailing)"),
    "hyper-sdxl-1step/t800": Preset("discrete", _fixed(800), "lcm", 1, 1, "ByteDance/Hyper-SD, Hyper-SDXL-1step-Unet (LCMScheduler, timesteps=[800])", unit_variance=True, files=r"hyper-sdxl-1step-unet(?!-comfy)"),
    "dmd2": Preset("discrete", _TRAILING, "lcm", 4, 8, "tianweiy/DMD2 (timesteps 999, 749, 499, 249)", files=r"dmd2-sdxl-4step-unet"),
    "dmd2-1step/t399": Preset("discrete", _fixed(399), "lcm", 1, 1, "tianweiy/DMD2, dmd2_sdxl_1step_unet (timesteps=[399])", unit_variance=True, files=r"dmd2-sdxl-1step-unet"),
    "tcd-eta0.3": Preset("discrete", _tail(lcm_timesteps), "tcd", 4, 50, "arXiv 2402.19159, h1t/TCD-SDXL-LoRA"),
    "pcm": Preset("discrete", _TRAILING, "euler", 4, 16, "arXiv 2405.18407, wangfuyun/PCM_Weights (DDIM, trailing)"),
    "sid-lsg": Preset("discrete", _tail(sid_lsg_timesteps), "lcm", 1, 4, "arXiv 2406.01561, mingyuanzhou/SiD-LSG"),
    "sid-edm": Preset("edm", _tail(sid_edm_sigmas), "lcm", 1, 4, "arXiv 2404.04057, mingyuanzhou/SiD (one step; more as its branch sida)"),
    "flux-schnell": Preset("flow", shifted_flow(1.0), "euler", 4, 8, "black-forest-labs/FLUX.1-schnell", files=r"flux-?1-schnell"),
    "sd35-large-turbo/shift3": Preset("flow", shifted_flow(3.0), "euler", 4, 8, "stabilityai/stable-diffusion-3.5-large-turbo, as ComfyUI draws it (diffusers shifts its end point once more)", files=r"(sd|stable-diffusion-)3-5-large-turbo"),
    "z-image-turbo/shift3": Preset("flow", shifted_flow(3.0), "euler", 8, 16, "Tongyi-MAI/Z-Image-Turbo"),
    "qwen-image-lightning/shift3": Preset("flow", shifted_flow(3.0), "euler", 4, 8, "lightx2v/Qwen-Image-Lightning (base_shift = ln 3)"),
    "z-image-turbo/res-multistep": Preset("flow", shifted_flow(3.0), "res_multistep", 9, 16, "ComfyUI's template image_z_image_turbo (9 steps, simple, shift 3)", files=r"z-image-turbo"),
    "hidream-i1-fast/shift3": Preset("flow", normal_flow(3.0), "lcm", 16, 32, "ComfyUI's template hidream_i1_fast (normal, shift 3)", files=r"hidream-i1-fast"),
    "hidream-i1-dev/shift6": Preset("flow", normal_flow(6.0), "lcm", 28, 50, "ComfyUI's template hidream_i1_dev (normal, shift 6)", files=r"hidream-i1-dev"),
    "flux2-klein": _by_size(flux2_shift, "euler", 4, 8, "black-forest-labs/flux2; ComfyUI's template image_flux2_klein_text_to_image (Flux2Scheduler)", r"flux-2-klein-[49]b"),
    "krea2-turbo": Preset("flow", shifted_flow(math.exp(1.15)), "euler", 8, 16, "ComfyUI's template image_krea2_turbo_t2i (simple; core's Krea2: mu 1.15)", files=r"krea-?2-turbo"),
    "ernie-image-turbo/shift3": Preset("flow", shifted_flow(3.0), "euler", 8, 16, "ComfyUI's template image_ernie_image_turbo (simple; core's ErnieImage: shift 3)", files=r"ernie-image-turbo"),
    "mage-flow-turbo/shift6": Preset("flow", shifted_flow(6.0), "euler", 4, 8, "ComfyUI's template image_mage_flow_turbo_t2i_int8 (simple; core's MageFlow: shift 6)", files=r"mage-flow(-edit)?-turbo"),
    "lens-turbo": _by_size(flux_shift, "euler", 4, 8, "ComfyUI's template image_lens_turbo_t2i (simple, ModelSamplingFlux 1.15 and 0.5)", r"lens-turbo"),
    "boogu-turbo/shift3.16": Preset("flow", sgm_uniform_flow(3.16), "lcm", 4, 8, "ComfyUI's template image_boogu_image_0_1_turbo_t2i (sgm_uniform; core's Boogu: shift 3.16)", files=r"boogu-image(-0-1)?-turbo"),
    "qwen-image-lightning/shift3.1": Preset("flow", shifted_flow(3.1), "euler", 4, 8, "ComfyUI's templates image_qwen_Image_2512 and image_qwen_image_edit_2511 (simple, shift 3.1)"),
    "qwen-image-2.1-turbo": Preset("flow", listed(1, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568), "euler", 8, 8, "ComfyUI's template image_qwen_image_2_1_turbo_t2i", files=r"qwen-image-2-1-turbo"),
    "ltx-distilled": Preset("flow", listed(1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875), "euler", 8, 8, "Lightricks/LTX-2, DISTILLED_SIGMA_VALUES; ComfyUI's template video_ltx2_3_t2v", files=r"ltx-2(-[35])?-\d+b-distilled"),
    "wan21-lightx2v/shift5": Preset("flow", shifted_flow(5.0), "lcm", 4, 8, "ModelTC/LightX2V, WanStepDistillScheduler (1000, 750, 500, 250, shift 5)", files=r"wan2-1-[it]2v-14b(-\d+p)?-lightx2v-4step"),
    "wan22-lightx2v/shift5": Preset("flow", shifted_flow(5.0), "euler", 4, 8, "ModelTC/LightX2V, Wan22StepDistillScheduler; ComfyUI's template video_wan2_2_14B_t2v"),
    "sid-dit": Preset("flow", shifted_flow(1.0), "lcm", 4, 8, "arXiv 2509.25127, apple-aiml-research/ml-sid-dit (t = 999 (1 - i / 4), fresh noise, no shift)"),
}  # fmt: skip
CUSTOM = "custom"  # the artist's own sampler and scheduler
AUTO = "auto"  # the preset that the model's card names

_ALIASES = {
    "lcm": "lcm-lora-sd15-sdxl",
    "lcm-lora": "lcm-lora-sd15-sdxl",
    "sd-turbo": "sdxl-turbo/stability-first-n",
    "sdxl-turbo": "sdxl-turbo/stability-first-n",
    "sd-turbo/trailing": "sdxl-turbo/trailing",
    "sd-turbo/stability-first-n": "sdxl-turbo/stability-first-n",
    "lightning": "sdxl-lightning",
    "sdxl-lightning/x0": "sdxl-lightning-1step/x0",
    "hyper-sdxl": "hyper-sd",
    "hyper-sd15": "hyper-sd",
    "hyper-sdxl/t800": "hyper-sdxl-1step/t800",
    "dmd2-sdxl": "dmd2",
    "dmd2/t399": "dmd2-1step/t399",
    "dmd2-sdxl/t399": "dmd2-1step/t399",
    "tcd": "tcd-eta0.3",
    "sid-lsg/t625": "sid-lsg",
    "flux1-schnell": "flux-schnell",
    "sd35-large-turbo": "sd35-large-turbo/shift3",
    "sd35-turbo": "sd35-large-turbo/shift3",
    "z-image-turbo": "z-image-turbo/shift3",
    "qwen-image-lightning": "qwen-image-lightning/shift3",
    "hidream-i1-fast": "hidream-i1-fast/shift3",
    "hidream-i1-dev": "hidream-i1-dev/shift6",
    "ernie-image-turbo": "ernie-image-turbo/shift3",
    "ernie-turbo": "ernie-image-turbo/shift3",
    "mage-flow-turbo": "mage-flow-turbo/shift6",
    "boogu-turbo": "boogu-turbo/shift3.16",
    "wan-lightx2v": "wan22-lightx2v/shift5",
}


def find_preset(name: str, steps: int | None = None) -> tuple[Preset, int]:
    """The preset called ``name`` and the number of steps: asked for, or in the name ("pcm/8step"), or the preset's own.

    Raises:
        ValueError: There is no such preset, or it has no such number of steps.
    """
    if name in PRESETS:
        base, named = name, None
    else:
        match = re.search(r"[/-](\d+)[- ]?steps?", name)
        base = name[: match.start()] + name[match.end() :] if match else name
        named = int(match[1]) if match else None
        base = base if base in PRESETS else _ALIASES.get(base, base)
    if base not in PRESETS:
        raise ValueError(f"There is no preset '{name}'; choose one of: {', '.join([*PRESETS, CUSTOM])}.")
    preset = PRESETS[base]
    count = steps or named or preset.steps
    if not 1 <= count <= preset.most:
        raise ValueError(f"The preset '{base}' draws in 1 to {preset.most} steps, not {count}; set steps within that.")
    return preset, count


def recognise(names: Iterable[str]) -> tuple[str, str] | None:
    """The preset of a student and the name that told it; None where none is certain.

    Args:
        names: What it goes by: its file's name, its folder's, the title in its metadata.
    """
    for name in names:
        plain = re.sub(r"[\s_.]+", "-", re.sub(r"\.(safetensors|gguf|bin|pt|pth|ckpt)$", "", name.lower()))
        for preset, row in PRESETS.items():
            if row.files and (match := re.match(f"(?:{row.files})(?=-|$)", plain)):
                steps = match.groupdict().get("n")
                return (f"{preset}/{steps}step" if steps else preset), name
    return None


# ------------------------------------------------------------------------------------------------------ levels


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
        f"What a part of the noise means is not known for {type(model_sampling).__name__}; use a model of a kind that ComfyUI has "
        "(discrete, flow, EDM, Cosmos or Stable Cascade)."
    )


def preset_sigmas(
    preset: str, steps: int | None = None, model_sampling: Any = None, denoise: float = 1.0, tiles: float = TILES
) -> Tensor:
    """The noise levels [steps + 1] that a student is drawn at, falling, the last 0.

    Args:
        preset: A key of ``PRESETS``; the number of steps may be in the name ("sdxl-lightning/4step").
        steps: How many; 0 or None for the preset's own number.
        model_sampling: The model's; without it, the timesteps are those of SD 1.5 and SDXL.
        denoise: Part of the way that is drawn (0..1], as in the stock KSampler.
        tiles: The picture's size in tiles of 16 x 16 pixels, for presets that depend on it.

    Raises:
        ValueError: Unknown preset, steps or denoise out of range, or a model of another kind.
    """
    found, count = find_preset(preset, steps)
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise is above 0 and at most 1, not {denoise:g}.")
    if model_sampling is not None and sampling_kind(model_sampling) != found.kind:
        raise ValueError(
            f"The preset '{preset}' is for {found.kind} models, but this is of kind {sampling_kind(model_sampling)}; "
            f"choose the preset that the student was made for, or '{CUSTOM}'."
        )
    levels = (shifted_flow(found.shift(count, tiles)) if found.shift else found.rule)(count, denoise)
    if found.kind == "discrete":
        levels = [timestep_sigma(t, model_sampling) for t in levels]
    return torch.tensor([*levels, 0.0], dtype=torch.float32)


def initial_scale(preset: str, sigma: float) -> float:
    """What the first noise must be multiplied by, over ComfyUI's own scaling, to be what the student was trained on.

    ComfyUI gives the network noise of standard deviation sigma / sqrt(1 + sigma^2) when it starts below the highest
    level; DMD2's one-step model (t = 399) and Hyper-SDXL's (t = 800) were trained on noise of standard deviation 1.
    """
    return math.sqrt(1 + sigma**2) / sigma if preset in PRESETS and PRESETS[preset].unit_variance else 1.0


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
