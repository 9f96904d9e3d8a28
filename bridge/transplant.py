"""What made a published student of its base, read out of ComfyUI's MODELs layer by layer, and how such a student is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..samplers.presets import CUSTOM, PRESETS, Preset, find_preset, preset_sigmas
from ..samplers.schedules import sampling_kind
from ..training.lora import Lora, adaptable, in_half, lora_state_dict
from ..training.qualities import KEEP
from ..training.sid_options import BASE, STUDENT, TEACHER
from ..training.warm_start import Weights, begin_at, learned, recompressed
from .copies import check_packed, packed_bytes
from .drafts import chosen_preset
from .fingerprints import model_fingerprint, model_name

_NETWORK = "diffusion_model."
_SUFFIX = {"weight": ".diff", "bias": ".diff_b"}  # the stock LoRA loader's
MOST_STEPS = 4  # of a student that is made here
_EVENLY = "dmd2"  # 999 and evenly below, with fresh noise


def weights(model: ModelPatcher, patched: bool = True) -> Weights:
    """A parameter of the model's network by its name there: on the computing device, in float32, a copy.

    To be asked for while no model is loaded; nothing but that parameter is moved or copied.

    Args:
        patched: With the model's LoRAs and other patches, or without.
    """
    device, entries = _device(), model.get_key_patches(_NETWORK)

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


def _same(first: ModelPatcher, second: ModelPatcher) -> bool:
    """Whether both are one network with one set of patches."""
    return first.model is second.model and first.patches_uuid == second.patches_uuid


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
    called at 999 and evenly below, unless their preset is one of LCM's kind. A preset that lists the levels of its one number of
    steps names none for fewer: its student is called as one that nobody knows.

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
    if not discrete and not _draws_in_few(row):
        return ""
    fresh = row.sampler == "lcm" and not row.unit_variance
    return _EVENLY if discrete and not fresh else next(name for name, each in PRESETS.items() if each is row)


def _draws_in_few(row: Preset) -> bool:
    try:
        return all(row.shift or row.rule(steps, 1.0) for steps in range(1, MOST_STEPS + 1))
    except ValueError:
        return False


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


# --------------------------------------------------------------------------------------------------------- the run


@dataclass(frozen=True)
class Transplant:
    """The published student that a LoRA on the teacher begins at.

    Attributes:
        base: What the student was made of; None where ``student_change`` finds it out.
        preset: See ``draws_as``.
    """

    teacher: ModelPatcher
    student: ModelPatcher
    base: ModelPatcher | None
    preset: str

    @classmethod
    def of(cls, teacher: ModelPatcher, student: ModelPatcher, base: ModelPatcher | None) -> Transplant:
        """The same, if it can be done; nothing is computed yet.

        Raises:
            ValueError: The models don't fit together.
        """
        check_kin(teacher, student, "student")
        if base is not None:
            check_kin(student, base, "base")
        return cls(teacher, student, base, draws_as(student))

    def facts(self) -> dict[str, Any]:
        """What the run is made of, beside both models."""
        return {"begins_at": self.preset} | ({} if self.base is None else {"base": model_fingerprint(self.base)})

    def begin(self, lora: Lora) -> float:
        """Let the generator's new LoRA begin there; the share of the student's change that its rank holds. May be cancelled."""
        change = student_change(self.teacher, self.student, self.base)
        return begin_at(lora, change, comfy.model_management.throw_exception_if_processing_interrupted)


@dataclass(frozen=True)
class Models:
    """What SiD Distill is given: the teacher, and perhaps a student to begin at and what that was made of."""

    teacher: ModelPatcher
    student: ModelPatcher | None = None
    base: ModelPatcher | None = None

    @property
    def start(self) -> ModelPatcher:
        """What a full copy begins as."""
        return self.student or self.teacher

    def check(self, lora: bool, made_for: str) -> None:
        """Whether these inputs go together, and with the method.

        Raises:
            ValueError: They don't.
        """
        self._check_packed(lora, made_for)
        if lora:
            adaptable(self.teacher.model.diffusion_model)
        elif made_for != TEACHER or self.base is not None:
            raise ValueError(
                f"A full copy is loaded by itself and begins at student itself: set made_for to '{TEACHER}' and disconnect base, "
                "or choose the method LoRA."
            )
        if self.student is None and made_for == STUDENT:
            raise ValueError(f"made_for '{STUDENT}' is a LoRA for the connected student: connect one, or choose another.")
        if self.base is not None and (self.student is None or _same(self.student, self.teacher)):
            raise ValueError(
                "base is what the connected student was made of: connect a student too, another than model, or disconnect base."
            )
        if self.student is not None and made_for == STUDENT and set(_shapes(self.teacher)) - set(_shapes(self.student)):
            raise ValueError(
                f"The student lacks layers of the model, so a LoRA on it can't be all that is learned: set made_for to '{BASE}' "
                f"or '{TEACHER}'."
            )

    def _check_packed(self, lora: bool, made_for: str) -> None:
        """Whether what is done with the weights can be done with packed ones. Raises: ValueError: It can't."""
        there = [model.model for model in (self.teacher, self.student, self.base) if model is not None]
        for base in there:
            check_packed(base)
        if not any(packed_bytes(base) for base in there):
            return
        if not lora:
            raise ValueError("Packed weights (GGUF) can't learn themselves: choose the method LoRA, or load bf16, fp16 or fp8.")
        if made_for != TEACHER or (self.student is not None and not _same(self.student, self.teacher)):
            raise ValueError(
                "Packed weights (GGUF) can't be compared, which student, base and made_for do: load all models in bf16, fp16 or "
                f"fp8, or disconnect student and base and set made_for to '{TEACHER}'."
            )

    def check_look(self, quality: Any) -> None:
        """Whether the word for ``quality`` can be meant: an evening doesn't do without a student to begin at.

        Raises:
            ValueError: It can't.
        """
        if quality == KEEP and (self.student is None or _same(self.student, self.teacher)):
            raise ValueError(
                f"The quality '{KEEP}' is an evening's way from a published few-step model: connect one of the model's own "
                "kind as student, or choose another quality."
            )

    def transplant(self) -> Transplant | None:
        """For a LoRA that begins at another student than the teacher.

        Raises:
            ValueError: The models don't fit together.
        """
        if self.student is None or _same(self.student, self.teacher):
            return None
        return Transplant.of(self.teacher, self.student, self.base)


# -------------------------------------------------------------------------------------------------------- its file


def made_lora(
    made_for: str, teacher: ModelPatcher, student: ModelPatcher, learned_change: Mapping[str, Tensor], names: list[str], rank: int
) -> tuple[ModelPatcher, dict[str, Tensor]]:
    """The model that the file is for, and the file's tensors in float16: with both, the stock loader draws as the run did.

    Args:
        made_for: One of ``MADE_FOR``.
        student: What learning began at.
        learned_change: The generator's tensors, as ``Lora.state_dict`` names them.
        names: Of its layers.
        rank: Of the file, where the changes of several LoRAs are taken together.

    Raises:
        ValueError: The student lacks layers of the teacher.
        FloatingPointError: float16 can't hold the weights.
    """
    if made_for == TEACHER:
        return teacher, lora_state_dict(in_half(dict(learned_change)), names)
    onto = without_patches(teacher) if made_for == BASE else student
    after, before, change = weights(teacher), weights(onto), learned(dict(learned_change), names)
    tensors, _held = recompressed(
        names, lambda name: after(f"{name}.weight") - before(f"{name}.weight") + change(name).to(_device()), rank,
        comfy.model_management.throw_exception_if_processing_interrupted,
    )  # fmt: skip
    rest = {} if made_for == BASE and not patched_parameters(teacher) else _rest(teacher, onto, names)
    return onto, lora_state_dict(in_half(tensors), names) | in_half(rest)


def load_onto(made_for: str, teacher: ModelPatcher, student: ModelPatcher) -> dict[str, str]:
    """For the file's card: for which model it is made, and in words."""
    loras = " with the same LoRAs on it as it had while this was made" if patched_parameters(teacher) else ""
    whole = " with the same LoRAs on it as it had while this was made" if patched_parameters(student) else ""
    words = {
        TEACHER: f"the checkpoint of the teacher ({model_name(teacher)}){loras}",
        BASE: f"the bare checkpoint of the teacher ({model_name(teacher)}), without LoRAs: the look is in this file",
        STUDENT: f"the student that learning began at ({model_name(student)}){whole}, without the teacher's LoRAs",
    }
    return {"made_for": made_for, "load_onto": words[made_for]}


def _rest(after: ModelPatcher, before: ModelPatcher, names: list[str]) -> dict[str, Tensor]:
    """What differs beside the layers of a LoRA, biases and norms, under the stock loader's names.

    Parameters that lie in no layer of their own, as Z-Image's two padding tokens, are left out: ComfyUI patches none of them.
    """
    layers, rest = {f"{name}.weight" for name in names}, dict[str, Tensor]()
    new, old = weights(after), weights(before)
    for name, parameter in after.model.diffusion_model.named_parameters():
        stem, _, kind = name.rpartition(".")
        if name in layers or kind not in _SUFFIX or not parameter.is_floating_point():
            continue
        change = new(name) - old(name)
        if bool(change.any()):
            rest[f"{_NETWORK}{stem}{_SUFFIX[kind]}"] = change
    return rest


def _device() -> torch.device:
    return comfy.model_management.get_torch_device()
