"""SiD Distill with an oracle, on families of every kind of sampling: its gradient, its refusals, and runs of before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import family_training as training
from comfyui_apprentice.benchmarks import tiny_families as tiny
from safetensors import safe_open

KINDS = ("sdxl", "flux", "qwen", "cascade")  # of sampling and of latents
DEAR = {"price": 1e-6, "generator_rate": 1e-2}  # the reward is all that counts


@pytest.fixture(autouse=True)
def folder() -> Any:
    with training.folders() as folder:
        yield folder


def pleasing(name: str, **changes: Any) -> dict[str, Any]:
    return {"vae": training.vae(name), "oracle": training.Red(), **changes}


def redness(samples: torch.Tensor) -> float:
    return float(training.Red().reward(samples, []).mean())


@pytest.mark.parametrize("name", KINDS)
def test_the_oracle_s_gradient_reaches_the_lora(name: str, folder: Path) -> None:
    model = tiny.model(name)
    plain = training.distil(model, name, "plain", vae=training.vae(name), generator_rate=1e-2)[2]
    made, _curve, samples, file = training.distil(model, name, **pleasing(name, **DEAR)).result
    assert training.lora_wrong(model, made, name, folder / "loras" / file) == ""
    assert redness(samples) > redness(plain) + 1e-3
    with safe_open(folder / "loras" / file, "pt") as read:
        assert read.metadata()["oracle"] == "red" and float(read.metadata()["price"]) == 1e-6


def test_a_full_copy_pleases_too(folder: Path) -> None:
    model = tiny.model("flux")
    plain = training.distil(model, "flux", "plain", method="full copy", vae=training.vae("flux"))[2]
    samples = training.distil(model, "flux", method="full copy", **pleasing("flux", price=1e-6))[2]
    assert redness(samples) > redness(plain)


def test_how_many_pictures_at_once_changes_no_student(folder: Path) -> None:
    """But where a gradient is nothing but rounding, whose sign Adam follows."""
    import comfy.utils

    model, tensors = tiny.model("flux"), []
    for at_once in (0, 1):
        file = training.distil(model, "flux", f"{at_once}", **pleasing("flux", pictures=2, price=0.1, at_once=at_once))[3]
        tensors.append(comfy.utils.load_torch_file(str(folder / "loras" / file)))
    ups = [torch.cat([t[key].flatten() for key in t if "lora_up" in key]) for t in tensors]
    assert float(ups[0].abs().max()) > 1e-4
    assert float(((ups[0] - ups[1]).abs() < 2e-5).float().mean()) > 0.99


@pytest.mark.parametrize(("blind", "vae", "words"), [(True, True, "diffusion_nft"), (False, False, "connect vae")])
def test_an_oracle_that_can_t_teach_is_refused_before_anything_is_written(
    blind: bool, vae: bool, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.Red, "differentiable", not blind)
    with pytest.raises(ValueError, match=words):
        training.distil(tiny.model("flux"), "flux", **{**pleasing("flux"), **({} if vae else {"vae": None})})
    assert not (folder / "apprentice").exists()


def test_an_oracle_that_scores_nothing_is_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.Red, "reward", lambda self, images, prompts: images.flatten(1).mean(1) * float("nan"))
    with pytest.raises(FloatingPointError, match="oracle scores none"):
        training.distil(tiny.model("flux"), "flux", **pleasing("flux"))


def test_without_an_oracle_the_price_changes_nothing_and_a_run_of_before_goes_on(folder: Path) -> None:
    model = tiny.model("flux")
    training.distil(model, "flux")
    file = folder / "apprentice" / "training" / "student" / "run.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    assert not {"oracle", "vae", "price"} & record.keys(), "as it was written before there was an oracle"
    training.distil(model, "flux", pictures=6, price=0.3)
    with pytest.raises(ValueError, match="begun with another oracle"):
        training.distil(model, "flux", **pleasing("flux"))
    training.distil(model, "flux", "pleased", **pleasing("flux"))
    with pytest.raises(ValueError, match="another price"):
        training.distil(model, "flux", "pleased", **pleasing("flux", price=0.3))
    with pytest.raises(ValueError, match="another oracle"):
        training.distil(model, "flux", "pleased")
