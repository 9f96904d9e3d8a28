"""The preset "auto": a student recognised by what its loader knows of it, and by nothing that leaves a doubt."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny

tiny.start()

from comfyui_apprentice.bridge.drafts import chosen_preset, student_schedule  # noqa: E402
from comfyui_apprentice.bridge.drawing import Drawing  # noqa: E402
from comfyui_apprentice.bridge.info import CARD, info_of  # noqa: E402
from comfyui_apprentice.networks.diffusers_unet import UNetFiles  # noqa: E402
from comfyui_apprentice.nodes import sample, students  # noqa: E402
from comfyui_apprentice.samplers.presets import FAMILIES  # noqa: E402


def carded(name: str, file: str, metadata: dict[str, str] | None = None, scheduler: Path | None = None) -> tuple[Any, str]:
    """A family's MODEL as Load Student hands it out."""
    return students._with_card(tiny.model(name), metadata or {}, UNetFiles(file, (), None, scheduler))


def test_load_student_believes_a_published_name_for_models_of_its_kind() -> None:
    model, told = carded("sdxl", "sdxl_lightning_8step_unet.safetensors")
    assert chosen_preset(model) == ("sdxl-lightning/8step", "it is called sdxl_lightning_8step_unet.safetensors")
    assert told == "The preset auto will be sdxl-lightning/8step, as it is called sdxl_lightning_8step_unet.safetensors."
    for name, file in (("flux", "sdxl_lightning_8step_unet.safetensors"), ("sdxl", "my student.safetensors")):
        model, told = carded(name, file)
        assert told == ""
        fits = {"flux": "a FLUX.1 model: choose flux-schnell", "sdxl": "an SDXL model: choose sdxl-lightning, dmd2"}
        with pytest.raises(ValueError, match=f"'auto' can't tell .* This is {fits[name]}"):
            chosen_preset(model)


@pytest.mark.parametrize(
    ("name", "preset", "says"),
    [
        ("sdxl", "tiny-world", "is for EDM models, but this is an SDXL model: choose sdxl-lightning, dmd2, sdxl-turbo"),
        ("sd15", "flux-schnell", "is for flow models, but this is an SD1.5 model: choose lcm-lora-sd15-sdxl, .*sid-lsg"),
        ("zimage", "sdxl-lightning", "this is a Z-Image model: choose z-image-turbo/res-multistep"),
        ("qwen", "tiny-world", "this is a Qwen-Image model: choose qwen-image-lightning/shift3,"),
    ],
)
def test_a_wrong_preset_is_answered_with_the_right_ones(name: str, preset: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        student_schedule(tiny.model(name), preset, Drawing(0, 1.0, "euler", "simple", 0))


def test_the_presets_named_for_a_family_are_drawn_by_it() -> None:
    """What the sentence advises is not refused in turn, and every family that presets are named for is one of ComfyUI's."""
    import comfy.supported_models

    named = {config.__name__ for config in comfy.supported_models.models}
    for family in set(FAMILIES) - {"TinyWorldConfig", "EDMConfig", "LTXAV"}:  # LTXAV: newer ComfyUIs'
        assert family in named
    for name in ("sdxl", "sd15", "flux", "zimage", "qwen", "wan21"):
        model = tiny.model(name)
        with pytest.raises(ValueError, match="choose") as told:
            student_schedule(model, "auto", Drawing(0, 1.0, "euler", "simple", 0))
        advised = re.search(r"choose ([^:]*), whichever", str(told.value))
        assert advised is not None
        for preset in advised[1].split(", "):
            assert len(student_schedule(model, preset, Drawing(0, 1.0, "euler", "simple", 0))[2]) > 1


def test_load_student_believes_titles_and_the_pipelines_scheduler(tmp_path: Path) -> None:
    assert chosen_preset(carded("sdxl", "x.safetensors", {"ss_output_name": "dmd2_sdxl_4step_unet"})[0])[0] == "dmd2"
    assert chosen_preset(carded("zimage", "x.bin", {"modelspec.title": "Z-Image-Turbo"})[0])[0] == "z-image-turbo/res-multistep"
    config = tmp_path / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "LCMScheduler"}))
    assert chosen_preset(carded("sd15", "unet", scheduler=config)[0]) == (
        "lcm-lora-sd15-sdxl", "its pipeline has the LCMScheduler",
    )  # fmt: skip
    config.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler"}))
    assert carded("sd15", "unet", scheduler=config)[1] == ""


def test_a_card_of_our_own_comes_first() -> None:
    model, told = carded("sdxl", "dmd2_sdxl_4step_unet.safetensors", {"apprentice": "1", "preset": "sid-lsg"})
    assert chosen_preset(model) == ("sid-lsg", "its card says so") and told == ""


def test_newer_comfyuis_remember_the_file() -> None:
    """There a MODEL carries its loader and what it was called with, and so do its clones."""
    model = tiny.model("zimage")
    model.cached_patcher_init = (print, ("/models/diffusion_models/z_image_turbo_bf16.safetensors", {"dtype": None}))
    assert chosen_preset(model) == ("z-image-turbo/res-multistep", "it is called z_image_turbo_bf16.safetensors")
    model.set_attachments(CARD, {"preset": "custom"})
    assert chosen_preset(model)[0] == "custom"


def test_student_sampler_says_what_auto_chose_and_draws_it() -> None:
    model, _ = carded("sdxl", "sdxl_lightning_2step_unet.safetensors")
    text, latent = tiny.text("sdxl"), tiny.empty("sdxl", 2)

    def drawn(preset: str) -> Any:
        with torch.inference_mode():
            return sample.ApprenticeStudentSampler.execute(
                model=model, positive=text, negative=text, latent_image=latent, seed=1, preset=preset, steps=0, cfg=1.0,
                denoise=1.0,
            )  # fmt: skip

    auto, result = drawn("auto")[0], drawn("auto").ui
    words = "auto chose sdxl-lightning/2step, as it is called sdxl_lightning_2step_unet.safetensors."
    assert result == {"apprentice_text": [words]}
    assert torch.equal(auto["samples"], drawn("sdxl-lightning/2step")[0]["samples"])
    assert info_of(auto).nfe == (2.0, 2.0)
