"""What training nodes hand out and write: clean networks, the right level, their own files alone, memory that ComfyUI counts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import family_training as training
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.training.lora import Adapters, checkpoint_blocks, untrained

FULL = {"method": "full copy", "gradient_checkpointing": True}


@pytest.fixture(autouse=True)
def folder() -> Any:
    with training.folders() as folder:
        yield folder


def marks(network: torch.nn.Module) -> list[str]:
    """Modules of a network that are not as their class made them."""
    return [name for name, m in network.named_modules() if "forward" in m.__dict__ or m._forward_hooks]


# --------------------------------------------------------------------------------------------- clean networks (13)


def test_what_a_training_node_hands_out_is_every_other_s_input(folder: Path) -> None:
    """SiD Distill (full copy) -> Reward Finetune -> SiD Distill -> SiD Distill (full copy) -> sampler -> file."""
    import comfy.utils

    student = training.distil(tiny.model("sdxl"), "sdxl", "a", **FULL).result[0]
    assert marks(student.model.diffusion_model) == []
    tuned, _run, file, _report = training.tune(student, "sdxl", "b").result
    assert training.lora_wrong(student, tuned, "sdxl", folder / "loras" / file) == ""
    again, _curve, _samples, file = training.distil(tuned, "sdxl", "c").result
    assert training.lora_wrong(tuned, again, "sdxl", folder / "loras" / file) == ""
    whole, _curve, _samples, file = training.distil(again, "sdxl", "d", **FULL).result
    fresh = tiny.model("sdxl", seed=5)
    fresh.model.load_model_weights(comfy.utils.load_torch_file(str(folder / "diffusion_models" / file)), "")
    assert torch.equal(training.drawn(whole, "sdxl"), training.drawn(fresh, "sdxl"))
    for made in (tuned, again, whole):
        assert marks(made.model.diffusion_model) == []


def test_a_deep_copy_of_what_was_handed_out_runs_its_own_blocks() -> None:
    made = training.distil(tiny.model("flux"), "flux", **FULL).result[0]
    network = made.model.diffusion_model
    twin, ran = copy.deepcopy(network), []
    for name, module in (("old", network), ("new", twin)):
        module.double_blocks[0].register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    made.model.diffusion_model = twin
    training.drawn(made, "flux")
    assert set(ran) == {"new"}


def test_what_training_puts_on_a_network_comes_off_and_what_others_put_there_stays() -> None:
    network = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.ModuleList())
    block = torch.nn.TransformerEncoderLayer(4, 1, 4)
    network.append(block)
    theirs = block.forward = lambda x: x  # type: ignore[method-assign,assignment]
    foreign = block.linear1.register_forward_hook(lambda *_: None)
    adapters = Adapters(network, ("a",), 1)
    assert checkpoint_blocks(network, adapters) > 0 and len(marks(network)) > 2
    untrained(network)
    assert block.forward is theirs and list(block.linear1._forward_hooks) == [foreign.id]
    assert marks(network) == ["2", "2.linear1"]


# ------------------------------------------------------------------------------------------ a start without score (16)


def test_tilted_start_passes_over_drafts_without_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_apprentice.nodes import start

    model, latent, scores = tiny.model("sdxl"), tiny.empty("sdxl", 2), iter([[float("nan"), 1.0], [2.0, float("nan")]])
    monkeypatch.setattr(start, "score", lambda *_: next(scores))
    monkeypatch.setattr(start, "to_pixels", lambda vae, samples: samples)
    text = tiny.text("sdxl", 1)
    with torch.inference_mode():
        noise, report = start.ApprenticeTiltedStart.execute(
            [model], [text], [text], [latent], [None], [training.Red()], [""], [2], [1.0], [5], ["custom"], [1], [1.0],
            ["euler"], ["simple"],
        ).result  # fmt: skip
    stock = [start.batch_noise(latent, seed) for seed in (5, 6)]
    assert torch.equal(noise.noise, torch.stack([stock[1][0], stock[0][1]]))
    assert "2 of 4 drafts have no score (NaN) and were passed over." in report and "| nan |" not in report


def test_sid_distill_takes_its_own_least_half_life() -> None:
    training.distil(tiny.model("flux"), "flux", ema_half_life=0.0, pictures=2)
