"""The example workflows for published models, as they ship, on tiny networks of the same families with random weights.

Exchanged are the files and nothing else: what a loader of weights or of a picture gives, and the sizes of empty latents and
pictures. Every wire, preset, sampler, guider, LoRA loader and setting is the shipped one; LoRA files are read from disk.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import family_training as training
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.benchmarks.tiny_vaes import vae
from families.judges import Brightness
from harness import ROOT
from run_workflow import to_prompt
from safetensors.torch import save_file

tiny.start()

import folder_paths  # noqa: E402
from families import executing  # noqa: E402

import nodes  # noqa: E402

FILES = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "example_workflows").glob("*.json"))}
REAL = {name: file for name, file in FILES.items() if any("models" in node["properties"] for node in file["nodes"])}
FAMILIES = {"sd_xl": "sdxl", "v1-5": "sd15", "schnell": "schnell", "flux1-dev": "flux", "z_image": "zimage", "qwen_image": "qwen",
            "qwen_3": "zimage", "qwen_2.5": "qwen", "ae.": "flux"}  # fmt: skip
EXTRAS = ("model_advanced", "flux", "qwen", "sd3", "mask", "canny", "post_processing", "images")
SIDE = 32
LOOK = "keep-my-look"  # it trains, and has no judge


def family(file: str) -> str:
    """Whose file it is, by its name."""
    return next(name for part, name in FAMILIES.items() if part in file)


class Words:
    """A CLIP without weights: what the family's text encoder gives, told by the text's own letters."""

    def __init__(self, name: str) -> None:
        self.name = name

    def tokenize(self, text: str, **_pictures: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list[list[Any]]:
        return tiny.text(self.name, seed=sum(map(ord, tokens)))


def loader(gives: tuple[str, ...], given: Any, **inputs: Any) -> type:
    """A node that takes names of files that are not here."""
    spec = {"required": {name: ("STRING", {}) for name in inputs}}
    body = {"INPUT_TYPES": classmethod(lambda cls: spec), "RETURN_TYPES": gives, "FUNCTION": "load", "CATEGORY": "test",
            "load": lambda self, **names: given(**names)}  # fmt: skip
    return type("Loader", (), body)


def network(name: str) -> Any:
    return tiny.model(family(name), seed=len(name))


def whole(name: str) -> tuple[Any, Words, Any]:
    """What a checkpoint holds."""
    return tiny.model(name, seed=len(name)), Words(name), vae(name.replace("schnell", "flux"))


def control(control_net_name: str) -> tuple[Any]:
    """A ControlNet of the tiny SD1.5's layout."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    shape = {k: v for k, v in tiny.FAMILIES["sd15"].network.items() if k not in ("out_channels", "transformer_depth_output")}
    net = comfy.cldm.cldm.ControlNet(**shape, hint_channels=3, dtype=torch.float32, device="cpu",
                                     operations=comfy.ops.disable_weight_init)  # fmt: skip
    return (comfy.controlnet.ControlNet(tiny.fill(net, 5), load_device=torch.device("cpu")),)


def picture(**_: Any) -> tuple[Any, Any]:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, :, SIDE // 2 :] = 1
    return torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(1)), mask


LOADERS = {
    "CheckpointLoaderSimple": loader(
        ("MODEL", "CLIP", "VAE"), lambda ckpt_name: whole(family(ckpt_name)),
        ckpt_name=0,
    ),
    "UNETLoader": loader(("MODEL",), lambda unet_name, weight_dtype: (network(unet_name),), unet_name=0, weight_dtype=0),
    "CLIPLoader": loader(("CLIP",), lambda clip_name, **_: (Words(family(clip_name)),), clip_name=0, type=0, device=0),
    "VAELoader": loader(("VAE",), lambda vae_name: (vae(family(vae_name)),), vae_name=0),
    "ControlNetLoader": loader(("CONTROL_NET",), control, control_net_name=0),
    "LoadImage": loader(("IMAGE", "MASK"), picture, image=0),
    "ApprenticeLoadOracle": loader(("ORACLE",), lambda **_: (Brightness(),), name=0),
}  # fmt: skip


def lora(path: Path, model: Any) -> None:
    """A LoRA of rank 2 for some layers of a model, in the generic layout."""
    rng = torch.Generator().manual_seed(3)
    weights = [(k, v) for k, v in model.model.state_dict().items() if k.startswith("diffusion_model.") and v.ndim == 2][:4]
    parts = {f"{k.removesuffix('.weight')}.lora_{end}.weight": torch.randn(shape, generator=rng) * 0.1
             for k, v in weights for end, shape in (("up", (v.shape[0], 2)), ("down", (2, v.shape[1])))}  # fmt: skip
    save_file(parts, path)


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """ComfyUI with the tiny loaders; what its nodes take."""
    for name in EXTRAS:
        asyncio.run(
            nodes.load_custom_node(str(Path(nodes.__file__).parent / "comfy_extras" / f"nodes_{name}.py"), set(), "comfy_extras")
        )
    import comfy.utils

    scale = comfy.utils.common_upscale
    comfy.utils.common_upscale = lambda samples, width, height, *rest: scale(samples, min(width, SIDE), min(height, SIDE), *rest)
    before = dict(nodes.NODE_CLASS_MAPPINGS)
    executing.register(**LOADERS)
    schemas = {name: {"input": cls.INPUT_TYPES()} for name, cls in {**nodes.NODE_CLASS_MAPPINGS, **before}.items()
               if name in {node["type"] for file in REAL.values() for node in file["nodes"]}}  # fmt: skip
    folder = tmp_path_factory.mktemp("loras")
    folder_paths.add_model_folder_path("loras", str(folder))
    folder_paths.set_output_directory(str(tmp_path_factory.mktemp("output")))
    yield schemas | {"loras": folder}
    nodes.NODE_CLASS_MAPPINGS.update(before)
    comfy.utils.common_upscale = scale


def prepared(name: str, info: dict[str, Any]) -> dict[str, Any]:
    """The prompt of an example, with small sizes and the LoRA files that it names."""
    prompt = to_prompt(REAL[name], info)
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"].startswith("Empty"):
            inputs |= {"width": SIDE, "height": SIDE}
        if node["class_type"] == "LoraLoaderModelOnly":
            base = next(
                entry["inputs"] for entry in prompt.values() if entry["class_type"] in ("CheckpointLoaderSimple", "UNETLoader")
            )
            lora(info["loras"] / inputs["lora_name"], network(base.get("ckpt_name") or base["unet_name"]))
    folder_paths.filename_list_cache.clear()
    return prompt


@pytest.mark.parametrize("name", [name for name in REAL if name != LOOK])
def test_example_for_a_published_model_runs_as_it_ships(name: str, info: dict[str, Any]) -> None:
    prompt = prepared(name, info)
    prompt["verdict"] = {"class_type": "Keep", "inputs": {"name": name, "value": ["31", 2]}}
    prompt["latent"] = {"class_type": "Keep", "inputs": {"name": f"{name} latent", "value": ["31", 0]}}
    executing.run(prompt)
    (verdict,), (latent,) = (executing.Keep.kept[key] for key in (name, f"{name} latent"))
    assert latent["samples"].isfinite().all()
    decisions = [judgement.decision for judgement in verdict]
    assert len(decisions) == len(latent["samples"]) >= 2
    assert decisions.count("accepted") == len(decisions) - (len(decisions) + 1) // 2
    assert set(decisions) <= {"accepted", "improved", "draft kept"}


def test_the_example_that_keeps_a_look_teaches_a_lora_that_its_own_graph_draws_with(info: dict[str, Any]) -> None:
    """As it ships but for sizes and the length of the run, which the word in quality sets."""
    with training.folders() as folder:
        _keeps_a_look(folder / "loras", info)


def _keeps_a_look(loras: Path, info: dict[str, Any]) -> None:
    prompt = prepared(LOOK, {**info, "loras": loras})
    given = prompt["4"]["inputs"]
    assert given["quality"] == "keep my look"
    given |= {"quality": "as set", "pictures": 4, "batch_size": 2, "width": SIDE, "height": SIDE, "precision": "fp32"}
    given |= {"text": "a fox\na boat", "steps": 2, "generator_rate": 1e-3}
    for key, (node, output) in {"kept": ("5", 0), "habit": ("9", 0), "file": ("4", 3)}.items():
        prompt[key] = {"class_type": "Keep", "inputs": {"name": key, "value": [node, output]}}
    executing.run(prompt)
    ((kept,), (habit,), (file,)) = (executing.Keep.kept[key] for key in ("kept", "habit", "file"))
    assert kept["samples"].isfinite().all() and kept["samples"].shape == habit["samples"].shape
    assert not torch.equal(kept["samples"], habit["samples"])
    assert file.endswith("my look in 4 steps.safetensors") and (loras / file).is_file()
