"""Black boxes in every kind of family: a LoRA from clicks alone, and one from an oracle that only scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_apprentice.benchmarks import family_training as training
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.training.click_origins import EDM, Origin, stock_noise
from comfyui_apprentice.training.clicks import ClickedPicture
from torch import Tensor

KINDS = ("sdxl", "sd3", "flux", "qwen")
FEW: dict[str, Any] = {
    "beta": 100.0, "rank": 2, "updates": 2, "batch_pairs": 2, "at_once": 1, "width": 0, "height": 0, "steps": 4,
    "scheduler": "simple", "own_noise": True, "learning_rate": 1e-3, "precision": "fp32", "gradient_checkpointing": True,
    "first_seed": 1, "save_every": 100,
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Any:
    from comfyui_apprentice.bridge import taste_clicks

    with training.folders() as folder:
        monkeypatch.setattr(taste_clicks, "folder", lambda: folder / "taste")
        yield folder


def drafts(name: str) -> dict[str, Tensor]:
    """Eight pictures as the stock sampler draws them from seed 11."""
    model, latent = tiny.model(name), tiny.empty(name, 8)
    return {"samples": tiny.stock(model, latent, tiny.text(name, 8), tiny.text(name, 1, seed=9), seed=11)}


def click(name: str, samples: Tensor, seed: int | None) -> None:
    """Eight clicks in a ring, each picture's prompt one of two, of different lengths."""
    from comfyui_apprentice.bridge.taste_clicks import click_file

    keys = [f"{i:016x}" for i in range(8)]
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    shown = {
        key: ClickedPicture(pixels, training.LINES[i % 2], False, Origin(samples[i].half().numpy(), seed, i))
        for i, key in enumerate(keys)
    }
    for i in range(8):
        click_file(name).add(shown, keys[i], keys[(i + 1) % 8])


def prefer(model: Any, family: str, vae: Any = None, **changes: Any) -> Any:
    from comfyui_apprentice.nodes.taste_finetune import ApprenticeTasteFinetune

    with torch.inference_mode():
        return ApprenticeTasteFinetune.execute(
            model, training.Encoder(family), vae or training.vae(family), family, **{"name": "look", **FEW, **changes}
        ).result  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_clicks_alone_make_a_lora_that_the_stock_loader_takes(name: str, folder: Path) -> None:
    model = tiny.model(name)
    click(name, drafts(name)["samples"], 11)
    made, curve, file, report = prefer(model, name)
    assert training.lora_wrong(model, made, name, folder / "loras" / file) == ""
    assert "8 clicks on 8 pictures of 2 prompts" in report and "the own noise of 8" in report
    assert curve.shape[-1] == 3
    with pytest.raises(ValueError, match="was begun with another beta"):
        prefer(model, name, beta=50.0)


@pytest.mark.parametrize("name", ["sdxl", "flux", "qwen"])
def test_seed_and_place_name_the_noise_that_the_stock_sampler_drew_from(name: str, folder: Path) -> None:
    from comfyui_apprentice.bridge.clicked_pictures import clicked_shape, preferences_of
    from comfyui_apprentice.bridge.noise import batch_noise
    from comfyui_apprentice.bridge.taste_clicks import click_file

    model, latent = tiny.model(name), tiny.empty(name, 8)
    click(name, latent["samples"] + 0.5, 11)
    clicks = click_file(name).read()
    shape = clicked_shape(model, clicks, (0, 0))
    given = preferences_of(model, None, clicks, shape, training.LINES)
    assert shape == tuple(latent["samples"].shape[1:])
    torch.testing.assert_close(given.noise, batch_noise(latent, 11).float())
    assert all(torch.equal(stock_noise(shape, 11, i), given.noise[i]) for i in range(8)), "as the command draws it"
    inside = model.model.process_latent_in(latent["samples"] + 0.5)
    torch.testing.assert_close(given.pictures, inside.float(), atol=1e-2, rtol=1e-2)
    assert given.rows.tolist() == [0, 1] * 4 and given.pairs[0] == (0, 1)


def test_pictures_without_latents_are_encoded_and_take_fresh_noise(folder: Path) -> None:
    from comfyui_apprentice.bridge.taste_clicks import click_file

    keys = [f"{i:016x}" for i in range(8)]
    shown = {k: ClickedPicture(np.full((32, 48, 3), 30 * i, dtype=np.uint8), "a castle") for i, k in enumerate(keys)}
    for i in range(8):
        click_file("sdxl").add(shown, keys[i], keys[(i + 1) % 8])
    asked: list[tuple[int, ...]] = []
    with torch.inference_mode():  # as loaders make weights
        weight = torch.nn.Parameter(torch.ones(3))

    def encode(pixels: Tensor) -> Tensor:
        asked.append(tuple(pixels.shape))
        return (pixels * weight * weight).mean((1, 2))[:, :1, None, None].expand(1, 4, 8, 8)

    vae = SimpleNamespace(**vars(training.vae("sdxl")), encode=encode, spacial_compression_encode=lambda: 8)
    _made, _curve, _file, report = prefer(tiny.model("sdxl"), "sdxl", vae, width=64, height=64)
    assert asked == [(1, 64, 64, 3)] * 8
    assert "latents of 0 pictures were kept" in report and "the own noise of 0" in report


def test_latents_of_another_family_are_not_taken_for_the_model_s_though_they_have_its_shape(folder: Path) -> None:
    """SD3's and Flux's are of 16 channels both, and say other pictures."""
    from comfyui_apprentice.bridge.clicked_pictures import clicked_shape, preferences_of
    from comfyui_apprentice.bridge.latents import family
    from comfyui_apprentice.bridge.taste_clicks import click_file

    sd3, flux = tiny.model("sd3"), tiny.model("flux")
    shape, keys = (16, 8, 8), [f"{i:016x}" for i in range(3)]
    kinds = [family(flux), family(sd3), ""]  # the last as files had it that don't say
    pixels, latents = np.zeros((8, 8, 3), dtype=np.uint8), np.ones(shape, np.float16)
    shown = {
        key: ClickedPicture(pixels, "a castle", False, Origin(latents, 1, i, kind))
        for i, (key, kind) in enumerate(zip(keys, kinds, strict=True))
    }
    for i in range(3):
        click_file("mixed").add(shown, keys[i], keys[(i + 1) % 3])
    clicks = click_file("mixed").read()
    assert [clicks.pictures[key].origin.family for key in keys] == kinds  # type: ignore[union-attr]
    vae = SimpleNamespace(encode=lambda pixels: torch.full((1, *shape), 7.0), spacial_compression_encode=lambda: 8)
    for model, encoded in ((flux, 1), (sd3, 0)):
        given = preferences_of(model, vae, clicks, shape, ["a castle"])
        inside = model.model.process_latent_in(torch.full((1, *shape), 7.0))[0]
        assert [torch.allclose(picture, inside) for picture in given.pictures] == [i == encoded for i in range(3)]
        assert given.known == 2
        assert clicked_shape(model, clicks, (0, 0)) == shape


def test_the_command_for_edm_networks_calls_their_family_as_comfyui_s_model_does() -> None:
    from comfyui_apprentice.bridge.edm import EDMPixels

    assert EDMPixels.__name__ == EDM


def test_few_clicks_are_refused_before_anything_is_computed(folder: Path) -> None:
    with pytest.raises(ValueError, match="There are 0 clicks under the name 'sdxl', and it takes 8"):
        prefer(tiny.model("sdxl"), "sdxl")


def test_a_cancelled_run_goes_on_to_the_same_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.utils
    from comfyui_apprentice.bridge import training as bridge

    click("flux", drafts("flux")["samples"], 11)
    model, asked = tiny.model("flux"), iter(range(1000))
    prefer(model, "flux", name="whole", updates=4)
    with monkeypatch.context() as patch:
        patch.setattr(bridge.NodeScreen, "interrupted", lambda _self: next(asked) == 4)
        with pytest.raises(bridge.Cancelled):
            prefer(model, "flux", name="cut", updates=4)
    assert not (folder / "loras" / "cut.safetensors").exists()
    prefer(model, "flux", name="cut", updates=4)
    whole, cut = (comfy.utils.load_torch_file(str(folder / "loras" / f"{name}.safetensors")) for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize(("name", "steps"), [("sd3", 4), ("sdxl", 1)])
def test_a_picture_without_a_score_teaches_nothing_and_ends_no_run(
    name: str, steps: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyui_apprentice.training.diffusion_nft import ForwardProcess

    real, step, begun = training.Red.reward, ForwardProcess.step, []

    def reward(oracle: Any, images: Tensor, prompts: list[str]) -> Tensor:
        scores = real(oracle, images, prompts)
        return torch.where((torch.arange(len(scores)) == 0) & bool(begun), torch.nan, scores)  # the base's have all one each

    monkeypatch.setattr(training.Red, "reward", reward)
    monkeypatch.setattr(ForwardProcess, "step", lambda self, *given: begun.append(1) or step(self, *given))
    model = tiny.model(name)
    given = {"algorithm": "diffusion_nft", "batch_size": 4, "steps": steps, "preset": "sid-lsg" if steps == 1 else "auto"}
    made, _run, file, _report = training.tune(model, name, **given).result
    assert training.lora_wrong(model, made, name, folder / "loras" / file) == ""


@pytest.mark.parametrize("name", KINDS)
def test_an_oracle_that_only_scores_makes_a_lora(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.Red, "differentiable", False)
    model = tiny.model(name)
    made, _run, file, _report = training.tune(model, name, algorithm="diffusion_nft", batch_size=4).result
    assert training.lora_wrong(model, made, name, folder / "loras" / file) == ""
