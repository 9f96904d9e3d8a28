"""Fine-tuning in a real ComfyUI: LoRAs that the stock loader takes, cancelled and resumed runs, clear refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Comfy, Graph, GraphError, Node
from safetensors import safe_open
from safetensors.torch import load_file

SETTINGS: dict[str, Any] = {
    "prompts": "bundled", "text": "red heart on blue\npizza", "max_prompts": 4, "name": "tuned", "algorithm": "adjoint_matching",
    "divergence": "kl", "strength": "target KL", "value": 0.5, "rank": 4, "updates": 2, "batch_size": 4, "at_once": 4,
    "width": 64, "height": 64, "steps": 3, "scheduler": "karras", "regressed_steps": 2, "learning_rate": 1e-3, "base_draws": 8,
    "rounds": 2, "precision": "fp32", "gradient_checkpointing": True, "first_seed": 0, "save_every": 1,
}  # fmt: skip

# For the small SD1.5, whose U-Net is large.
LARGE: dict[str, Any] = {"text": "a castle", "updates": 1, "batch_size": 1, "steps": 2, "regressed_steps": 1}


def tune(g: Graph, model: Any, clip: Any, vae: Any, oracle: Any, **changes: Any) -> Node:
    return g.add("ApprenticeRewardFinetune", "tune", model=model, clip=clip, vae=vae, oracle=oracle, **{**SETTINGS, **changes})


def tiny(g: Graph, **changes: Any) -> Node:
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    return tune(g, world[0], world[2], world[3], world[4], **changes)


def draw(g: Graph, model: Any, clip: Any, name: str) -> None:
    text = g.add("CLIPTextEncode", f"text {name}", clip=clip, text="red heart on blue")
    latent = g.add("EmptyLatentImage", f"latent {name}", width=64, height=64, batch_size=2)
    drawn = g.add(
        "KSampler", f"draw {name}", model=model, positive=text, negative=text, latent_image=latent, seed=1, steps=2, cfg=1.0,
        sampler_name="euler", scheduler="karras", denoise=1.0,
    )  # fmt: skip
    g.add("TestSave", f"save {name}", name=name, latent=drawn)


@pytest.mark.parametrize("algorithm", ["adjoint_matching", "path_kl", "weighted_regression", "preview", "diffusion_nft"])
def test_the_lora_goes_through_the_stock_loader_and_the_curve_shows_the_run(comfy: Comfy, algorithm: str) -> None:
    g, name = Graph(), f"tuned by {algorithm}"
    made = tiny(g, name=name, algorithm=algorithm)
    draw(g, made[0], ["tiny", 2], "made")
    draw(g, ["tiny", 0], ["tiny", 2], "before")
    curve = g.add("ApprenticeRewardCurve", "curve", run=made[1])
    g.add("TestSave", "save curve", name="curve", image=curve[0], text=curve[2])
    g.add("TestSave", "save album", name="album", image=curve[1], text=made[3])
    run = comfy.run(g)
    with safe_open(comfy.base / "models" / "loras" / f"{name}.safetensors", "pt") as file:
        card = file.metadata()
    assert card["algorithm"] == algorithm and card["oracle"].startswith("tiny world") and float(card["alpha"]) > 0
    assert run.outputs["save curve"]["text"][0].count("\n") == 4  # steps 0, 1 and 2 below the head
    assert comfy.tensors("album")["image"].shape == (3, 2 * 64, 4 * 64, 3)
    assert "nats a picture" in run.outputs["save album"]["text"][0]
    base = 8 * 2 * (2 if algorithm == "weighted_regression" else 1)  # draws of both prompts, in every round
    assert f"Foreseen: {2 * 4 + base} pictures, about " in run.outputs["tune"]["apprentice_text"][0]
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    log = (comfy.base / "comfyui.log").stat().st_size
    stock = g.add("LoraLoader", model=world[0], clip=world[2], lora_name=f"{name}.safetensors", strength_model=1.0,
                  strength_clip=1.0)  # fmt: skip
    draw(g, stock[0], stock[1], "stock")
    comfy.run(g)
    assert "not loaded" not in (comfy.base / "comfyui.log").read_bytes()[log:].decode(errors="replace")
    drawn = {key: comfy.tensors(key)["latent"] for key in ("made", "stock", "before")}
    assert torch.equal(drawn["made"], drawn["stock"])
    assert (drawn["made"] - drawn["before"]).abs().max() > 1e-4


@pytest.mark.parametrize("algorithm", ["direct", "diffusion_nft"])
def test_a_one_step_student_is_tuned_directly(comfy: Comfy, algorithm: str) -> None:
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="sid")
    made = tune(
        g, world[1], world[2], world[3], world[4], name=f"student by {algorithm}", algorithm=algorithm, strength="alpha",
        value=0.1, steps=1 if algorithm == "diffusion_nft" else 4,
    )  # fmt: skip
    draw(g, made[0], world[2], "made")
    draw(g, world[1], world[2], "before")
    comfy.run(g)
    assert not torch.equal(comfy.tensors("made")["latent"], comfy.tensors("before")["latent"])


def test_sd15_is_tuned_too(comfy: Comfy, models: Path) -> None:
    g = Graph()
    loader = g.add("CheckpointLoaderSimple", ckpt_name="mini_sd15.safetensors")
    oracle = g.add("ApprenticeTinyWorld", "tiny", student="consistency")[4]
    made = tune(g, loader[0], loader[1], loader[2], oracle, name="tuned sd15", **LARGE)
    draw(g, made[0], loader[1], "made")
    draw(g, loader[0], loader[1], "before")
    comfy.run(g)
    made_latent, before = comfy.tensors("made")["latent"], comfy.tensors("before")["latent"]
    assert made_latent.isfinite().all() and not torch.equal(made_latent, before)


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        ("v-prediction", ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": False})),
        ("flow", ("ModelSamplingSD3", {"shift": 3.0})),
    ],
)
def test_models_of_other_kinds_are_tuned_by_their_own_sampling(
    comfy: Comfy, models: Path, kind: str, patch: tuple[str, dict[str, Any]]
) -> None:
    """The small SD1.5 network, read as another kind of model by a stock node."""
    g, name = Graph(), f"tuned {kind}"
    loader = g.add("CheckpointLoaderSimple", ckpt_name="mini_sd15.safetensors")
    model = g.add(patch[0], model=loader[0], **patch[1])
    oracle = g.add("ApprenticeTinyWorld", "tiny", student="consistency")[4]
    made = tune(
        g, model, loader[1], loader[2], oracle, name=name, strength="alpha", scheduler="simple", **LARGE
    )  # fmt: skip
    draw(g, made[0], loader[1], "made")
    draw(g, model, loader[1], "before")
    comfy.run(g)
    made_latent, before = comfy.tensors("made")["latent"], comfy.tensors("before")["latent"]
    assert made_latent.isfinite().all() and (made_latent - before).abs().max() > 1e-4
    lines = (comfy.base / "output" / "apprentice" / "training" / name / "loss.jsonl").read_text().splitlines()
    assert all(math.isfinite(json.loads(line)[key]) for line in lines for key in ("loss", "reward", "kl", "gradient"))


def test_a_critic_of_ones_own_teaches(comfy: Comfy) -> None:
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    critic = g.add("ApprenticeLoadPromptKD", "critic", file="tiny world critic.safetensors", clip="auto")
    oracle = g.add("ApprenticePromptKDOracle", "oracle", critic=critic[0], measure="logit", class_name="")
    made = tune(g, world[0], world[2], world[3], oracle[0], name="tuned by a critic", updates=1)
    draw(g, made[0], world[2], "made")
    comfy.run(g)
    assert (comfy.base / "models" / "loras" / "tuned by a critic.safetensors").exists()


def test_a_cancelled_run_goes_on_and_ends_in_the_same_file(comfy: Comfy) -> None:
    def graph(name: str) -> Graph:
        g = Graph()
        settings = {"updates": 3, "batch_size": 2, "at_once": 1, "steps": 4, "save_every": 100, "gradient_checkpointing": False}
        tiny(g, name=name, text="pizza", **settings)
        return g

    comfy.run(graph("whole tuning"))
    comfy.run_and_cancel(graph("stopped tuning"), 8, total=24)  # among the pictures of the model as it was
    folder = comfy.base / "output" / "apprentice" / "training" / "stopped tuning"
    comfy.run_and_cancel(graph("stopped tuning"), 1, layers=300, total=3)  # within the second update of three
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 1
    comfy.run(graph("stopped tuning"))
    whole, stopped = (load_file(comfy.base / "models" / "loras" / f"{n} tuning.safetensors") for n in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def _curve_of_nothing(g: Graph) -> None:
    g.add("PreviewAny", "show", source=g.add("ApprenticeRewardCurve", "curve", run="nothing")[2])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda g: tiny(g, value=50.0), "can't be seen on"),
        (lambda g: tiny(g, algorithm="preview", divergence="js2"), "has a price of its own"),
        (lambda g: tiny(g, name="../up"), "can't be a file name"),
        (_curve_of_nothing, "There is no run"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(comfy: Comfy, build: Callable[[Graph], Any], words: str) -> None:
    g = Graph()
    build(g)
    with pytest.raises(GraphError) as refused:
        comfy.run(g)
    assert words in str(refused.value)
