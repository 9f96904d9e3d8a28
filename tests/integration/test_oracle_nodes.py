"""Oracles from files in a real ComfyUI: loaded, scored, combined, compared, picked by; and the fast look."""

from __future__ import annotations

import json
from pathlib import Path

import golden_weights
import pytest
import requests
import torch
from harness import ANSWER_SECONDS, Comfy, GraphError, Node
from PIL import Image
from safetensors.torch import load_file, save_file
from worlds import World

DATA = Path(__file__).parents[1] / "data" / "oracles"
KEYS = json.loads((DATA / "keys.json").read_text())
PROMPTS = ["red heart on blue", "pizza on green", "flat blue square", "noto crab on yellow"]


@pytest.fixture(scope="module", autouse=True)
def files(comfy: Comfy) -> None:
    """Small oracles of the true layouts in models/oracles."""
    folder = comfy.base / "models" / "oracles"
    folder.mkdir(parents=True, exist_ok=True)
    for name, key in (
        ("HPS_v2_tiny", "hpsv2_tiny"), ("PickScore_tiny", "pickscore_tiny"), ("aesthetic_v2_head", "aesthetic_v2_head")
    ):  # fmt: skip
        save_file(golden_weights.weights(f"{key}/", KEYS[key]), folder / f"{name}.safetensors")
    vit = golden_weights.weights("clip_l14_tiny/", KEYS["clip_l14_tiny_visual"])
    torch.save({"state_dict": vit}, folder / "clip_tiny.pt")
    (folder / "broken.safetensors").write_bytes(b"not weights at all")
    requests.get(f"{comfy.url}/object_info/ApprenticeLoadOracle", timeout=ANSWER_SECONDS)


def drafts(world: World, steps: int = 1) -> tuple[Node, Node]:
    """Drafts and their pictures."""
    latent = world.g.add(
        "ApprenticeStudentSampler", "drafts", model=world.student, positive=world.positive, negative=world.negative,
        latent_image=world.latent, seed=3, preset="tiny-world", steps=steps, cfg=1.0, denoise=1.0,
    )  # fmt: skip
    return latent, world.g.add("VAEDecode", "decoded", samples=latent, vae=world.vae)


def load(world: World, name: str, **options: object) -> Node:
    return world.g.add("ApprenticeLoadOracle", f"load_{name}_{len(world.g.nodes)}", name=name, **options)


def test_oracles_from_files_score_as_they_do_outside(comfy: Comfy) -> None:
    from comfyui_apprentice import oracles

    world = World(PROMPTS)
    _, images = drafts(world)
    names = {"HPS_v2_tiny.safetensors": "hpsv2", "PickScore_tiny.safetensors": "pickscore"}
    for name in names:
        score = world.g.add("ApprenticeScore", f"score_{name}", oracle=load(world, name)[0], images=images, prompt=world.list)
        world.g.add("PreviewAny", f"text_{name}", source=score[1])
    aesthetic = load(world, "aesthetic_v2_head.safetensors", clip="clip_tiny.pt")
    world.g.add("PreviewAny", "text_a", source=world.g.add("ApprenticeScore", oracle=aesthetic, images=images, prompt="")[1])
    world.save("scored", image=images)
    run = comfy.run(world.g)
    pictures = comfy.tensors("scored")["image"]
    for name, kind in names.items():
        oracle = oracles.load(kind, comfy.base / "models" / "oracles" / name)
        expected = oracle.score(pictures, PROMPTS)
        lines = run.outputs[f"text_{name}"]["text"][0].splitlines()[2:]
        assert [float(line.split("|")[2]) for line in lines] == pytest.approx(expected.tolist(), rel=2e-3)
    assert len(run.outputs["text_a"]["text"][0].splitlines()) == 6


def test_an_oracle_from_a_file_gates_within_one_prompt_and_refuses_to_between_prompts(comfy: Comfy) -> None:
    world = World(["crab"] * 3)
    world.oracle = load(world, "PickScore_tiny.safetensors")[0]
    world.sampler("one_prompt", threshold="worst share", value=0.34)
    assert len(comfy.run(world.g).outputs["save_one_prompt"]["verdict"]) == 3
    world = World(PROMPTS)
    world.oracle = load(world, "PickScore_tiny.safetensors")[0]
    world.sampler("many", threshold="absolute", value=0.0)
    with pytest.raises(GraphError, match="PickScore v1"):
        comfy.run(world.g)


def test_best_of_keeps_latents_masks_and_prompts_in_step(comfy: Comfy) -> None:
    scored = ["0.3 crab", "0.9 red heart", "0.1 pizza", "0.7 fox"]
    world = World(scored)
    latent, images = drafts(world)
    masks = [world.g.add("SolidMask", value=v, width=64, height=64) for v in (0.0, 0.25, 0.5, 0.75)]
    joined = masks[0]
    for mask in masks[1:]:
        joined = world.g.add("TestStackMasks", a=joined, b=mask)
    best = world.g.add(
        "ApprenticeBestOf", "best", oracle=world.oracle, images=images, prompt=world.list, count=2, per_prompt=False,
        order="best first", latents=latent, masks=joined,
    )  # fmt: skip
    world.save("kept", latent=best[1], image=best[0])
    world.save("mask", image=world.g.add("MaskToImage", mask=best[2]))
    world.save("all", latent=latent, image=images)
    world.g.add("PreviewAny", "prompts", source=best[3])
    run = comfy.run(world.g)
    kept, everything = comfy.tensors("kept"), comfy.tensors("all")
    for place, old in enumerate((1, 3)):
        assert torch.equal(kept["image"][place], everything["image"][old])
        assert torch.equal(kept["latent"][place], everything["latent"][old])
    assert comfy.tensors("mask")["image"][:, 0, 0, 0].tolist() == [0.25, 0.75]
    assert run.outputs["prompts"]["text"] == ["0.9 red heart", "0.7 fox"]


def test_two_oracles_are_compared_and_combined(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    _, images = drafts(world)
    other = load(world, "HPS_v2_tiny.safetensors")[0]
    compared = world.g.add(
        "ApprenticeOracleCompare", "compare", oracle_a=world.oracle, oracle_b=other, images=images, prompt=world.list
    )
    world.save("chart", image=compared[0])
    world.g.add("PreviewAny", "words", source=compared[1])
    calibrations = [world.g.add("TestCalibration", oracle=oracle, scores="-3, 0, 5, 21, 30") for oracle in (world.oracle, other)]
    both = world.g.add(
        "ApprenticeCombineOracles", oracle_a=world.oracle, calibration_a=calibrations[0], oracle_b=other,
        calibration_b=calibrations[1], weight_a=2.0, weight_b=1.0, combination="weighted",
    )  # fmt: skip
    scored = world.g.add("ApprenticeScore", "both", oracle=both, images=images, prompt=world.list)
    world.g.add("PreviewAny", "combined", source=scored[1])
    run = comfy.run(world.g)
    assert "Spearman" in run.outputs["words"]["text"][0]
    assert comfy.tensors("chart")["image"].shape[1] > 500
    assert "uncertainty" in run.outputs["combined"]["text"][0]


def test_what_could_be_had_is_listed_and_the_node_says_which_command_fetches_it(comfy: Comfy) -> None:
    spec = comfy.get("/object_info/ApprenticeLoadOracle")["ApprenticeLoadOracle"]["input"]["required"]["name"]
    options = spec[0] if isinstance(spec[0], list) else spec[1]["options"]
    entry = "hpsv2.1 (not here: apprentice models pull hpsv2.1)"
    assert options[0] == "tiny world" and entry in options and options.index(entry) > options.index("PickScore_tiny.safetensors")

    def refused(name: str, **options: str) -> str:
        world = World(PROMPTS, oracle="world")
        scored = world.g.add("ApprenticeScore", oracle=load(world, name, **options)[0], images=drafts(world)[1], prompt="x")
        world.g.add("PreviewAny", source=scored[1])
        with pytest.raises(GraphError) as told:
            comfy.run(world.g)
        return str(told.value)

    for name in (entry, "HPS_v2.1_compressed.pt"):  # chosen from the list, or saved by somebody who has it
        words = refused(name)
        assert "'HPS_v2.1_compressed.pt' in models/oracles" in words
        assert "'apprentice models pull hpsv2.1' in a terminal fetches 1.97 GB; then queue again." in words
    assert "'apprentice models list' shows" in refused("nobody's.pt")
    head = comfy.base / "models" / "oracles" / "sac+logos+ava1-l14-linearMSE.pth"
    head.write_bytes(b"")
    try:  # the head is here, the CLIP that it stands on isn't
        for options in ({"clip": "auto"}, {}):  # before anything runs; where it is left out, when the node runs
            words = refused(head.name, **options)
            assert "'clip-vit-large-patch14.safetensors'" in words and "'apprentice models pull aesthetic-v2'" in words
            assert ("node_errors" in words) == bool(options)
        assert "There is no file" not in refused(head.name, clip="clip_tiny.pt")
    finally:
        head.unlink()


def test_an_entry_that_was_fetched_since_is_loaded_as_it_stands(comfy: Comfy) -> None:
    folder = comfy.base / "models" / "oracles"
    fetched = folder / "PickScore_v1.safetensors"
    fetched.write_bytes((folder / "PickScore_tiny.safetensors").read_bytes())
    try:
        world = World(["crab"] * 2)
        loaded = load(world, "pickscore (not here: apprentice models pull pickscore)")
        scored = world.g.add("ApprenticeScore", "by_entry", oracle=loaded[0], images=drafts(world)[1], prompt="crab")
        world.g.add("PreviewAny", "words", source=scored[1])
        assert "PickScore v1" in comfy.run(world.g).outputs["words"]["text"][0]
    finally:
        fetched.unlink()


def test_wrong_files_are_one_clear_sentence(comfy: Comfy) -> None:
    for name, message in (("broken.safetensors", "damaged"), ("missing.safetensors", "There is no file 'missing.safetensors'")):
        world = World(PROMPTS)
        _, images = drafts(world)
        scored = world.g.add("ApprenticeScore", oracle=load(world, name)[0], images=images, prompt="x")
        world.g.add("PreviewAny", source=scored[1])
        with pytest.raises(GraphError, match=message):
            comfy.run(world.g)


def test_judging_by_the_fast_look_ends_in_full_pictures(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    settings = {"threshold": "worst share", "value": 0.5, "margin": -1e6, "seed": 11}
    world.sampler("fast", look="fast decode", **settings)
    run = comfy.run(world.g)
    assert sum(j["accepted"] for j in run.outputs["save_fast"]["verdict"]) == 2
    fast = comfy.tensors("fast")
    again = World(PROMPTS, oracle="world")
    latent = again.g.add("TestLoadLatent", name="fast")
    again.save("decoded", image=again.g.add("VAEDecode", samples=latent, vae=again.vae))
    again.save("looked", image=again.g.add("ApprenticeFastDecode", model=again.student, samples=latent))
    comfy.run(again.g)
    assert torch.equal(comfy.tensors("decoded")["image"], fast["image"])
    looked = comfy.tensors("looked")["image"]
    assert looked.shape == fast["image"].shape
    assert 0 < (looked - fast["image"]).abs().mean() < 0.12


def test_the_fast_look_uses_taesd_where_its_file_is(comfy: Comfy, models: Path) -> None:
    """Under the name that SD 1.5's latents ask for; the checkpoint's own VAE is a TAESD, so the pictures must be its."""
    weights = load_file(models / "checkpoints" / "mini_sd15.safetensors")
    prefix = "first_stage_model.taesd_decoder."
    (models / "vae_approx").mkdir(exist_ok=True)
    decoder = {k.removeprefix(prefix): v.contiguous() for k, v in weights.items() if k.startswith(prefix)}
    save_file(decoder, models / "vae_approx" / "taesd_decoder.safetensors")
    world = World(["x"])
    checkpoint = world.g.add("CheckpointLoaderSimple", ckpt_name="mini_sd15.safetensors")
    drawn = world.g.add(
        "KSampler", model=checkpoint, positive=world.g.add("CLIPTextEncode", clip=checkpoint[1], text="x"),
        negative=world.g.add("CLIPTextEncode", clip=checkpoint[1], text=""), seed=1, steps=1, cfg=1.0, sampler_name="euler",
        latent_image=world.g.add("EmptyLatentImage", width=64, height=96, batch_size=2), scheduler="normal", denoise=1.0,
    )  # fmt: skip
    world.save("taesd", latent=drawn, image=world.g.add("ApprenticeFastDecode", model=checkpoint, samples=drawn))
    comfy.run(world.g)
    found = comfy.tensors("taesd")
    from comfy_taesd import decode

    torch.testing.assert_close(found["image"], decode(decoder, found["latent"] * 0.18215), rtol=0, atol=2e-3)


def test_preview_of_the_comparison_can_be_opened(comfy: Comfy) -> None:
    chart = comfy.tensors("chart")["image"][0]
    picture = Image.fromarray((chart * 255).byte().numpy())
    assert picture.width > picture.height > 500
