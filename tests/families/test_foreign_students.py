"""Load Student takes a file's sizes only as far as its bytes go, whichever of ComfyUI's loaders reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.bridge.edm import load_edm
from comfyui_apprentice.files import UnreadableFile
from comfyui_apprentice.networks.diffusers_unet import find_files
from comfyui_apprentice.nodes.students import _load
from comfyui_apprentice.world.weights import EDM_FOLDER
from comfyui_apprentice.world.weights import read as world_weights
from fuzz import mutations
from fuzz.__main__ import fuzz
from fuzz.kinds import Kind
from safetensors.torch import save, save_file

CONFIG = {
    "sample_size": 8, "cross_attention_dim": 32, "attention_head_dim": 8, "layers_per_block": 1, "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip


@pytest.fixture(scope="module")
def unet() -> dict[str, torch.Tensor]:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return {key: value.contiguous() for key, value in UNet2DConditionModel.from_config(CONFIG).state_dict().items()}


def folder(path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "diffusion_pytorch_model.safetensors")
    return path


def test_an_honest_one_is_loaded(tmp_path: Path, unet: dict[str, torch.Tensor]) -> None:
    model, _metadata = _load(find_files(folder(tmp_path / "a", unet, CONFIG)), 8.0, "fp32")
    assert sum(p.numel() for p in model.model.diffusion_model.parameters()) == sum(value.numel() for value in unet.values())


@pytest.mark.parametrize("changes", [
    {"block_out_channels": [32 * 2**10, 64 * 2**10]}, {"cross_attention_dim": 1_000_000}, {"layers_per_block": 100},
    {"layers_per_block": 10**9}, {"time_cond_proj_dim": 1_000_000},
])  # fmt: skip
def test_a_config_larger_than_the_weights_gets_no_memory(
    tmp_path: Path, unet: dict[str, torch.Tensor], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy.model_base.BaseModel.load_model_weights", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(UnreadableFile, match=r"^a"):
        _load(find_files(folder(tmp_path / "a", unet, CONFIG | changes)), 8.0, "fp32")


@pytest.mark.parametrize("key", ["conv_in.weight", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"])
def test_zero_sized_shapes_are_refused(tmp_path: Path, unet: dict[str, torch.Tensor], key: str) -> None:
    save_file({**unet, key: torch.zeros(1 << 20, 0, 3, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(UnreadableFile, match=r"a\.safetensors claims the shape .* which is empty"):
        _load(find_files(tmp_path / "a.safetensors"), 8.0, "fp32")


@pytest.mark.parametrize("name", ["qwen", "hidream", "cascade"])
def test_weights_that_name_a_far_larger_network_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {key: value.contiguous() for key, value in tiny.model(name).model.diffusion_model.state_dict().items()}
    monkeypatch.setattr("comfy.sd.load_diffusion_model_state_dict", lambda *_, **__: pytest.fail("ComfyUI built it"))
    save_file(weights, tmp_path / "a.safetensors")  # ComfyUI goes by names, and takes it for the published size
    with pytest.raises(UnreadableFile, match=r"holds far fewer|more layers than its"):
        _load(find_files(tmp_path / "a.safetensors"), 8.0, "fp32")


def load(path: Path) -> Any:
    return _load(find_files(path), 8.0, "fp32")


@pytest.mark.parametrize("kind", ["with its config", "of another layout", "of the tiny world", "an EDM network"])
def test_spoiled_files_do_no_harm_in_comfyui(tmp_path: Path, unet: dict[str, torch.Tensor], kind: str) -> None:
    config = {"diffusers_config": json.dumps(CONFIG), "apprentice": "student", "sigmas": "[14.6, 2.5]"}
    edm = EDM_FOLDER / "coloured digits SiD student.safetensors"

    def other() -> bytes:
        weights = tiny.model("sd3").model.diffusion_model.state_dict()
        return save({key: value.contiguous() for key, value in weights.items()}, config)

    def world() -> bytes:
        return save(world_weights("student_consistency")[0], {"teacher": "TinyWorldModel", **config})

    kinds = {
        "with its config": Kind("a.safetensors", lambda: save(unet, config), load, mutations.safetensors),
        "of another layout": Kind("a.safetensors", other, load, mutations.safetensors),
        "of the tiny world": Kind("a.safetensors", world, load, mutations.safetensors),
        "an EDM network": Kind("a.safetensors", edm.read_bytes, load_edm, mutations.safetensors),
    }
    assert not fuzz(kinds[kind], 0, 40, tmp_path)
