"""Published few-step models: the steps, sampler and noise levels that their authors recommend."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .schedules import (
    Rule,
    fixed,
    flux2_shift,
    flux_shift,
    lcm_timesteps,
    listed,
    normal_flow,
    sampling_kind,
    sgm_uniform_flow,
    shifted_flow,
    sid_edm_sigmas,
    sid_lsg_timesteps,
    tail,
    timestep_sigma,
    tiny_world_sigmas,
    trailing_timesteps,
    turbo_timesteps,
)


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


_TRAILING = tail(trailing_timesteps)

PRESETS: dict[str, Preset] = {
    "tiny-world": Preset("edm", tail(tiny_world_sigmas), "lcm", 4, 8, "world/recipe/student.py"),
    "lcm-lora-sd15-sdxl": Preset("discrete", tail(lcm_timesteps), "lcm", 4, 50, "arXiv 2311.05556, latent-consistency/lcm-lora-sdxl", files=r"lcm-(sdxl|ssd-1b|dreamshaper-v7)"),
    "sdxl-turbo/stability-first-n": Preset("discrete", turbo_timesteps, "euler_ancestral", 1, 10, "Stability-AI/generative-models, ComfyUI SDTurboScheduler", files=r"sd(-?xl)?-turbo"),
    "sdxl-turbo/trailing": Preset("discrete", _TRAILING, "euler_ancestral", 1, 8, "stabilityai/sdxl-turbo, scheduler_config.json"),
    "sdxl-lightning": Preset("discrete", _TRAILING, "euler", 4, 8, "ByteDance/SDXL-Lightning (2, 4 and 8 steps)", files=r"sdxl-lightning-(?P<n>[248])step"),
    "sdxl-lightning-1step/x0": Preset("discrete", _TRAILING, "euler", 1, 1, "ByteDance/SDXL-Lightning, sdxl_lightning_1step_x0", predicts_x0=True, files=r"sdxl-lightning-1step-(unet-)?x0"),
    "hyper-sd": Preset("discrete", _TRAILING, "euler", 4, 8, "ByteDance/Hyper-SD (2, 4 and 8 steps: DDIM, trailing)"),
    "hyper-sdxl-1step/t800": Preset("discrete", fixed(800), "lcm", 1, 1, "ByteDance/Hyper-SD, Hyper-SDXL-1step-Unet (LCMScheduler, timesteps=[800])", unit_variance=True, files=r"hyper-sdxl-1step-unet(?!-comfy)"),
    "dmd2": Preset("discrete", _TRAILING, "lcm", 4, 8, "tianweiy/DMD2 (timesteps 999, 749, 499, 249)", files=r"dmd2-sdxl-4step-unet"),
    "dmd2-1step/t399": Preset("discrete", fixed(399), "lcm", 1, 1, "tianweiy/DMD2, dmd2_sdxl_1step_unet (timesteps=[399])", unit_variance=True, files=r"dmd2-sdxl-1step-unet"),
    "tcd-eta0.3": Preset("discrete", tail(lcm_timesteps), "tcd", 4, 50, "arXiv 2402.19159, h1t/TCD-SDXL-LoRA"),
    "pcm": Preset("discrete", _TRAILING, "euler", 4, 16, "arXiv 2405.18407, wangfuyun/PCM_Weights (DDIM, trailing)"),
    "sid-lsg": Preset("discrete", tail(sid_lsg_timesteps), "lcm", 1, 4, "arXiv 2406.01561, mingyuanzhou/SiD-LSG"),
    "sid-edm": Preset("edm", tail(sid_edm_sigmas), "lcm", 1, 4, "arXiv 2404.04057, mingyuanzhou/SiD (one step; more as its branch sida)"),
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

# What people call a kind of sampling.
_KINDS = {
    "discrete": "models with Stable Diffusion's timesteps", "flow": "flow models", "edm": "EDM models",
    "rflow": "Cosmos's flow models", "cascade": "Stable Cascade",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Models that share their students: what people call one, and the presets of students that there are."""

    name: str
    presets: tuple[str, ...]


_SD = ("lcm-lora-sd15-sdxl", "hyper-sd", "tcd-eta0.3", "pcm")
# By ComfyUI's classes of model configurations.
FAMILIES: dict[str, Family] = {
    "SDXL": Family("an SDXL model", ("sdxl-lightning", "dmd2", "sdxl-turbo/stability-first-n", *_SD)),
    "SD15": Family("an SD1.5 model", (*_SD, "sid-lsg")),
    "SD20": Family("an SD2 model", ("sdxl-turbo/stability-first-n", "sid-lsg")),
    "SD3": Family("an SD3 model", ("sd35-large-turbo/shift3", "sid-dit")),
    "Flux2": Family("a FLUX.2 model", ("flux2-klein",)),
    "Flux": Family("a FLUX.1 model", ("flux-schnell", "sid-dit")),
    "ZImage": Family("a Z-Image model", ("z-image-turbo/res-multistep", "z-image-turbo/shift3")),
    "QwenImage": Family("a Qwen-Image model", ("qwen-image-lightning/shift3", "qwen-image-lightning/shift3.1", "qwen-image-2.1-turbo")),
    "HiDream": Family("a HiDream model", ("hidream-i1-fast/shift3", "hidream-i1-dev/shift6")),
    "LTXV": Family("an LTX model", ("ltx-distilled",)),
    "LTXAV": Family("an LTX model", ("ltx-distilled",)),
    "WAN21_T2V": Family("a Wan model", ("wan21-lightx2v/shift5", "wan22-lightx2v/shift5")),
    "TinyWorldConfig": Family("the tiny world's model", ("tiny-world", "sid-edm")),
    "EDMConfig": Family("an EDM network", ("sid-edm",)),
}  # fmt: skip


def choice_for(classes: Iterable[str], kind: str) -> str:
    """What a model is, and which presets there are for it, as the end of a sentence for people.

    Args:
        classes: The names of its configuration's class and of that's ancestors, the nearest first.
        kind: Of its sampling.
    """
    family = next((FAMILIES[name] for name in classes if name in FAMILIES), None)
    fits = [name for name in (family.presets if family else PRESETS) if PRESETS[name].kind == kind]
    who = family.name if family else f"a model of another family, of {_KINDS[kind]}"
    if not fits:
        return f"{who}, for which there is no preset: take '{CUSTOM}' with its own sampler and scheduler"
    return f"{who}: choose {', '.join(fits)}, whichever it was made as, or '{CUSTOM}' with its own sampler and scheduler"


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


def preset_sigmas(
    preset: str, steps: int | None = None, model_sampling: Any = None, denoise: float = 1.0, tiles: float = TILES,
    classes: Iterable[str] = (),
) -> Tensor:
    """The noise levels [steps + 1] that a student is drawn at, falling, the last 0.

    Args:
        preset: A key of ``PRESETS``; the number of steps may be in the name ("sdxl-lightning/4step").
        steps: How many; 0 or None for the preset's own number.
        model_sampling: The model's; without it, the timesteps are those of SD 1.5 and SDXL.
        denoise: Part of the way that is drawn (0..1], as in the stock KSampler.
        tiles: The picture's size in tiles of 16 x 16 pixels, for presets that depend on it.
        classes: As ``choice_for``, for what is said of a model of another kind.

    Raises:
        ValueError: Unknown preset, steps or denoise out of range, or a model of another kind.
    """
    row, count = find_preset(preset, steps)
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise is above 0 and at most 1, not {denoise:g}.")
    if model_sampling is not None and sampling_kind(model_sampling) != row.kind:
        raise ValueError(
            f"The preset '{preset}' is for {_KINDS[row.kind]}, but this is {choice_for(classes, sampling_kind(model_sampling))}."
        )
    levels = (shifted_flow(row.shift(count, tiles)) if row.shift else row.rule)(count, denoise)
    if row.kind == "discrete":
        levels = [timestep_sigma(t, model_sampling) for t in levels]
    return torch.tensor([*levels, 0.0], dtype=torch.float32)


def initial_scale(preset: str, sigma: float) -> float:
    """What the first noise must be multiplied by, over ComfyUI's own scaling, to be what the student was trained on.

    ComfyUI gives the network noise of standard deviation sigma / sqrt(1 + sigma^2) when it starts below the highest
    level; DMD2's one-step model (t = 399) and Hyper-SDXL's (t = 800) were trained on noise of standard deviation 1.
    """
    return math.sqrt(1 + sigma**2) / sigma if preset in PRESETS and PRESETS[preset].unit_variance else 1.0
