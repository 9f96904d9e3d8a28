"""SiD Distill from a published student on: tiny models of four families, random weights, the stock loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import family_training as training
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.bridge import training as bridge
from comfyui_apprentice.bridge.info import CARD
from comfyui_apprentice.bridge.transplant import (
    Models,
    Transplant,
    levels_of,
    named,
    patched_parameters,
    weights,
    without_patches,
)
from comfyui_apprentice.training.lora import Adapters, adaptable, lora_state_dict, switched
from torch import Tensor

FAMILIES = ("sdxl", "flux", "zimage", "qwen")
WHOLE = 1024  # a rank that holds everything


@pytest.fixture(autouse=True)
def folder() -> Any:
    with training.folders() as folder:
        yield folder


def loaded(model: Any, tensors: dict[str, Tensor]) -> Any:
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, dict(tensors), 1.0, 0.0)[0]


def lora(model: Any, seed: int, rank: int = 2) -> dict[str, Tensor]:
    """A LoRA file that changes every layer."""
    rng, tensors = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for number, (name, layer) in enumerate(adaptable(model.model.diffusion_model).items()):
        outputs, inputs, *kernel = layer.weight.shape
        size = float(layer.weight.detach().std()) * 0.3
        tensors[f"down.{number}"] = torch.randn(rank, inputs, *kernel, generator=rng) * size**0.5
        tensors[f"up.{number}"] = torch.randn(outputs, rank, *(1 for _ in kernel), generator=rng) * size**0.5 / rank
        assert name
    return lora_state_dict(tensors, list(adaptable(model.model.diffusion_model)))


def turbo(name: str, seed: int = 5, everything: bool = False) -> Any:
    """Another checkpoint of the same base: other matrices, and with ``everything`` other biases and norms too."""
    student, rng = tiny.model(name), torch.Generator().manual_seed(seed)
    layers = {f"{layer}.weight" for layer in adaptable(student.model.diffusion_model)}
    with torch.no_grad():
        for key, parameter in student.model.diffusion_model.named_parameters():
            if key in layers or (everything and key.endswith(("weight", "bias"))):
                parameter += torch.randn(parameter.shape, generator=rng) * 0.1 * max(float(parameter.detach().std()), 0.02)
    return student


def close(found: Tensor, wanted: Tensor, part: float) -> bool:
    return float((found - wanted).abs().max()) < part * float(wanted.abs().max())


def denoised(model: Any, name: str, start: Any = None) -> Tensor:
    """What a model's network says of one noisy latent; with the LoRA that begins at ``start`` (student, base)."""
    texts, latent = [tiny.text(name)], tiny.empty(name, 1)["samples"]
    with bridge.training(), torch.no_grad():
        base = bridge.copy_network(model, torch.float32)
        denoise = bridge.denoiser(base, torch.float32, bridge.Conditions(base, texts, tuple(latent.shape[1:])))
        if start is not None:
            bridge.place([base])
            adapters = Adapters(base.diffusion_model, ("generator",), WHOLE)
            assert Transplant.of(model, *start).begin(adapters.of["generator"]) == pytest.approx(1.0)
            denoise = switched(denoise, adapters, "generator")
        x = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
        return denoise(x, torch.full((1, *[1] * (latent.ndim - 1)), 0.7), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("name", FAMILIES)
def test_at_full_rank_the_generator_begins_as_the_student(name: str) -> None:
    """A checkpoint, beside a teacher of the same base; the same base with a LoRA on; a checkpoint of another base."""
    teacher, student = tiny.model(name), turbo(name)
    wanted = denoised(student, name)
    assert not close(wanted, denoised(teacher, name), 0.02)
    assert close(denoised(teacher, name, (student, None)), wanted, 1e-4)
    fast = loaded(teacher, lora(teacher, 2))
    assert close(denoised(teacher, name, (fast, None)), denoised(fast, name), 1e-4)
    assert close(denoised(student, name, (fast, teacher)), denoised(loaded(student, lora(teacher, 2)), name), 1e-4)


def test_the_artist_s_lora_stays_under_what_makes_the_student_fast() -> None:
    """Teacher: checkpoint and style LoRA. The generator begins as the turbo with that LoRA on it."""
    plain, student = tiny.model("sdxl"), turbo("sdxl")
    style = lora(plain, 3)
    found = denoised(loaded(plain, style), "sdxl", (student, None))
    assert close(found, denoised(loaded(student, style), "sdxl"), 1e-4)


@pytest.mark.parametrize("name", ["sdxl", "zimage"])
def test_the_lora_of_each_choice_draws_with_the_stock_loader_as_the_one_for_the_teacher(name: str, folder: Path) -> None:
    """One run, three files: the run is finished, so another choice only writes another file."""
    import comfy.utils

    plain, student = tiny.model(name), turbo(name, everything=True)
    teacher, files = loaded(plain, lora(plain, 3)), dict[str, dict[str, Tensor]]()
    for choice in ("teacher", "base", "student"):
        given = {"student": student, "rank": WHOLE, "made_for": choice, "pictures": 2, "gradient_checkpointing": False}
        made, *_rest, file = training.distil(teacher, name, **given).result
        path = folder / "loras" / file
        files[choice] = comfy.utils.load_torch_file(str(path))
        onto = {"teacher": teacher, "base": plain, "student": student}[choice]
        drawn = training.drawn(loaded(onto, files[choice]), name)
        assert torch.equal(training.drawn(made, name), drawn)
        if choice == "teacher":
            wanted = drawn
            assert not close(training.drawn(teacher, name), wanted, 0.02)
        assert close(drawn, wanted, 0.02), choice
        card = made.get_attachment(CARD)
        assert card["made_for"] == choice and card["load_onto"]
    assert not close(training.drawn(loaded(plain, files["teacher"]), name), wanted, 0.02)  # it does matter onto what


def test_a_run_goes_on_from_its_checkpoint_and_not_from_the_student_again(folder: Path) -> None:
    import comfy.utils

    quick = {"gradient_checkpointing": False, "kappa1": 1.0, "kappa2": 1.0, "kappa4": 1.0}

    def made(name: str, *pictures: int) -> dict[str, Tensor]:
        for count in pictures:
            given = {"student": turbo("zimage"), "pictures": count, **quick}
            file = training.distil(tiny.model("zimage"), "zimage", name, **given).result[3]
        return comfy.utils.load_torch_file(str(folder / "loras" / file))

    whole, parts = made("whole", 4), made("parts", 2, 4)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_facts_of_runs_without_a_student_are_those_of_before(folder: Path) -> None:
    """Else every run of an artist would be another one after an update."""
    training.distil(tiny.model("wan21"), "wan21")
    record = json.loads((folder / "apprentice" / "training" / "student" / "run.json").read_text(encoding="utf-8"))
    assert set(record) == {
        "apprentice_run", "name", "method", "rank", "precision", "init_timestep", "init_sigma", "size", "batch",
        "generator_rate", "fake_rate", "alpha", "kappa1", "kappa2", "kappa4", "steps", "generator_scale", "fake_scale",
        "adversarial", "ema_half_life", "ema_rampup", "generator_beta1", "eps", "warmup", "decay", "delay", "augment", "seed",
        "models", "prompts", "clip",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "card", "levels", "preset"),
    [
        ("sdxl", "sdxl-lightning/4step", [999, 499], "dmd2/2step"),
        ("sdxl", "lcm-lora-sd15-sdxl", [999, 499], "lcm-lora-sd15-sdxl/2step"),
        ("sdxl", "", [999, 499], "dmd2/2step"),
        ("flux", "flux-schnell", [1.0, 0.5], "custom"),
        ("zimage", "z-image-turbo/shift3", [1.0, 0.75], "custom"),
    ],
)
def test_the_student_is_called_where_its_preset_calls_it(family: str, card: str, levels: list[float], preset: str) -> None:
    model, student = tiny.model(family), tiny.model(family)
    if card:
        student.set_attachments(CARD, {"preset": card})
    found = Transplant.of(model, student, None).preset
    sampling = model.get_model_object("model_sampling")
    wanted = [float(sampling.sigma(torch.tensor(float(level)))) if family == "sdxl" else level for level in levels]
    assert levels_of(found, model, 2, (1024, 1024)) == pytest.approx(wanted, rel=1e-3) and named(found, 2) == preset


def test_the_card_says_with_which_levels_the_student_learned(folder: Path) -> None:
    student = tiny.model("flux", seed=3)
    student.set_attachments(CARD, {"preset": "flux-schnell"})
    about = training.distil(tiny.model("flux"), "flux", student=student, steps=2, pictures=2).result[0].get_attachment(CARD)
    assert json.loads(about["sigmas"]) == pytest.approx([1.0, 0.5]) and about["preset"] == "custom"


@pytest.mark.parametrize("variety", ["anchor", "consistency"])
@pytest.mark.parametrize(("family", "card"), [("flux", "flux-schnell"), ("zimage", "z-image-turbo/shift3")])
def test_the_teacher_s_way_is_its_own_whatever_the_preset_s_steps(family: str, card: str, variety: str, folder: Path) -> None:
    """A preset of 8 or 16 steps at most, and a way of 12 or 18."""
    model, student = tiny.model(family), tiny.model(family, seed=3)
    student.set_attachments(CARD, {"preset": card})
    quick = {"student": student, "steps": 4, "pictures": 2, "kappa1": 1.0, "kappa2": 1.0, "gradient_checkpointing": False}
    made, *_rest, file = training.distil(model, family, variety=variety, **quick).result
    assert training.lora_wrong(model, made, family, folder / "loras" / file) == ""


def test_a_student_of_listed_levels_is_called_in_even_steps(folder: Path) -> None:
    """Its preset has eight steps and no others."""
    student = tiny.model("qwen", seed=3)
    student.set_attachments(CARD, {"preset": "qwen-image-2.1-turbo"})
    about = training.distil(tiny.model("qwen"), "qwen", student=student, steps=2, pictures=2).result[0].get_attachment(CARD)
    assert about["preset"] == "custom" and len(json.loads(about["sigmas"])) == 2


def refused(call: Any, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, before texts are encoded, and without a trace."""
    lines: list[str] = []
    real = training.Encoder.encode_from_tokens_scheduled
    monkeypatch.setattr(training.Encoder, "encode_from_tokens_scheduled", lambda s, line: lines.append(line) or real(s, line))
    with pytest.raises(ValueError, match=words):
        call()
    assert lines == [] and not (folder / "apprentice").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"student": "sdxl"}, "The student is SDXL, and the model Flux"),
        ({"student": "flux", "base": "sdxl"}, "The base is SDXL"),
        ({"base": "flux"}, "connect a student too"),
        ({"made_for": "student"}, "a LoRA for the connected student"),
        ({"made_for": "base", "method": "full copy"}, "choose the method LoRA"),
        ({"student": "one-step"}, "two or four steps"),
        ({"quality": "keep my look"}, "connect one of the model's own kind"),
    ],
)
def test_what_does_not_go_together_is_refused(
    given: dict[str, Any], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, family = dict(given), "flux"
    for socket in ("student", "base"):
        if inputs.get(socket) == "one-step":
            family, inputs[socket] = "sdxl", turbo("sdxl")
            inputs[socket].set_attachments(CARD, {"preset": "sdxl-lightning-1step/x0"})
        elif socket in inputs:
            inputs[socket] = tiny.model(inputs[socket], seed=2)
    refused(lambda: training.distil(tiny.model(family), family, **inputs), words, folder, monkeypatch)


def test_schnell_can_begin_a_lora_on_dev_and_not_carry_one_that_dev_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lacks the layers in which dev is told its guidance."""
    dev, schnell = tiny.model("flux"), tiny.model("schnell", seed=3)
    begun = Transplant.of(dev, schnell, None)
    missing = set(adaptable(dev.model.diffusion_model)) - set(adaptable(schnell.model.diffusion_model))
    assert missing and all(name.startswith("guidance_in") for name in missing)
    with bridge.training(), torch.no_grad():
        lora = Adapters(bridge.copy_network(dev, torch.float32).diffusion_model, ("generator",), 2).of["generator"]
        assert 0 < begun.begin(lora) < 1
    assert all(bool(up.any()) == (name not in missing) for name, up in zip(lora.names, lora.up, strict=True))
    refused(
        lambda: training.distil(dev, "flux", student=schnell, made_for="student"), "The student lacks layers", folder, monkeypatch
    )


def test_the_same_model_as_student_and_teacher_is_no_student() -> None:
    model = tiny.model("sdxl")
    styled = loaded(model, lora(model, 1))
    assert Models(styled, styled.clone()).transplant() is None and Models(styled, model).transplant() is not None


@pytest.mark.parametrize(
    ("given", "words"), [({"quality": "keep my look"}, "few-step model"), ({"base": None}, "another than model")]
)
def test_nor_can_it_be_given_what_only_a_student_has_use_for(
    given: dict[str, Any], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = tiny.model("flux"), {key: value or tiny.model("flux", seed=2) for key, value in given.items()}
    refused(lambda: training.distil(model, "flux", student=model.clone(), **inputs), words, folder, monkeypatch)


def test_a_student_with_other_layers_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = tiny.model("sdxl", seed=2)
    first = next(layer for layer in student.model.diffusion_model.modules() if isinstance(layer, torch.nn.Linear))
    first.weight = torch.nn.Parameter(torch.zeros(first.weight.shape[0], first.weight.shape[1] + 8))
    refused(lambda: training.distil(tiny.model("sdxl"), "sdxl", student=student), "another SDXL", folder, monkeypatch)


def test_reading_weights_leaves_a_model_as_it_is() -> None:
    plain = tiny.model("sdxl")
    styled = loaded(plain, lora(plain, 3))
    name = f"{next(iter(adaptable(plain.model.diffusion_model)))}.weight"
    before = dict(plain.model.diffusion_model.named_parameters())[name].clone()
    with bridge.training(), torch.no_grad():
        bare, whole = weights(styled, patched=False)(name), weights(styled)(name)
        assert torch.equal(bare, before) and not torch.equal(whole, before)
        whole.add_(1)
    assert torch.equal(dict(plain.model.diffusion_model.named_parameters())[name], before)
    assert name in patched_parameters(styled) and not patched_parameters(without_patches(styled))
    assert close(training.drawn(without_patches(styled), "sdxl"), training.drawn(plain, "sdxl"), 1e-6)


def test_a_preset_is_named_only_where_its_sampler_adds_fresh_noise() -> None:
    assert named("dmd2", 4) == "dmd2/4step" and named("flux-schnell", 4) == "custom"
