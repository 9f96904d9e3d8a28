"""What made a published student of its base, read out of ComfyUI's MODELs layer by layer, and how such a student is drawn."""

from __future__ import annotations

from collections.abc import Callable

import comfy.lora
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..samplers.presets import CUSTOM, PRESETS, find_preset, preset_sigmas
from ..samplers.schedules import sampling_kind
from ..training.lora import adaptable
from ..training.warm_start import Weights
from .drafts import chosen_preset

_NETWORK = "diffusion_model."
_EVENLY = "dmd2"  # 999 and evenly below, with fresh noise


def weights(model: ModelPatcher, patched: bool = True) -> Weights:
    """A parameter of the model's network by its name there: on the computing device, in float32, a copy.

    To be asked for while no model is loaded; nothing but that parameter is moved or copied.

    Args:
        patched: With the model's LoRAs and other patches, or without.
    """
    device, entries = comfy.model_management.get_torch_device(), model.get_key_patches(_NETWORK)

    def of(name: str) -> Tensor:
        (weight, convert), *patches = entries[_NETWORK + name]
        values = convert(comfy.model_management.cast_to_device(weight, device, torch.float32, copy=True), inplace=True)
        return comfy.lora.calculate_weight(patches, values, _NETWORK + name) if patched and patches else values

    return of


def patched_parameters(model: ModelPatcher) -> list[str]:
    """Names of the network's parameters that LoRAs or other patches change."""
    return [key.removeprefix(_NETWORK) for key in model.patches if key.startswith(_NETWORK)]


def without_patches(model: ModelPatcher) -> ModelPatcher:
    """The model as its loader gave it: no LoRA on its network; its sampling stays."""
    bare = model.clone()
    bare.patches = {key: value for key, value in model.patches.items() if not key.startswith(_NETWORK)}
    bare.add_patches({}, 0.0)  # another set of patches now, for ComfyUI's bookkeeping
    return bare


# ------------------------------------------------------------------------------------------------------- the start


def check_kin(teacher: ModelPatcher, other: ModelPatcher, who: str) -> None:
    """Whether a LoRA on ``teacher`` can begin at weights of ``other``.

    Raises:
        ValueError: It has other layers, or its network says something else.
    """
    mine, theirs = (_shapes(model) for model in (teacher, other))
    kinds = [sampling_kind(model.get_model_object("model_sampling")) for model in (teacher, other)]
    alike = type(teacher.model.diffusion_model) is type(other.model.diffusion_model) and kinds[0] == kinds[1]
    if kinds[0] == "discrete":  # else a student may be another kind of flow model, as FLUX.1 schnell is
        alike = alike and teacher.model.model_type == other.model.model_type
    if not alike or any(mine.get(name) != shape for name, shape in theirs.items()):
        names = [type(model.model.model_config).__name__ for model in (other, teacher)]
        what = f"{names[0]}, and the model {names[1]}" if names[0] != names[1] else f"another {names[0]} than the model"
        raise ValueError(
            f"The {who} is {what}: a LoRA can begin only at a student of the model's own kind, with the same layers; connect one "
            "that was made from the same base model, or disconnect it."
        )


def _shapes(model: ModelPatcher) -> dict[str, tuple[int, ...]]:
    return {name: tuple(layer.weight.shape) for name, layer in adaptable(model.model.diffusion_model).items()}


def student_change(teacher: ModelPatcher, student: ModelPatcher, base: ModelPatcher | None) -> Callable[[str], Tensor | None]:
    """What made ``student``, by the layer's name; None for layers that it lacks.

    Of a student with LoRAs it is what these change; else its difference to ``base``, or to the teacher's own checkpoint.
    """
    after, there = weights(student), _shapes(student)
    bare = student if patched_parameters(student) else teacher
    before = weights(base) if base is not None else weights(bare, patched=False)
    return lambda name: after(f"{name}.weight") - before(f"{name}.weight") if name in there else None


def draws_as(student: ModelPatcher) -> str:
    """The preset at whose noise levels a LoRA that begins at ``student`` learns and draws; "" where nobody knows.

    It learns with fresh noise between its steps (LCM's sampler), whatever the student's own sampler is: so Stable Diffusion's are
    called at 999 and evenly below, unless their preset is one of LCM's kind.

    Raises:
        ValueError: The student says something else than its teacher.
    """
    sampling = student.get_model_object("model_sampling")
    discrete = sampling_kind(sampling) == "discrete"
    try:
        row, _steps = find_preset(chosen_preset(student)[0])
    except ValueError:  # it says nothing of itself, or is drawn with a schedule of the artist's
        return _EVENLY if discrete else ""
    if row.predicts_x0:
        raise ValueError(
            "The student says the picture where the model says the noise (it was made for one step alone), so a LoRA can't begin "
            "at it; connect the one for two or four steps."
        )
    fresh = row.sampler == "lcm" and not row.unit_variance
    return _EVENLY if discrete and not fresh else next(name for name, each in PRESETS.items() if each is row)


def levels_of(preset: str, model: ModelPatcher, steps: int, size: tuple[int, int]) -> tuple[float, ...]:
    """The noise levels of a preset at which a student of ``model`` is called in so many steps, for pictures of ``size``.

    Raises:
        ValueError: The preset has no such number of steps.
    """
    sampling = model.get_model_object("model_sampling")
    return tuple(preset_sigmas(preset, steps, sampling, tiles=size[0] * size[1] / 256)[:-1].tolist())


def named(preset: str, steps: int) -> str:
    """What Student Sampler shall draw with: the preset in so many steps, where its sampler adds fresh noise as learning did."""
    return f"{preset}/{steps}step" if PRESETS[preset].sampler == "lcm" else CUSTOM
