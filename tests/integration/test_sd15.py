"""The adaptive graph on a checkpoint with the true SD1.5 layout, with stock loaders, a LoRA and a ControlNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import Comfy, Graph, GraphError
from worlds import World


def sd15_graph(strategy: str) -> Graph:
    g = Graph()
    loader = g.add("CheckpointLoaderSimple", ckpt_name="mini_sd15.safetensors")
    student = g.add(
        "LoraLoader", model=loader, clip=loader[1], lora_name="mini.safetensors", strength_model=0.5, strength_clip=0.0
    )
    positive = g.add("CLIPTextEncode", clip=student[1], text="a castle")
    negative = g.add("CLIPTextEncode", clip=student[1], text="blurry")
    hint = g.add("EmptyImage", width=64, height=64, batch_size=1, color=0xFFFFFF)
    control = g.add(
        "ControlNetApplyAdvanced", positive=positive, negative=negative,
        control_net=g.add("ControlNetLoader", control_net_name="mini.safetensors"), image=hint, strength=0.5,
        start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    counted = {
        name: g.add("TestCountModel", model=model, name=name)[0] for name, model in (("student", student), ("teacher", loader))
    }
    node = g.add(
        "ApprenticeSampler", student=counted["student"], teacher=counted["teacher"], vae=loader[2],
        oracle=g.add("ApprenticeTinyWorld", student="consistency")[4], positive=control[0], negative=control[1],
        prompt="a castle", latent_image=g.add("EmptyLatentImage", width=64, height=64, batch_size=2), seed=len(strategy),
        preset="lcm-lora-sd15-sdxl", steps=2, cfg=1.0, denoise=1.0, threshold="worst share", value=0.5, strategy=strategy,
        rollback=0.5, teacher_steps=4, teacher_cfg=5.0, sampler_name="euler", scheduler="normal", margin=-1e6,
    )  # fmt: skip
    g.add("TestSave", "save", name=f"sd15_{strategy}", latent=node[0], image=node[1], verdict=node[2])
    return g


@pytest.mark.parametrize("strategy", ["refine", "regenerate"])
def test_sd15_layout_goes_through_the_whole_graph(comfy: Comfy, models: Path, strategy: str) -> None:
    assert (models / "checkpoints" / "mini_sd15.safetensors").exists()
    comfy.counts()
    run = comfy.run(sd15_graph(strategy))
    found, verdict = comfy.counts(), run.outputs["save"]["verdict"]
    assert sorted(j["decision"] for j in verdict) == ["accepted", "improved"]
    assert sum(j["nfe"] for j in verdict) == sum(found.values())
    latent = comfy.tensors(f"sd15_{strategy}")["latent"]
    assert latent.shape == (2, 4, 8, 8) and latent.isfinite().all()


@pytest.mark.parametrize("preset", ["sdxl-turbo/stability-first-n", "sdxl-lightning", "tcd-eta0.3", "dmd2-1step/t399",
                                    "sdxl-lightning-1step/x0", "sid-lsg"])  # fmt: skip
def test_presets_of_discrete_models_run(comfy: Comfy, models: Path, preset: str) -> None:
    g = Graph()
    loader = g.add("CheckpointLoaderSimple", ckpt_name="mini_sd15.safetensors")
    text = g.add("CLIPTextEncode", clip=loader[1], text="a castle")
    drafts = g.add(
        "ApprenticeStudentSampler", model=loader, positive=text, negative=text, seed=1, preset=preset, steps=0, cfg=1.0,
        latent_image=g.add("EmptyLatentImage", width=64, height=64, batch_size=1), denoise=1.0,
    )  # fmt: skip
    g.add("TestSave", name="preset", latent=drafts)
    comfy.run(g)
    assert comfy.tensors("preset")["latent"].isfinite().all()


def two_families(with_vaes: bool) -> World:
    world = World(["red heart on blue", "pizza"], oracle="world")
    loader = world.g.add("CheckpointLoaderSimple", ckpt_name="mini_sd15.safetensors")
    text = world.g.add("CLIPTextEncode", clip=loader[1], text="a castle")
    vaes = {"teacher_vae": loader[2]} if with_vaes else {}
    world.sampler(
        "families", teacher=loader[0], teacher_positive=text, teacher_negative=text, threshold="worst share", value=0.5,
        margin=-1e6, teacher_steps=2, **vaes,
    )  # fmt: skip
    return world


def test_teacher_of_another_family_works_through_pixels(comfy: Comfy, models: Path) -> None:
    run = comfy.run(two_families(True).g)
    assert sorted(j["decision"] for j in run.outputs["save_families"]["verdict"]) == ["accepted", "improved"]
    assert comfy.tensors("families")["latent"].shape == (2, 32, 8, 8)
    assert torch.isfinite(comfy.tensors("families")["image"]).all()


def test_teacher_of_another_family_without_its_vae_is_one_clear_sentence(comfy: Comfy, models: Path) -> None:
    with pytest.raises(GraphError, match="connect the student's VAE to vae and the teacher's VAE to teacher_vae"):
        comfy.run(two_families(False).g)


def test_a_short_and_a_long_prompt_are_each_drawn_as_alone(comfy: Comfy, models: Path) -> None:
    """By SD1.5's own text encoder, which gives the long one two pieces of 77 tokens; a stock sampler takes both too."""
    long = "a castle " * 60
    once = {"seed": 5, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}

    def graph(name: str, text: str, batch: int) -> Graph:
        g = Graph()
        loader = g.add("CheckpointLoaderSimple", "loader", ckpt_name="mini_sd15.safetensors")
        lines = g.add("ApprenticePrompts", "lines", clip=loader[1], text=text)
        empty = g.add("CLIPTextEncode", "empty", clip=loader[1], text="")
        latent = g.add("EmptyLatentImage", "latent", width=64, height=64, batch_size=batch)
        inputs = {"model": loader[0], "positive": lines[0], "negative": empty, "latent_image": latent, **once}
        ours = g.add("ApprenticeStudentSampler", "ours", preset="custom", steps=2, **inputs)
        g.add("TestSave", "save ours", name=f"{name} ours", latent=ours)
        g.add("TestSave", "save stock", name=f"{name} stock", latent=g.add("KSampler", "stock", steps=2, **inputs))
        return g

    comfy.run(graph("both", f"a road\n{long}", 2))
    comfy.run(graph("short", "a road", 1))
    both, stock, short = (comfy.tensors(name)["latent"] for name in ("both ours", "both stock", "short ours"))
    torch.testing.assert_close(both[0], short[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(both, stock, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(both[0], both[1], atol=0.1)
