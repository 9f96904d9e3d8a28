"""Students in diffusers' format: ComfyUI's network gives what diffusers' own gives, and the node draws with it.

The networks are small and random, made and saved by diffusers. ``students_in_comfy`` loads them by the node
inside ComfyUI, and writes down what their networks answer.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.weights.checkpoints import to_safetensors
from harness import Comfy, GraphError
from safetensors.torch import load_file, save_file
from worlds import World

SD15: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
SD21 = SD15 | {"cross_attention_dim": 1024, "attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}
SDXL: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (32, 64, 128), "layers_per_block": 1, "cross_attention_dim": 2048,
    "attention_head_dim": (2, 4, 8), "transformer_layers_per_block": (1, 1, 2), "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "sd15": SD15,
    "sd15_inpaint": SD15 | {"in_channels": 9},
    "sdxs": SD15 | {"mid_block_type": None, "layers_per_block": 1, "attention_head_dim": (2, 4), "use_linear_projection": True,
                    "cross_attention_dim": 1024, "only_cross_attention": (True, False)},
    "sd21": SD21,
    "sdxl": SDXL,
    "sdxl_64": SDXL | {"block_out_channels": (64, 128, 256), "attention_head_dim": (1, 2, 4)},
    "ssd1b": SDXL | {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": ((1,), (2,), (3,)),
                     "reverse_transformer_layers_per_block": ((3, 2), (1, 2), (1, 1))},
    "sdxl_tiny_sizes": SDXL | {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80,
                               "cross_attention_dim": 64},
    "lcm": SD15 | {"time_cond_proj_dim": 256},
    "lcm_sdxl": SDXL | {"time_cond_proj_dim": 256},
    "lcm_320": SD15 | {"time_cond_proj_dim": 256, "block_out_channels": (320, 320), "layers_per_block": 1},
}  # fmt: skip
KINDS["lcm_tiny"] = KINDS["lcm"] | {"cross_attention_dim": 128}
# student -> kind, how it lies on the disk is the student's name
STUDENTS: dict[str, str] = {name: name for name in KINDS} | {
    "file_sd15.safetensors": "sd15", "file_sd15.bin": "sd15", "file_sdxl.safetensors": "sdxl_64", "file_lcm.safetensors": "lcm",
    "file_with_config.safetensors": "sd21", "some/folder": "sd15", "pipeline": "lcm", "sharded": "sd15", "half": "sd15",
    "bin_folder": "lcm", "snapshot.safetensors": "sd15",
}  # fmt: skip
SIZES = torch.tensor([1024.0, 768.0, 0.0, 8.0, 512.0, 640.0])


@cache
def network(kind: str) -> Any:
    """diffusers' own; who changes it takes a copy."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(sum(map(ord, kind)))
    return UNet2DConditionModel(**KINDS[kind]).eval()


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """What both networks get: ``y`` is SDXL's vector as diffusers and ComfyUI put it together."""
    from diffusers.models.embeddings import get_timestep_embedding

    config = KINDS[kind]
    generator = torch.Generator().manual_seed(5)
    found = {
        "x": torch.randn(2, config.get("in_channels", 4), 8, 16, generator=generator), "t": torch.tensor([999.0, 261.0]),
        "context": torch.randn(2, 7, config["cross_attention_dim"], generator=generator),
    }  # fmt: skip
    if "addition_embed_type" in config:
        width = config["addition_time_embed_dim"]
        pooled = torch.randn(2, config["projection_class_embeddings_input_dim"] - 6 * width, generator=generator)
        sizes = get_timestep_embedding(SIZES, width, flip_sin_to_cos=True, downscale_freq_shift=0).flatten().expand(2, -1)
        found |= {"pooled": pooled, "y": torch.cat([pooled, sizes], 1)}
    return found


def guided(net: Any, guidance: float, batch: int) -> torch.Tensor | None:
    """LCM's condition by diffusers' own pipeline."""
    from diffusers import LatentConsistencyModelPipeline

    if net.config.time_cond_proj_dim is None:
        return None
    w = torch.tensor(guidance - 1).repeat(batch)
    return LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=net.config.time_cond_proj_dim)


@cache
@torch.no_grad()
def expected(kind: str, guidance: float = 8.0) -> torch.Tensor:
    """What diffusers answers."""
    net, given = network(kind), inputs(kind)
    added = {"text_embeds": given["pooled"], "time_ids": SIZES.expand(2, -1)} if "pooled" in given else None
    condition = guided(net, guidance, 2)
    return net(given["x"], given["t"], given["context"], timestep_cond=condition, added_cond_kwargs=added).sample


def save_students(models: Path) -> None:
    """All of them, as authors publish them."""
    unets, pipelines = models / "diffusion_models", models / "diffusers"
    for kind in KINDS:
        network(kind).save_pretrained(unets / kind)
    state = network("sd15").state_dict()
    save_file(state, unets / "file_sd15.safetensors")
    torch.save(state, unets / "file_sd15.bin")
    save_file(network("sdxl_64").state_dict(), unets / "file_sdxl.safetensors")
    save_file(network("lcm").state_dict(), unets / "file_lcm.safetensors")
    config = json.dumps(dict(network("sd21").config))
    save_file(network("sd21").state_dict(), unets / "file_with_config.safetensors", {"diffusers_config": config})
    with (models / "snapshot.pkl").open("wb") as file:  # as SiD-LSG's authors publish it
        pickle.dump({"ema": network("sd15")}, file)
    to_safetensors(models / "snapshot.pkl", unets / "snapshot.safetensors")
    network("sd15").save_pretrained(unets / "some" / "folder")
    network("sd15").save_pretrained(pipelines / "sharded", max_shard_size="200KB")
    network("lcm").save_pretrained(pipelines / "bin_folder", safe_serialization=False)
    deepcopy(network("sd15")).half().save_pretrained(pipelines / "half", variant="fp16")
    network("lcm").save_pretrained(pipelines / "pipeline" / "unet")
    (pipelines / "pipeline" / "model_index.json").write_text("{}")
    save_scheduler(pipelines / "pipeline", "epsilon")
    for kind, predicts in (("sd21", "v_prediction"), ("sd15", "sample")):
        network(kind).save_pretrained(pipelines / f"pipeline_{predicts}" / "unet")
        save_scheduler(pipelines / f"pipeline_{predicts}", predicts)


def save_scheduler(pipeline: Path, predicts: str) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=predicts,
                              rescale_betas_zero_snr=predicts == "v_prediction")  # fmt: skip
    scheduler.save_pretrained(pipeline / "scheduler")


@pytest.fixture(scope="module")
def loaded(comfy: Comfy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """What became of every student, and of the broken ones."""
    base = tmp_path_factory.mktemp("students")
    save_students(base / "models")
    jobs: dict[str, dict[str, Any]] = {name: {"student": name, "kind": kind} for name, kind in STUDENTS.items()}
    jobs |= {
        "lcm_saving": {"student": "lcm_320", "kind": "lcm_320", "save_as": "saved.safetensors"},
        "lcm_saved": {"student": "saved.safetensors", "kind": "lcm_320", "guidance": 3.5},
    }
    jobs |= {f"lcm_{w}": {"student": "lcm", "kind": "lcm", "guidance": w} for w in (1.0, 3.5)}
    jobs |= {f"sd15_{w}": {"student": "sd15", "kind": "sd15", "guidance": w} for w in (1.0, 3.5)}
    jobs |= {f"dtype_{d}": {"student": "lcm", "kind": "lcm", "weight_dtype": d}
             for d in ("fp16", "bf16", "fp32", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2", "fp9")}  # fmt: skip
    jobs |= {f"pipeline_{p}": {"student": f"pipeline_{p}", "kind": k} for p, k in (("v_prediction", "sd21"), ("sample", "sd15"))}
    jobs |= {name: {"student": name, "kind": "sd15"} for name in save_broken(base / "models" / "diffusion_models")}
    (base / "inputs").mkdir()
    (base / "answers").mkdir()
    for kind in KINDS:
        save_file({k: v.contiguous() for k, v in inputs(kind).items()}, base / "inputs" / f"{kind}.safetensors")
    for name in jobs:
        (base / "answers" / name).parent.mkdir(parents=True, exist_ok=True)
    (base / "jobs.json").write_text(json.dumps(jobs))
    comfy.run({"1": {"class_type": "TestLoadStudents", "inputs": {"base": str(base)}}})
    return base, json.loads((base / "notes.json").read_text())


BROKEN = {
    "no_such_student": "There is no student 'no_such_student'",
    "../file_sd15.safetensors": "There is no student",
    "broken_json": "broken_json's config.json is damaged: it is no valid JSON",
    "odd_config": "is not one that diffusers can build a U-Net from",
    "other_class": "other_class is of diffusers' class ControlNetModel",
    "other_groups": "other_groups's U-Net has norm_num_groups = 16, which ComfyUI's U-Net can't compute",
    "other_config": "lacks 228 of its weights, '.*' first: it is incomplete, or its config is another network's",
    "other_width": "should be .*: its config is another network's",
    "missing_weights.safetensors": "is not a whole U-Net: it has no 'conv_out.weight'",
    "missing_bias.safetensors": "lacks 1 of its weights, 'conv_norm_out.bias' first",
    "extra_weights.safetensors": "has 1 weights that ComfyUI's U-Net has no place for, 'motion.weight' first",
    "missing_shard": "missing_shard lacks diffusion_pytorch_model-00001-of-",
    "outside_shard": "lists no shards in its folder",
    "hostile.bin": "could run code, so it was not loaded",
    "garbage.safetensors": "damaged",
    "lora.safetensors": "is no diffusion model that ComfyUI knows",
    "unknown_family.safetensors": "has no config, and its U-Net is of an unknown family",
}


class Hostile:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def save_broken(unets: Path) -> list[str]:
    """Whatever goes wrong with files and configs."""
    state = network("sd15").state_dict()

    def folder(name: str, **changes: Any) -> Path:
        shutil.copytree(unets / "sd15", unets / name)
        config = json.loads((unets / name / "config.json").read_text()) | changes
        (unets / name / "config.json").write_text(json.dumps(config))
        return unets / name

    (folder("broken_json") / "config.json").write_text('{"in_channels": ')
    folder("odd_config", block_out_channels=[32])
    folder("other_class", _class_name="ControlNetModel")
    folder("other_groups", norm_num_groups=16)
    folder("other_config", **{k: list(v) if isinstance(v, tuple) else v for k, v in SDXL.items()})
    folder("other_width", cross_attention_dim=512)
    save_file({k: v for k, v in state.items() if k != "conv_out.weight"}, unets / "missing_weights.safetensors")
    save_file({k: v for k, v in state.items() if k != "conv_norm_out.bias"}, unets / "missing_bias.safetensors")
    save_file(state | {"motion.weight": torch.zeros(1)}, unets / "extra_weights.safetensors")
    network("sd15").save_pretrained(unets / "missing_shard", max_shard_size="200KB")
    next((unets / "missing_shard").glob("*-00001-of-*.safetensors")).unlink()
    network("sd15").save_pretrained(unets / "outside_shard", max_shard_size="200KB")
    index = unets / "outside_shard" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../file_sd15.safetensors"}}))
    torch.save({"conv_in.weight": torch.zeros(1), "x": Hostile()}, unets / "hostile.bin")
    (unets / "garbage.safetensors").write_bytes(b"no weights at all")
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, unets / "lora.safetensors")
    save_file(network("sd21").state_dict(), unets / "unknown_family.safetensors")
    return list(BROKEN)


@pytest.mark.parametrize("student", STUDENTS)
def test_the_network_answers_as_diffusers_does(loaded: Any, student: str) -> None:
    base, notes = loaded
    assert "error" not in notes[student] and "crash" not in notes[student], notes[student]
    answer = load_file(base / "answers" / f"{student}.safetensors")["answer"]
    if student == "half":
        net = deepcopy(network("sd15")).half().float()
        given = inputs("sd15")
        with torch.no_grad():
            wanted = net(given["x"], given["t"], given["context"]).sample
    else:
        wanted = expected(STUDENTS[student])
    assert wanted.std() > 0.05
    torch.testing.assert_close(answer, wanted, rtol=0, atol=1e-4)


def test_sizes_of_sdxl_reach_the_network_as_in_diffusers(loaded: Any) -> None:
    notes = loaded[1]
    assert notes["sdxl"]["y"] < 1e-5 and notes["sdxl_tiny_sizes"]["y"] < 1e-5
    assert notes["sdxl"]["class"] == "SDXL" and notes["sd21"]["config"] == "SD20" and notes["sd15"]["config"] == "SD15"


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_guidance_steers_an_lcm_as_in_diffusers_and_no_other(loaded: Any, guidance: float) -> None:
    base, notes = loaded
    answer = load_file(base / "answers" / f"lcm_{guidance}.safetensors")["answer"]
    torch.testing.assert_close(answer, expected("lcm", guidance), rtol=0, atol=1e-4)
    assert (answer - expected("lcm", 8.0)).abs().max() > 1e-3
    assert notes[f"lcm_{guidance}"]["fingerprint"] != notes["lcm"]["fingerprint"]
    assert notes[f"sd15_{guidance}"]["fingerprint"] == notes["sd15"]["fingerprint"]


def test_guidance_survives_save_model(loaded: Any) -> None:
    base, notes = loaded
    assert notes["lcm_saved"].get("config") == "SD15", notes["lcm_saved"]
    answer = load_file(base / "answers" / "lcm_saved.safetensors")["answer"]
    torch.testing.assert_close(answer, expected("lcm_320", 3.5), rtol=0, atol=1e-4)


def test_a_student_has_one_fingerprint_however_it_lies_on_the_disk(loaded: Any) -> None:
    notes = loaded[1]
    for student in ("file_sd15.safetensors", "file_sd15.bin", "some/folder", "sharded", "snapshot.safetensors"):
        assert notes[student]["fingerprint"] == notes["sd15"]["fingerprint"] == notes[student]["clone"]
    assert notes["pipeline"]["fingerprint"] == notes["lcm"]["fingerprint"] == notes["bin_folder"]["fingerprint"]
    assert len({note["inputs"] for name, note in notes.items() if name in STUDENTS}) == len(STUDENTS)


def test_weights_are_kept_as_asked_for(loaded: Any) -> None:
    base, notes = loaded
    for dtype, torch_dtype, error in (
        ("fp32", "float32", 1e-4), ("fp16", "float16", 2e-2), ("bf16", "bfloat16", 1e-1), ("fp8_e4m3fn", "float8_e4m3fn", 1.0),
        ("fp8_e4m3fn_fast", "float8_e4m3fn", 1.0), ("fp8_e5m2", "float8_e5m2", 2.0),
    ):  # fmt: skip
        assert notes[f"dtype_{dtype}"]["dtype"] == f"torch.{torch_dtype}", notes[f"dtype_{dtype}"]
        answer = load_file(base / "answers" / f"dtype_{dtype}.safetensors")["answer"].float()
        assert (answer - expected("lcm")).abs().max() < error
    assert "not one of" in notes["dtype_fp9"]["error"]


def test_the_scheduler_beside_the_network_says_what_it_predicts(loaded: Any) -> None:
    notes = loaded[1]
    assert notes["pipeline_v_prediction"]["type"] == "V_PREDICTION" and notes["pipeline_v_prediction"]["sigma_max"] > 1000
    assert notes["pipeline"]["type"] == "EPS" == notes["sd21"]["type"] and 14 < notes["pipeline"]["sigma_max"] < 15
    assert "X0" in notes["pipeline_sample"]["sampling"]


@pytest.mark.parametrize("student", BROKEN)
def test_what_is_wrong_is_one_clear_sentence(loaded: Any, student: str) -> None:
    import re

    base, notes = loaded
    message = notes[student].get("error", "")
    assert re.search(BROKEN[student], message), notes[student]
    assert "\n" not in message and message.endswith(".")
    assert not any(Path(folder, "hacked").exists() for folder in (base, Path.cwd(), os.environ["COMFYUI_PATH"]))


@pytest.fixture(scope="module")
def served(comfy: Comfy) -> Comfy:
    """A server with an LCM that reads the tiny world's prompts."""
    network("lcm_tiny").save_pretrained(comfy.base / "models" / "diffusers" / "lcm_tiny")
    return comfy


def graph(**options: Any) -> World:
    world = World(["red heart"] * 2)
    world.student = world.g.add("ApprenticeLoadStudent", "load", student="lcm_tiny", **options)[0]
    world.latent = world.g.add("EmptyLatentImage", "size", width=128, height=64, batch_size=2)[0]
    return world


@torch.no_grad()
def drawn(guidance: float) -> torch.Tensor:
    """One Euler step from pure noise to the picture, by diffusers: x0 = x - sigma eps, in latents of SD 1.5."""
    net = network("lcm_tiny")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = torch.cumprod(1 - betas, 0)[-1].float()
    sigma = ((1 - alpha) / alpha) ** 0.5
    x = torch.randn(2, 4, 8, 16, generator=torch.manual_seed(7))
    context = torch.zeros(2, 16, KINDS["lcm_tiny"]["cross_attention_dim"])
    eps = net(x, 999, context, timestep_cond=guided(net, guidance, 2)).sample
    return (x * (1 + sigma**2) ** 0.5 - sigma * eps) / 0.18215


@pytest.mark.parametrize("guidance", [8.0, 2.0])
def test_the_node_draws_what_diffusers_draws(served: Comfy, guidance: float) -> None:
    world = graph(guidance=guidance)
    nothing = world.g.add("ConditioningZeroOut", "nothing", conditioning=world.positive)
    world.stock("student", world.student, positive=nothing, negative=nothing, steps=1, cfg=1.0, sampler_name="euler",
                scheduler="normal")  # fmt: skip
    served.run(world.g)
    wanted = drawn(guidance)
    torch.testing.assert_close(served.tensors("student")["latent"], wanted, rtol=0, atol=1e-4 * float(wanted.std()))
    assert (drawn(8.0) - drawn(2.0)).std() > 1e-3 * wanted.std()


def test_the_student_sampler_draws_with_it_and_only_a_new_file_reloads_it(served: Comfy) -> None:
    def run() -> Any:
        world = graph()
        drafts = world.g.add(
            "ApprenticeStudentSampler", "drafts", model=world.student, positive=world.positive, negative=world.negative,
            latent_image=world.latent, seed=3, preset="lcm-lora-sd15-sdxl", steps=2, cfg=1.0, denoise=1.0,
        )  # fmt: skip
        world.save("drafts", latent=drafts)
        return served.run(world.g)

    run()
    assert served.tensors("drafts")["latent"].isfinite().all()
    assert "load" in run().cached
    os.utime(served.base / "models" / "diffusers" / "lcm_tiny" / "config.json")
    assert "load" in run().executed


def test_the_node_offers_files_and_folders(served: Comfy) -> None:
    unets = served.base / "models" / "diffusion_models" / "some"
    unets.mkdir(parents=True)
    save_file(network("lcm_tiny").state_dict(), unets / "offered.safetensors")
    info = served.get("/object_info/ApprenticeLoadStudent")["ApprenticeLoadStudent"]
    options = info["input"]["required"]["student"][1]["options"]
    assert {"lcm_tiny", "some/offered.safetensors"} <= set(options)
    assert not any("diffusion_pytorch_model" in option for option in options)


def test_a_student_that_is_gone_is_one_clear_sentence(served: Comfy) -> None:
    world = World(["x"])
    world.stock("x", world.g.add("ApprenticeLoadStudent", student="nobody"))
    with pytest.raises(GraphError, match="There is no student 'nobody'"):
        served.run(world.g)
