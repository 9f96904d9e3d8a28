"""Stock nodes on the tiny world, unchanged; and the paper's applications: editing, inpainting, control."""

from __future__ import annotations

import pytest
import torch
from harness import Comfy, Run
from worlds import World

PROMPTS = ["red heart on blue", "yellow square on pink"]


def half_mask(world: World):
    """A mask over the right half: 1 is redrawn."""
    empty = world.g.add("SolidMask", value=0.0, width=64, height=64)
    right = world.g.add("SolidMask", value=1.0, width=32, height=64)
    return world.g.add("MaskComposite", destination=empty, source=right, x=32, y=0, operation="add")


def picture(world: World):
    """Pictures to edit, encoded: what the student draws at another seed."""
    first = world.g.add(
        "ApprenticeStudentSampler", "first", model=world.student, positive=world.positive, negative=world.negative,
        latent_image=world.latent, seed=100, preset="tiny-world", steps=2, cfg=1.0, denoise=1.0,
    )  # fmt: skip
    pixels = world.g.add("VAEDecode", "pixels", samples=first, vae=world.vae)
    return world.g.add("VAEEncode", "encoded", pixels=pixels, vae=world.vae)[0]


def test_custom_advanced_sampler_ksampler_and_vae_round_trip(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    g = world.g
    guider = g.add("CFGGuider", model=world.teacher, positive=world.positive, negative=world.negative, cfg=2.0)
    drawn = g.add(
        "SamplerCustomAdvanced", noise=g.add("RandomNoise", noise_seed=1), guider=guider,
        sampler=g.add("KSamplerSelect", sampler_name="heun"),
        sigmas=g.add("KarrasScheduler", steps=5, sigma_max=80.0, sigma_min=0.01, rho=7.0), latent_image=world.latent,
    )  # fmt: skip
    pixels = g.add("VAEDecode", samples=drawn, vae=world.vae)
    again = g.add("VAEDecode", samples=g.add("VAEEncode", pixels=pixels, vae=world.vae), vae=world.vae)
    world.save("first", latent=drawn, image=pixels)
    world.save("second", image=again)
    comfy.run(g)
    first, second = comfy.tensors("first"), comfy.tensors("second")
    assert first["latent"].shape == (2, 32, 8, 8) and first["image"].shape == (2, 64, 64, 3)
    assert first["image"].min() >= 0 and first["image"].max() <= 1 and first["image"].std() > 0.05
    assert (first["image"] - second["image"]).abs().mean() < 0.05


def test_each_picture_follows_its_own_prompt(comfy: Comfy) -> None:
    """Row i of a batch of prompts is what the prompt alone would give."""
    world = World(PROMPTS, oracle="world")
    world.stock("both", world.teacher)
    noise = world.g.add("EmptyLatentImage", width=64, height=64, batch_size=2)
    text = world.g.add("CLIPTextEncode", clip=world.clip, text=PROMPTS[1])
    world.stock("alone", world.teacher, positive=text, latent_image=noise)
    comfy.run(world.g)
    torch.testing.assert_close(comfy.tensors("both")["latent"][1], comfy.tensors("alone")["latent"][1], rtol=1e-3, atol=1e-3)


def test_prompt_weights_change_the_picture(comfy: Comfy) -> None:
    world = World(["heart"], oracle="world")
    for name, text in (("plain", "heart on red"), ("strong", "heart on (red:1.6)")):
        world.stock(name, world.teacher, positive=world.g.add("CLIPTextEncode", clip=world.clip, text=text), steps=2)
    comfy.run(world.g)
    assert not torch.allclose(comfy.tensors("plain")["latent"], comfy.tensors("strong")["latent"], atol=1e-2)


@pytest.mark.parametrize("strategy", ["refine", "regenerate"])
def test_inpainting_keeps_what_is_outside_the_mask_in_student_and_teacher(comfy: Comfy, strategy: str) -> None:
    world = World(PROMPTS, oracle="world")
    world.latent = encoded = picture(world)
    world.latent = world.g.add("SetLatentNoiseMask", "masked", samples=encoded, mask=half_mask(world))[0]
    nodes = world.modular("inpaint", threshold="worst share", value=1.0, strategy=strategy, margin=-1e6, seed=5)
    world.save("drafts", latent=nodes["drafts"])
    world.save("source", latent=encoded)
    comfy.run(world.g)
    source, drafts, final = (comfy.tensors(n)["latent"] for n in ("source", "drafts", "inpaint"))
    for drawn in (drafts, final):
        torch.testing.assert_close(drawn[..., :4], source[..., :4], rtol=0, atol=1e-4)
        assert (drawn[..., 4:] - source[..., 4:]).abs().mean() > 0.05
    assert (drafts - final).abs().mean() > 0.01


def test_regeneration_under_a_mask_is_the_stock_ksampler_on_the_masked_picture(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    world.latent = world.g.add("SetLatentNoiseMask", samples=picture(world), mask=half_mask(world))[0]
    world.modular("ours", threshold="worst share", value=1.0, strategy="regenerate", margin=-1e6)
    world.stock("stock", world.teacher)
    comfy.run(world.g)
    assert torch.equal(comfy.tensors("ours")["latent"], comfy.tensors("stock")["latent"])


@pytest.mark.parametrize("denoise", [0.3, 0.6])
def test_editing_at_low_denoise_stays_closer_and_regenerates_like_stock(comfy: Comfy, denoise: float) -> None:
    world = World(PROMPTS, oracle="world")
    encoded = world.latent = picture(world)
    nodes = world.modular("edit", threshold="worst share", value=1.0, strategy="regenerate", margin=-1e6, denoise=denoise)
    world.stock("stock", world.teacher, denoise=denoise)
    world.save("drafts", latent=nodes["drafts"])
    world.save("source", latent=encoded)
    comfy.run(world.g)
    assert torch.equal(comfy.tensors("edit")["latent"], comfy.tensors("stock")["latent"])
    distance = (comfy.tensors("drafts")["latent"] - comfy.tensors("source")["latent"]).abs().mean()
    assert 0.001 < distance < 0.5


def control_run(comfy: Comfy, strength: float) -> Run:
    world = World(PROMPTS, oracle="world")
    edges = world.g.add(
        "Canny", image=world.g.add("VAEDecode", samples=picture(world), vae=world.vae), low_threshold=0.2, high_threshold=0.4
    )
    applied = world.g.add(
        "ControlNetApplyAdvanced", positive=world.positive, negative=world.negative, control_net=world.tiny[5], image=edges,
        strength=strength, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    world.positive, world.negative = applied[0], applied[1]
    world.count()
    world.modular(f"control{strength}", threshold="worst share", value=0.5, margin=-1e6, strategy="regenerate")
    return comfy.run(world.g)


def test_controlnet_steers_student_and_teacher_also_for_part_of_a_batch(comfy: Comfy) -> None:
    control_run(comfy, 1.0)
    control_run(comfy, 0.0)
    on, off = comfy.tensors("control1.0")["latent"], comfy.tensors("control0.0")["latent"]
    assert ((on - off).abs().mean((1, 2, 3)) > 1e-3).all()


def test_lora_of_the_teacher_loads_with_the_stock_loader(comfy: Comfy) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    world = World(PROMPTS, oracle="world")
    folder = comfy.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    from comfyui_apprentice.world.weights import load_unet

    name, weight = next((k, v) for k, v in load_unet("teacher").state_dict().items() if k.endswith("weight") and v.ndim == 2)
    stem = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
    rank = {"lora_up": torch.randn(weight.shape[0], 2), "lora_down": torch.randn(2, weight.shape[1])}
    save_file({f"{stem}.{k}.weight": v for k, v in rank.items()}, folder / "tiny.safetensors")
    patched = world.g.add("LoraLoaderModelOnly", model=world.teacher, lora_name="tiny.safetensors", strength_model=0.5)
    world.stock("with_lora", patched[0], steps=2)
    world.stock("without", world.teacher, steps=2)
    comfy.run(world.g)
    assert not torch.allclose(comfy.tensors("with_lora")["latent"], comfy.tensors("without")["latent"], atol=1e-3)
