"""What runs inside ComfyUI for tests of Load Student: loads students by the node and asks their networks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
from safetensors.torch import load_file, save_file

import nodes


@contextmanager
def models_in(folder: Path) -> Iterator[None]:
    """ComfyUI looks for diffusion models and diffusers' folders there alone."""
    before = dict(folder_paths.folder_names_and_paths)
    for kind in ("diffusion_models", "diffusers"):
        folder_paths.folder_names_and_paths[kind] = ([str(folder / kind)], before[kind][1])
    try:
        yield
    finally:
        folder_paths.folder_names_and_paths.update(before)


def load_students(base: Path) -> None:
    """Do what ``jobs.json`` lists with the students in ``models``; ``answers`` and ``notes.json`` hold what came of it."""
    loader = nodes.NODE_CLASS_MAPPINGS["ApprenticeLoadStudent"]
    package = loader.__module__.rsplit(".nodes.", 1)[0]
    model_fingerprint = sys.modules[f"{package}.bridge.fingerprints"].model_fingerprint
    jobs = json.loads((base / "jobs.json").read_text())
    notes = {}
    for name, job in jobs.items():
        valid = loader.validate_inputs(job["student"], job.get("weight_dtype", "default"))
        if valid is not True:
            notes[name] = {"error": valid}
            continue
        try:
            options = {key: job[key] for key in ("guidance", "weight_dtype") if key in job}
            patcher = loader.execute(job["student"], **options).args[0]
            comfy.model_management.load_models_gpu([patcher])
            model = patcher.model
            given = load_file(base / "inputs" / f"{job['kind']}.safetensors")
            answer = model.diffusion_model(
                given["x"], given["t"], context=given["context"], y=given.get("y"), transformer_options={}
            )
            save_file({"answer": answer.contiguous().clone()}, base / "answers" / f"{name}.safetensors")
            notes[name] = {
                "fingerprint": model_fingerprint(patcher), "clone": model_fingerprint(patcher.clone()),
                "class": type(model).__name__, "config": type(model.model_config).__name__,
                "dtype": str(next(model.diffusion_model.parameters()).dtype), "type": model.model_type.name,
                "sigma_max": float(patcher.get_model_object("model_sampling").sigma_max),
                "sampling": [c.__name__ for c in type(patcher.get_model_object("model_sampling")).__mro__],
                "inputs": loader.fingerprint_inputs(job["student"]),
            }  # fmt: skip
            if "save_as" in job:
                comfy.sd.save_checkpoint(str(base / "models" / "diffusion_models" / job["save_as"]), patcher)
            if "pooled" in given:
                sizes = {"height": 1024, "width": 768, "crop_h": 0, "crop_w": 8, "target_height": 512, "target_width": 640}
                y = model.encode_adm(pooled_output=given["pooled"], **sizes)
                notes[name]["y"] = float((y - given["y"]).abs().max())
        except (ValueError, FileNotFoundError) as error:
            notes[name] = {"error": str(error)}
        except Exception as error:
            notes[name] = {"crash": repr(error)}
        patcher = model = None  # else ComfyUI takes each for a leak and collects garbage, which is most of the time here
    (base / "notes.json").write_text(json.dumps(notes))
