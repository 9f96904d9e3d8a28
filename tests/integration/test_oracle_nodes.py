"""Oracles from files in a real ComfyUI: loaded, scored, combined, compared, picked by; and the fast look."""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import golden_weights
import pytest
import requests
import torch
from comfyui_apprentice import oracles
from comfyui_apprentice.gate import calibration
from harness import ANSWER_SECONDS, Comfy, GraphError, Node, Run
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


@contextmanager
def opened(file: Path) -> Iterator[list[int]]:
    """How often anybody on this machine opens ``file`` meanwhile: the list has one number afterwards. Linux's inotify."""
    libc, found, in_open, event = ctypes.CDLL(None), [], 0x20, 16
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, bytes(file), in_open) >= 0
    try:
        yield found
        with suppress(BlockingIOError):
            found.append(len(os.read(watch, 4096)) // event)
        found or found.append(0)
    finally:
        os.close(watch)


def calibrated(comfy: Comfy, name: str, scores: list[float], fingerprint: str, oracle: str) -> None:
    prompts = tuple(f"prompt {i}" for i in range(len(scores)))
    path = comfy.base / "models" / "calibrations" / f"{name}.json"
    calibration.save(calibration.Calibration(tuple(scores), fingerprint, oracle, prompts, name=name), path)


def cascade(world: World, heavy: str = "heavy_head.safetensors", light: list | None = None, **changes: object) -> Node:
    """A cascade of the tiny world's oracle and a file, on two calibrations that ``calibrated`` saved."""
    load_heavy = load(world, heavy, kind="aesthetic-v2", clip="clip_tiny.pt", on_demand=True)
    both = {f"{which}_calibration": world.g.add("ApprenticeLoadCalibration", name=f"{which} one") for which in ("light", "heavy")}
    settings = {"band": "share", "share": 0.02, "differing": 0.05, "confidence": 0.9, "percentile": 50.0, **changes}
    return world.g.add("ApprenticeCascadeOracle", light=light or world.tiny[4], heavy=load_heavy, **both, **settings)


def test_a_cascade_reads_its_heavy_oracle_s_file_only_where_a_picture_needs_it(comfy: Comfy) -> None:
    """A light score s is worth 2s - 1, and the drafts score about 30: threshold 0 is no question, and one of theirs is."""
    from comfyui_apprentice.world.weights import load_oracle

    light, folder = load_oracle("oracle"), comfy.base / "models" / "oracles"
    file = folder / "heavy_head.safetensors"
    heavy = oracles.load("aesthetic-v2", folder / "aesthetic_v2_head.safetensors", clip=folder / "clip_tiny.pt")
    scale = [float(i) for i in range(101)]
    calibrated(comfy, "light one", scale, light.fingerprint(), light.name)
    calibrated(comfy, "heavy one", [2 * s - 1 for s in scale], heavy.fingerprint(), heavy.name)
    file.write_bytes(b"not weights at all")

    def judged(name: str, **changes: object) -> Run:
        world = World(PROMPTS, oracle="world")
        made = cascade(world)
        world.oracle = made[0]
        world.sampler(name, **{"margin": 1e6, **changes})
        world.g.add("PreviewAny", "words", source=made[2])
        return comfy.run(world.g)

    with opened(file) as count:
        run = judged("spared", threshold="absolute", value=0.0)
    assert count == [0] and all(j["accepted"] for j in run.outputs["save_spared"]["verdict"])
    words = run.outputs["words"]["text"][0]
    assert "Aesthetic v2 is asked where tiny world oracle scores from 49 to 50: about 2 of the 101" in words
    scores = [float(j["score"]) for j in run.outputs["save_spared"]["verdict"]]
    pictures = comfy.tensors("spared")["image"]
    assert scores == pytest.approx([2 * s - 1 for s in light.score(pictures, PROMPTS).tolist()], rel=1e-4)
    near = sorted(scores)[1]
    with opened(file) as count, pytest.raises(GraphError, match=r"heavy_head\.safetensors.* damaged"):
        judged("needed", threshold="absolute", value=near)
    assert count[0] > 0
    file.write_bytes((folder / "aesthetic_v2_head.safetensors").read_bytes())
    verdict = judged("needed", threshold="absolute", value=near).outputs["save_needed"]["verdict"]
    now = [float(j["score"]) for j in verdict]
    asked = [i for i in range(4) if now[i] != scores[i]]
    assert scores.index(near) in asked and len(asked) < 4
    for i in asked:
        assert now[i] == pytest.approx(float(heavy.score(pictures[i : i + 1], PROMPTS[i : i + 1])), rel=1e-3)
    # Two drafts are rejected, one by each oracle; Keep Better asks about the improvement of the heavy one's alone.
    after = judged("after", threshold="absolute", value=near, margin=-1e6).outputs["save_after"]
    assert re.findall(r"was asked about (\d of \d)", after["note"][0]) == ["1 of 4", "1 of 2"]
    (other,) = (i for i in range(4) if after["verdict"][i]["decision"] == "improved" and i not in asked)
    improved = comfy.tensors("after")["image"]
    words = [2 * light.score(improved, PROMPTS) - 1, heavy.score(improved, PROMPTS)]
    for place, by in ((other, words[0]), (asked[0], words[1])):
        assert float(after["verdict"][place]["score"]) == pytest.approx(float(by[place]), rel=1e-3)
    file.write_bytes((folder / "aesthetic_v2_head.safetensors").read_bytes()[:-4] + b"\0\0\0\x40")
    with pytest.raises(GraphError, match="calibrated with another Aesthetic v2"):
        judged("other", threshold="absolute", value=max(scores))  # about another picture: what was answered is remembered


def test_what_a_cascade_can_t_be_is_said_before_anything_is_drawn(comfy: Comfy) -> None:
    for heavy, changes, words in (
        ("HPS_v2_tiny.safetensors", {"kind": "hpsv2"}, "mean something else for every prompt"),
        ("aesthetic_v2_head.safetensors", {"kind": "auto"}, "choose its kind, or switch on_demand off"),
        ("heavy_head.safetensors", {"on_demand": False}, "This calibration was made with oracle"),
    ):  # fmt: skip
        world = World(PROMPTS, oracle="world")
        made = cascade(world)
        world.g.nodes[world.g.nodes[made.key]["inputs"]["heavy"][0]]["inputs"].update(name=heavy, **changes)
        world.g.add("PreviewAny", source=made[2])
        with pytest.raises(GraphError, match=words):
            comfy.run(world.g)


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
