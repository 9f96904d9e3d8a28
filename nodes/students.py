"""Students from files, as their authors publish them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ..bridge.drafts import preset_by_name
from ..bridge.fingerprints import model_name
from ..bridge.info import CARD
from ..bridge.progress import shown
from ..bridge.tiny_world import TinyWorldModel, model_of
from ..bridge.unet import DTYPES, build, load_other
from ..files import UnreadableFile, parse_json, reading
from ..networks import diffusers_unet as unets
from ..networks.limits import refuse_hollow
from ..weights.checkpoints import PICKLED, read_metadata, read_weights
from ..world import weights
from .types import CATEGORY

_KINDS = ("diffusion_models", "diffusers")
_FOLDERS = "models/diffusion_models or models/diffusers"
BUNDLED = "tiny world sid (bundled)"  # so that there is one to try


def students() -> dict[str, Path]:
    """All that could be a student, by name: files of weights, and folders as diffusers saves them."""
    files: dict[str, Path] = {}
    for base in (Path(folder) for kind in _KINDS for folder in folder_paths.get_folder_paths(kind)):
        for path in _below(base):
            files.setdefault(path.relative_to(base).as_posix(), path)
    return dict(sorted(files.items())) | {BUNDLED: weights.FOLDER / "student_sid.safetensors"}


def _below(base: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(base, followlinks=True):
        here = Path(root)
        if here != base and unets.find_folder(here) is not None:
            yield here
            folders.clear()  # what lies below is its own, or another part of its pipeline
            continue
        folders[:] = [name for name in folders if name != ".git"]
        yield from (here / name for name in files if Path(name).suffix in (".safetensors", *PICKLED))


def _find(student: str) -> Path:
    path = students().get(student.replace("\\", "/"))
    if path is None:
        raise ValueError(f"There is no student '{student}' in {_FOLDERS}; put its file or its diffusers folder there.")
    return path


class ApprenticeLoadStudent(io.ComfyNode):
    """A distilled U-Net in diffusers' format."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeLoadStudent",
            display_name="Load Student",
            category=CATEGORY,
            description="A few-step U-Net as its authors publish it, in diffusers' format: LCM-SDXL, Hyper-SD, DMD2, or SiD-LSG "
            "converted by 'apprentice convert'. LCM's guidance embedding, which ComfyUI's own loader drops, is honoured.",
            inputs=[
                io.Combo.Input(
                    "student", options=list(students()),
                    tooltip="A file of weights (.safetensors, or .bin and .pt read as data only) or a folder with config.json, "
                    "in models/diffusion_models or models/diffusers. A whole diffusers pipeline will do.",
                ),  # fmt: skip
                io.Float.Input(
                    "guidance", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01, optional=True,
                    tooltip="Only for students with guidance built in (time_cond_proj: LCM's full models): LCM's guidance scale. "
                    "Sample them at CFG 1. Without effect on all others.",
                ),  # fmt: skip
                io.Combo.Input(
                    "weight_dtype", options=list(DTYPES), default="default", optional=True,
                    tooltip="What the weights are kept in. default lets ComfyUI choose; the fp8 kinds save memory.",
                ),  # fmt: skip
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="The student; CLIP and VAE are those of its base model.")
            ],
        )

    @classmethod
    def validate_inputs(cls, student: Any = None, weight_dtype: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        if isinstance(weight_dtype, str) and weight_dtype not in DTYPES:
            return f"weight_dtype is '{weight_dtype}', which is not one of: {', '.join(DTYPES)}."
        try:
            if isinstance(student, str):
                _find(student)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, student: Any = None, **_: Any) -> str:
        """Other files under the same name are another student."""
        if not isinstance(student, str):
            return ""
        try:
            files = unets.find_files(_find(student))
        except ValueError:
            return student
        paths = [path for path in (*files.weights, files.config, files.scheduler) if path is not None]
        return " ".join(f"{path} {path.stat().st_mtime_ns}" for path in paths)

    @classmethod
    def execute(cls, student: str, guidance: float = 8.0, weight_dtype: str = "default") -> io.NodeOutput:
        files = unets.find_files(_find(student))
        model, metadata = _load(files, guidance, weight_dtype)
        model, chosen = _with_card(model, metadata, files)
        guided = hasattr(getattr(model.model.diffusion_model, "time_embed", None), "guidance")
        size = sum(p.numel() for p in model.model.diffusion_model.parameters()) / 1e6
        description = f"{model_name(model)}, {size:.0f} M parameters" + (f", guidance {guidance:g} built in" if guided else "")
        return io.NodeOutput(model, ui=shown(description + (f". {chosen}" if chosen else "")))


def _load(files: unets.UNetFiles, guidance: float, weight_dtype: str) -> tuple[Any, dict[str, str]]:
    """The model, and what its file says of itself."""
    with reading(files.name, "use another file"):
        return _read_model(files, guidance, weight_dtype)


def _read_model(files: unets.UNetFiles, guidance: float, weight_dtype: str) -> tuple[Any, dict[str, str]]:
    tensors = {key: value for path in files.weights for key, value in read_weights(path).items()}
    metadata = read_metadata(files.weights[0]) if len(files.weights) == 1 else {}
    refuse_hollow(tensors, files.name)
    if metadata.get("teacher") == TinyWorldModel.__name__:
        return model_of(tensors), metadata
    config = _config(files, metadata)
    if not unets.is_unet(tensors):
        return load_other(tensors, files.name, guidance=guidance, weight_dtype=weight_dtype, metadata=metadata), metadata
    structure = unets.structure({key: tuple(value.shape) for key, value in tensors.items()}, config, files.name)
    scheduler = _read(files.scheduler, files.name)
    built = build(
        tensors, structure, files.name, guidance=guidance, weight_dtype=weight_dtype,
        prediction=unets.prediction(scheduler, files.name), sampling=unets.sampling_settings(scheduler),
    )  # fmt: skip
    return built, metadata


# diffusers' schedulers that no other students are drawn with.
_OWN_SCHEDULERS = {"LCMScheduler": "lcm-lora-sd15-sdxl", "TCDScheduler": "tcd-eta0.3"}


def _with_card(model: Any, metadata: dict[str, str], files: unets.UNetFiles) -> tuple[Any, str]:
    """``model`` with a card for the preset "auto", and a sentence on what that will choose.

    SiD Distill's card lies in the file. Of others the name, the titles that trainers write, and the pipeline's scheduler are
    believed where they leave no doubt.
    """
    if "apprentice" in metadata:
        levels = parse_json(metadata.get("sigmas", "[]"), f"The metadata sigmas of {files.name}")
        if not isinstance(levels, list) or not all(type(level) in (int, float) and 0 <= level < math.inf for level in levels):
            raise UnreadableFile(f"The metadata sigmas of {files.name} are no noise levels: use another file.")
        model.set_attachments(CARD, metadata)
        return model, ""
    titles = [metadata[key] for key in ("modelspec.title", "ss_output_name") if metadata.get(key)]
    scheduler = _read(files.scheduler, files.name).get("_class_name", "")
    if recognised := preset_by_name(model, [files.name, *titles]):
        preset, why = recognised
    elif scheduler in _OWN_SCHEDULERS:
        preset, why = _OWN_SCHEDULERS[scheduler], f"its pipeline has the {scheduler}"
    else:
        return model, ""
    model.set_attachments(CARD, {"preset": preset, "why": why})
    return model, f"The preset auto will be {preset}, as {why}."


def _config(files: unets.UNetFiles, metadata: dict[str, str]) -> dict[str, Any] | None:
    """The config: of the folder, or in the file's own metadata; None where there is none."""
    if files.config is not None:
        return _read(files.config, files.name)
    stored = metadata.get(unets.METADATA_CONFIG)
    return unets.read_json(stored, f"The config in {files.name}") if stored else None


def _read(path: Path | None, name: str) -> dict[str, Any]:
    return unets.read_json(path.read_bytes(), f"{name}'s {path.name}") if path else {}
