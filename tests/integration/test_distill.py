"""Distilling in a real ComfyUI: students that the stock loaders take, cancelled and resumed runs, clear refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.precision import native_bfloat16
from comfyui_apprentice.world.weights import load_oracle
from harness import Comfy, Graph, GraphError, Node
from safetensors import safe_open
from safetensors.torch import load_file

SETTINGS: dict[str, Any] = {
    "prompts": "bundled", "text": "red heart on blue\npanda face on yellow\npizza", "method": "LoRA", "rank": 4, "pictures": 12,
    "batch_size": 4, "at_once": 2, "width": 64, "height": 64, "steps": 1, "alpha": 1.0, "kappa1": 1.0, "kappa2": 1.0,
    "kappa4": 1.5, "generator_rate": 1e-3, "fake_rate": 1e-3, "ema_half_life": 8.0, "precision": "fp32",
    "gradient_checkpointing": True, "first_seed": 1, "save_every": 2,
}  # fmt: skip


def distil(g: Graph, model: Any, clip: Any, **changes: Any) -> Node:
    return g.add("ApprenticeSiDDistill", "distil", model=model, clip=clip, **{**SETTINGS, **changes})


def tiny(g: Graph, **changes: Any) -> Node:
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    return distil(g, world[0], world[2], vae=world[3], **changes)


def draw(g: Graph, model: Any, clip: Any, name: str, sampler: str = "ApprenticeSiDSampler", **options: Any) -> None:
    positive = g.add("CLIPTextEncode", f"text_{name}", clip=clip, text="red heart on blue")
    latent = g.add("EmptyLatentImage", f"latent_{name}", width=64, height=64, batch_size=2)
    links = {"model": model, "positive": positive, "latent_image": latent, "seed": 5, "steps": 1}
    if sampler != "ApprenticeSiDSampler":
        links["negative"] = positive
    g.add("TestSave", f"save_{name}", name=name, latent=g.add(sampler, f"draw_{name}", **links, **options))


@pytest.fixture
def unmatched(comfy: Comfy) -> Any:
    """Which keys of a LoRA or checkpoint ComfyUI's log says that it could not place, since the test began."""
    log = comfy.base / "comfyui.log"
    start = log.stat().st_size

    def found() -> list[str]:
        text = log.read_bytes()[start:].decode(errors="replace")
        return [line for line in text.splitlines() if "not loaded" in line or "unet missing" in line or "unet unexpected" in line]

    return found


def test_tiny_world_s_lora_goes_through_the_stock_lora_loader(comfy: Comfy, unmatched: Any) -> None:
    g = Graph()
    made = tiny(g, name="tiny lora", quality="Saved something after 20 images.")  # what an old file's text became
    draw(g, made[0], ["tiny", 2], "made")
    g.add("TestSave", "save_pictures", name="distilled", image=made[2])
    run = comfy.run(g)
    path = comfy.base / "models" / "loras" / "tiny lora.safetensors"
    with safe_open(path, "pt") as file:
        card = file.metadata()
    assert card["preset"] == "sid-edm" and card["images_seen"] == "12" and json.loads(card["kappas"]) == [1.0, 1.0, 1.0, 1.5]
    assert card["teacher"] == "TinyWorldModel" and len(card["teacher_fingerprint"]) == 16
    assert comfy.tensors("distilled")["image"].shape == (3, 64, 64, 3)
    assert run.binaries, "previews while it trains"
    said = run.outputs["distil"]["apprentice_text"][0]
    assert re.search(r"after 12 images\. Foreseen: 12 pictures, about \d+ (s|min), about [\d.]+ MB", said), said

    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    stock = g.add("LoraLoaderModelOnly", model=world[0], lora_name="tiny lora.safetensors", strength_model=1.0)
    draw(g, stock, world[2], "stock")
    draw(g, world[0], world[2], "teacher")
    comfy.run(g)
    assert unmatched() == []
    drawn = {name: comfy.tensors(name)["latent"] for name in ("made", "stock", "teacher")}
    assert torch.equal(drawn["made"], drawn["stock"])
    assert (drawn["made"] - drawn["teacher"]).abs().max() > 1e-3


def test_an_oracle_is_pleased_while_a_student_is_distilled(comfy: Comfy, unmatched: Any) -> None:
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    learned = {"pictures": 16, "vae": world[3]}
    for name, pleased in (("unpleased", {}), ("pleased", {"oracle": world[4], "price": 1e-5})):
        widgets = {**SETTINGS, **learned, "name": name, **pleased}
        made = g.add("ApprenticeSiDDistill", name, model=world[0], clip=world[2], **widgets)
        g.add("TestSave", f"save {name}", name=name, image=made[2])
    comfy.run(g)
    with safe_open(comfy.base / "models" / "loras" / "pleased.safetensors", "pt") as file:
        card = file.metadata()
    assert card["oracle"].startswith("tiny world") and float(card["price"]) == 1e-5
    assert unmatched() == []
    oracle, prompts = load_oracle("oracle"), SETTINGS["text"].splitlines()
    scores = [oracle.score(comfy.tensors(name)["image"][..., :3], prompts).mean() for name in ("unpleased", "pleased")]
    assert scores[1] > scores[0] + 0.1


def test_an_oracle_without_a_vae_is_refused_in_a_sentence(comfy: Comfy) -> None:
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    distil(g, world[0], world[2], name="blind", oracle=world[4])
    with pytest.raises(GraphError, match="connect vae, or disconnect oracle"):
        comfy.run(g)
    assert not (comfy.base / "models" / "loras" / "blind.safetensors").exists()


def test_tiny_world_s_full_copy_is_read_by_load_student_with_its_preset(comfy: Comfy, unmatched: Any) -> None:
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    made = distil(g, world[0], world[2], name="tiny copy", method="full copy", student=world[1], init_sigma=2.5)
    draw(g, made[0], world[2], "made")
    comfy.run(g)
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    loaded = g.add("ApprenticeLoadStudent", student="tiny copy.safetensors")
    draw(g, loaded, world[2], "loaded", "ApprenticeStudentSampler", preset="auto", cfg=1.0, denoise=1.0)
    comfy.run(g)
    made_latent, loaded_latent = comfy.tensors("made")["latent"], comfy.tensors("loaded")["latent"]
    assert (made_latent - loaded_latent).abs().max() < 0.02 * made_latent.std()  # the file is in half precision
    assert unmatched() == []


@pytest.mark.parametrize("method", ["LoRA", "full copy"])
def test_sd15_student_goes_through_the_stock_loaders(comfy: Comfy, models: Path, unmatched: Any, method: str) -> None:
    g = Graph()
    loader = g.add("CheckpointLoaderSimple", ckpt_name="mini_sd15.safetensors")
    name = f"sd15 {method}"
    made = distil(
        g, loader[0], loader[1], name=name, method=method, text="a castle\na (very:1.2) long road", kappa1=1.5, kappa2=1.5,
        pictures=2, batch_size=2,
    )  # fmt: skip
    draw(g, made[0], loader[1], "made")
    draw(g, loader[0], loader[1], "teacher")
    draw(g, made[0], loader[1], "auto", "ApprenticeStudentSampler", preset="auto", cfg=1.0, denoise=1.0)
    comfy.run(g)
    g = Graph()
    loader = g.add("CheckpointLoaderSimple", ckpt_name="mini_sd15.safetensors")
    if method == "LoRA":
        model = g.add("LoraLoader", model=loader[0], clip=loader[1], lora_name=f"{name}.safetensors", strength_model=1.0,
                      strength_clip=1.0)  # fmt: skip
    else:
        model = g.add("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default")
    draw(g, model, loader[1], "stock")
    comfy.run(g)
    drawn = {name: comfy.tensors(name)["latent"] for name in ("made", "stock", "teacher", "auto")}
    assert torch.equal(drawn["made"], drawn["auto"])
    assert (drawn["made"] - drawn["stock"]).abs().max() < 0.02 * drawn["made"].std()
    assert (drawn["made"] - drawn["teacher"]).abs().max() > 1e-4
    assert unmatched() == []


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        ("v-prediction", ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": False})),
        ("flow", ("ModelSamplingSD3", {"shift": 3.0})),
    ],
)
def test_teachers_of_other_kinds_are_distilled_by_their_own_sampling(
    comfy: Comfy, models: Path, unmatched: Any, kind: str, patch: tuple[str, dict[str, Any]]
) -> None:
    """The small SD1.5 network, read as another kind of model by a stock node."""
    g = Graph()
    loader = g.add("CheckpointLoaderSimple", ckpt_name="mini_sd15.safetensors")
    teacher = g.add(patch[0], model=loader[0], **patch[1])
    made = distil(
        g, teacher, loader[1], name=f"student {kind}", text="a castle\na road", pictures=2, batch_size=2, steps=2,
    )  # fmt: skip
    once = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    draw(g, made[0], loader[1], "made", "KSampler", **once)
    draw(g, teacher, loader[1], "teacher", "KSampler", **once)
    comfy.run(g)
    drawn = {name: comfy.tensors(name)["latent"] for name in ("made", "teacher")}
    assert drawn["made"].isfinite().all() and (drawn["made"] - drawn["teacher"]).abs().max() > 1e-4
    with safe_open(comfy.base / "models" / "loras" / f"student {kind}.safetensors", "pt") as file:
        card = file.metadata()
    levels = json.loads(card["sigmas"])
    assert card["preset"] == ("custom" if kind == "flow" else "sid-lsg")
    assert levels == [1.0, 0.5] if kind == "flow" else levels[0] == pytest.approx(2.5, abs=1.0)
    assert unmatched() == []


def test_cancelled_run_goes_on_where_it_was_and_ends_in_the_same_file(comfy: Comfy) -> None:
    def graph(name: str) -> Graph:
        g = Graph()
        tiny(g, name=name, pictures=8, batch_size=2, at_once=1, save_every=1000)
        g.add("TestSave", "save", name="pictures", image=["distil", 2])
        return g

    comfy.run(graph("whole"))
    folder = comfy.base / "output" / "apprentice" / "training" / "stopped"
    comfy.run_and_cancel(graph("stopped"), 2, layers=300)  # within the third iteration of four
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["step"] in (2, 3) and not (comfy.base / "models" / "loras" / "stopped.safetensors").exists()
    comfy.run(graph("stopped"))
    whole, resumed = (load_file(comfy.base / "models" / "loras" / f"{name}.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_auto_is_bfloat16_where_the_machine_has_it_natively_and_float32_elsewhere(comfy: Comfy) -> None:
    """Whose log says so where bfloat16 was asked for and is slow. One file in three: which two are alike, tells."""
    native, log = native_bfloat16(), comfy.base / "comfyui.log"
    made = {}
    for precision in ("auto", "bf16", "fp32"):
        g, start = Graph(), log.stat().st_size
        tiny(g, name=f"in {precision}", pictures=2, batch_size=2, precision=precision)
        comfy.run(g)
        made[precision] = load_file(comfy.base / "models" / "loras" / f"in {precision}.safetensors")
        warned = b"This CPU has no native bfloat16" in log.read_bytes()[start:]
        assert warned == (precision == "bf16" and not native)

    def alike(a: str, b: str) -> bool:
        return all(torch.equal(made[a][key], made[b][key]) for key in made[a])

    assert alike("auto", "bf16") == native and alike("auto", "fp32") != native


def test_run_with_other_settings_is_refused_in_one_sentence(comfy: Comfy) -> None:
    def graph(**changes: Any) -> Graph:
        g = Graph()
        tiny(g, **{"name": "twice", "pictures": 4, **changes})
        g.add("TestSave", "save", name="pictures", image=["distil", 2])
        return g

    comfy.run(graph())
    with pytest.raises(GraphError, match=r"'twice' was begun with another alpha \(alpha was 1.0 and is 1.2\): take another name"):
        comfy.run(graph(alpha=1.2))
    comfy.run(graph(pictures=8))  # longer is the same run
    with pytest.raises(GraphError, match="can't be a file name"):
        comfy.run(graph(name="a/b"))
    with pytest.raises(GraphError, match="connect a student too, another than model, or disconnect base"):
        comfy.run(graph(name="wrong", base=["tiny", 1]))


def test_preset_auto_without_a_card_is_one_clear_sentence(comfy: Comfy) -> None:
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    draw(g, world[0], world[2], "auto", "ApprenticeStudentSampler", preset="auto", cfg=1.0, denoise=1.0)
    with pytest.raises(GraphError, match="'auto' can't tell what the student was made as"):
        comfy.run(g)
