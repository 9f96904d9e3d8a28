"""U-Nets in diffusers' format: found, understood or refused, without their weights and without ComfyUI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.files import UnreadableFile
from comfyui_apprentice.networks.diffusers_unet import (
    GuidedTimeEmbed,
    StudentError,
    build_skeleton,
    find_files,
    guidance_embedding,
    is_unet,
    prediction,
    read_json,
    sampling_settings,
    structure,
)

# Configs as published, but for keys at diffusers' defaults: runwayml/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1,
# stabilityai/stable-diffusion-xl-base-1.0, latent-consistency/lcm-sdxl.
SD15: dict[str, Any] = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "attention_head_dim": 8}
SD21 = SD15 | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True,
               "upcast_attention": True}  # fmt: skip
SDXL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10], "cross_attention_dim": 2048, "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
LCM_SDXL = SDXL | {"time_cond_proj_dim": 256}
TINY = SD15 | {
    "block_out_channels": [32, 64], "layers_per_block": 1, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip

# What ComfyUI's own detection gives for these families (comfy/model_detection.py, unet_config_from_diffusers_unet).
COMFY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SD15": (SD15, {
        "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": 768,
        "num_heads": 8, "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "adm_in_channels": None,
        "in_channels": 4, "out_channels": 4,
    }),
    "SD21": (SD21, {
        "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1, "use_linear_in_transformer": True, "context_dim": 1024,
        "num_head_channels": 64, "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "adm_in_channels": None,
    }),
    "SDXL": (SDXL, {
        "model_channels": 320, "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4],
        "transformer_depth_middle": 10, "use_linear_in_transformer": True, "context_dim": 2048, "num_head_channels": 64,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "adm_in_channels": 2816, "num_classes": "sequential",
    }),
    "SSD-1B": (SDXL | {
        "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [[1, 1], [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], [1, 1, 1]],
    }, {
        "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
        "transformer_depth_middle": -1,
    }),
    "KOALA-700M": (SDXL | {
        "mid_block_type": None, "layers_per_block": 1, "transformer_layers_per_block": [1, 2, 5],
    }, {
        "num_res_blocks": [1, 1, 1], "transformer_depth": [0, 2, 5], "transformer_depth_output": [0, 0, 2, 2, 5, 5],
        "transformer_depth_middle": -2,
    }),
}  # fmt: skip


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in build_skeleton(config, "x").state_dict().items()}


@pytest.mark.parametrize("family", COMFY)
def test_published_configs_give_what_comfyui_knows_of_them(family: str) -> None:
    config, wanted = COMFY[family]
    found = structure({}, config, "x")
    assert {key: found.unet_config[key] for key in wanted} == wanted
    assert found.guidance_width == 0 and found.size_width == 256
    assert (found.unet_config.get("attn_precision") is torch.float32) == (family == "SD21")


@pytest.mark.parametrize("config", [SD15, SD21, LCM_SDXL], ids=["SD15", "SD21", "LCM-SDXL"])
def test_weights_without_a_config_say_the_same(config: dict[str, Any]) -> None:
    with_config, without = structure({}, config, "x"), structure(shapes(config), None, "x")
    with_config.unet_config.pop("attn_precision", None)  # SD 2.x has it by its class in ComfyUI
    assert without == with_config
    assert without.guidance_width == config.get("time_cond_proj_dim", 0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"_class_name": "AutoencoderKL"}, "is of diffusers' class AutoencoderKL"),
    ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
    ({"norm_num_groups": 16}, "norm_num_groups = 16"),
    ({"freq_shift": 1}, "freq_shift = 1"),
    ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
    ({"addition_embed_type": "text"}, "addition_embed_type = 'text'"),
    ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
    ({"down_block_types": ["CrossAttnDownBlock2D", "AttnDownBlock2D"]}, "blocks of the kind AttnDownBlock2D"),
    ({"down_block_types": ["NoBlock2D", "DownBlock2D"]}, "not one that diffusers can build a U-Net from"),
    ({"block_out_channels": [64, 96], "attention_head_dim": 8}, "whole multiples of the first"),
    ({"only_cross_attention": True}, "no self-attention at all"),
    ({"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2,
      "attention_head_dim": [2, 8]}, "varies both number and width of its attention heads"),
    ({"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "mid_block_type": None},
     "without cross-attention"),
])  # fmt: skip
def test_what_comfyui_cannot_compute_is_refused_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudentError, match=message) as error:
        structure({}, TINY | changes, "pupil")
    assert str(error.value).startswith("pupil") and str(error.value).endswith(".") and "\n" not in str(error.value)


def test_weights_that_are_no_whole_unet_are_refused() -> None:
    whole = shapes(TINY)
    assert is_unet(whole) and not is_unet({"encoder.conv_in.weight": 0}) and not is_unet({"conv_in.weight": 0})
    without = {key: shape for key, shape in whole.items() if not key.startswith(("up_blocks", "conv_out"))}
    with pytest.raises(StudentError, match=r"it has no 'conv_out\.weight'"):
        structure(without, None, "x")
    with pytest.raises(StudentError, match="class embeddings"):
        structure(whole | {"class_embedding.linear_1.weight": (4, 4)}, None, "x")
    with pytest.raises(StudentError, match=r"unknown family: put its config\.json beside it"):
        structure(shapes(TINY | {"use_linear_projection": True}), None, "x")


def test_without_diffusers_a_config_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shapes(TINY)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(StudentError, match="run 'pip install diffusers' in ComfyUI's Python"):
        structure(whole, TINY, "x")
    assert structure(whole, None, "x").unet_config["num_heads"] == 8


def test_diffusers_is_imported_for_a_config_alone() -> None:
    code = "import sys, comfyui_apprentice.networks.diffusers_unet; print('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


# ------------------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("guidance", [1.0, 3.5, 8.0])
@pytest.mark.parametrize("width", [256, 512, 7])
def test_guidance_is_embedded_as_diffusers_does(guidance: float, width: int) -> None:
    from diffusers import LatentConsistencyModelPipeline

    w = torch.tensor(guidance - 1).repeat(1)
    wanted = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=width)[0]
    torch.testing.assert_close(guidance_embedding(guidance, width), wanted, rtol=0, atol=1e-6)


def test_the_time_embedding_takes_guidance_as_diffusers_does() -> None:
    from diffusers.models.embeddings import TimestepEmbedding

    theirs = TimestepEmbedding(32, 128, cond_proj_dim=16)
    plain = torch.nn.Sequential(theirs.linear_1, torch.nn.SiLU(), theirs.linear_2)
    ours = GuidedTimeEmbed(plain, theirs.cond_proj, guidance_embedding(3.0, 16))
    x = torch.randn(3, 32)
    torch.testing.assert_close(ours(x), theirs(x, guidance_embedding(3.0, 16).expand(3, -1)))
    assert set(ours.state_dict()) == {*plain.state_dict(), "cond_proj.weight", "guidance"}
    with torch.inference_mode():  # as ComfyUI loads models
        ours.guidance = ours.guidance.clone()
    ours(x).sum().backward()
    assert ours.cond_proj.weight.grad is not None
    assert ours.half()(x.half()).dtype == torch.float16


# ------------------------------------------------------------------------------------------------ scheduler


def test_a_scheduler_tells_the_prediction_and_the_noise_levels() -> None:
    assert [prediction(s, "x") for s in ({}, {"prediction_type": "epsilon"}, {"prediction_type": "v_prediction"})] == [
        None, "epsilon", "v_prediction",
    ]  # fmt: skip
    with pytest.raises(StudentError, match="x's scheduler says that it predicts 'flow_prediction'"):
        prediction({"prediction_type": "flow_prediction"}, "x")
    levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    assert sampling_settings(levels) == {"beta_schedule": "linear", "linear_start": 0.00085, "linear_end": 0.012}
    assert sampling_settings(levels | {"beta_schedule": "linear"})["beta_schedule"] == "sqrt_linear"
    assert sampling_settings({"rescale_betas_zero_snr": True, "beta_schedule": "sigmoid"}) == {"zsnr": True}
    assert sampling_settings({}) == {}


# ---------------------------------------------------------------------------------------------------- files


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_files_are_found_wherever_diffusers_puts_them(tmp_path: Path) -> None:
    weights, half, pickled = (f"diffusion_pytorch_model.{end}" for end in ("safetensors", "fp16.safetensors", "bin"))
    single = touch(tmp_path / "single", "w.bin") / "w.bin"
    assert find_files(single).weights == (single,) and find_files(single).config is None
    plain = find_files(touch(tmp_path / "plain", "config.json", weights, half, pickled))
    assert [path.name for path in plain.weights] == [weights] and plain.config == tmp_path / "plain" / "config.json"
    assert find_files(touch(tmp_path / "half", "config.json", half, pickled)).weights[0].name == half
    assert find_files(touch(tmp_path / "pickled", "config.json", pickled)).weights[0].name == pickled
    parts = ("unet/config.json", f"unet/{weights}", "scheduler/scheduler_config.json", "vae/config.json", f"vae/{weights}")
    pipeline = touch(tmp_path / "pipe", *parts)
    for path in (pipeline, pipeline / "unet"):
        found = find_files(path)
        assert found.weights == (pipeline / "unet" / weights,)
        assert found.scheduler == pipeline / "scheduler" / "scheduler_config.json"
    assert find_files(touch(tmp_path / "sd3", "transformer/config.json", f"transformer/{weights}")).weights
    touch(tmp_path / "scheduler", "scheduler_config.json")
    assert find_files(tmp_path / "plain").scheduler is None, "not its pipeline's"


@pytest.mark.parametrize("index", ["safetensors.index", "safetensors.index.fp16", "bin.index"])
def test_shards_are_all_found(tmp_path: Path, index: str) -> None:
    folder = touch(tmp_path, "config.json", "a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors")
    listed = {"x": "a-00002-of-00002.safetensors", "y": "a-00001-of-00002.safetensors", "z": "a-00002-of-00002.safetensors"}
    (folder / f"diffusion_pytorch_model.{index}.json").write_text(json.dumps({"weight_map": listed}))
    assert [path.name for path in find_files(folder).weights] == sorted(set(listed.values()))
    (folder / "a-00002-of-00002.safetensors").unlink()
    with pytest.raises(StudentError, match=r"lacks a-00002-of-00002\.safetensors, one of its 2 files of weights"):
        find_files(folder)


@pytest.mark.parametrize("listed", [None, [], {"x": 1}, {"x": "../a.safetensors"}, {"x": "sub/a.safetensors"}])
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, listed: Any) -> None:
    touch(tmp_path, "config.json", "a.safetensors")
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(StudentError, match="lists no shards in its folder"):
        find_files(tmp_path)


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="holds no network as diffusers saves it"):
        find_files(touch(tmp_path / "empty", "config.json"))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", b"\xff\xfe\x00"])
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(UnreadableFile, match=r"^The config .*download it again\.$"):
        read_json(text, "The config")
