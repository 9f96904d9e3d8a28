"""Calibrating in a real ComfyUI: drawing, stopping, going on, and gates that use what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from harness import ANSWER_SECONDS, Comfy, Graph, GraphError, Node
from safetensors.torch import save_file
from worlds import World

SMALL: dict[str, Any] = {
    "prompts": "bundled", "text": "", "max_prompts": 0, "drafts_per_prompt": 1, "batch_size": 4, "width": 64, "height": 64,
    "first_seed": 7, "preset": "tiny-world", "steps": 2, "cfg": 1.0,
}  # fmt: skip
LINES = [f"0.{i} heart" for i in range(1, 9)]


def add_calibrate(world: World, name: str, **changes: Any) -> Node:
    node = world.g.add(
        "ApprenticeCalibrate", "calibrate", model=world.student, clip=world.clip, vae=world.vae, oracle=world.oracle, name=name,
        **{**SMALL, **changes},
    )  # fmt: skip
    world.g.add("TestSave", "save_report", name=f"report_{name}", text=node[1], image=node[2])
    return node


def add_judge(world: World, calibration: Any, **changes: Any) -> Node:
    drafts = world.g.add(
        "ApprenticeStudentSampler", "drafts", model=world.student, positive=world.positive, negative=world.negative,
        latent_image=world.latent, seed=7, preset="tiny-world", steps=changes.pop("steps", 2), cfg=1.0, denoise=1.0,
    )  # fmt: skip
    images = world.g.add("VAEDecode", "decode", samples=drafts, vae=world.vae)
    more = {} if calibration is None else {"calibration": calibration}
    judge = world.g.add(
        "ApprenticeJudge", "judge", oracle=world.oracle, images=images, prompt=world.list, drafts=drafts, **more,
        **{"threshold": "percentile", "value": 50.0, **changes},
    )  # fmt: skip
    world.g.add("TestSave", "save_verdict", name="verdict", verdict=judge[0])
    return judge


def file_of(comfy: Comfy, name: str) -> Path:
    return comfy.base / "models" / "calibrations" / f"{name}.json"


def scores(comfy: Comfy, name: str) -> list[float]:
    return [draft["score"] for draft in json.loads(file_of(comfy, name).read_text())["drafts"]]


def verdict(run: Any) -> list[dict[str, Any]]:
    return run.outputs["save_verdict"]["verdict"]


def test_a_calibration_holds_the_scores_and_the_judge_takes_its_percentile(comfy: Comfy) -> None:
    world = World(["0.4 heart", "0.6 heart"])
    node = add_calibrate(world, "eight", text="\n".join(LINES))
    add_judge(world, node[0])
    run = comfy.run(world.g)
    assert scores(comfy, "eight") == pytest.approx([i / 10 for i in range(1, 9)])
    assert [float(j["threshold"]) for j in verdict(run)] == pytest.approx([0.45, 0.45])
    assert [j["accepted"] for j in verdict(run)] == [False, True]
    assert "8 drafts of 8 prompts, scored by prompt oracle" in run.outputs["save_report"]["text"][0]
    steps = [e["data"] for e in run.events if e["type"] == "progress" and e["data"]["node"] == "calibrate"]
    assert [s["value"] for s in steps] == sorted(s["value"] for s in steps)
    assert {s["max"] for s in steps} == {800} and steps[-1]["value"] == 800


def test_a_look_after_the_first_step_is_the_one_step_draft_and_is_told(comfy: Comfy) -> None:
    texts = {}
    for name, changes in (("looked", {"first_step": True, "steps": 2}), ("one step", {"steps": 1})):
        world = World(LINES[:4], oracle="world")
        add_calibrate(world, name, text="red heart\npizza\ncrab\nrocket", **changes)
        texts[name] = comfy.run(world.g).outputs["calibrate"]["text"][0]
    drafts = json.loads(file_of(comfy, "looked").read_text())["drafts"]
    # A consistency model's first step is its draft of one step.
    assert [draft["first_score"] for draft in drafts] == pytest.approx(scores(comfy, "one step"), rel=1e-4)
    assert scores(comfy, "looked") != pytest.approx(scores(comfy, "one step"), rel=1e-3)
    assert "A look after the first step: r = " in texts["looked"] and "first step" not in texts["one step"]
    world = World(LINES[:4], oracle="world")
    add_calibrate(world, "looked", text="red heart\npizza\ncrab\nrocket\nbomb")
    with pytest.raises(GraphError, match="another first step"):
        comfy.run(world.g)


def test_a_second_run_comes_from_the_cache_until_the_file_is_deleted(comfy: Comfy) -> None:
    world = World(["0.5 heart"])
    add_calibrate(world, "cached", text="\n".join(LINES[:4]))
    assert "calibrate" in comfy.run(world.g).executed
    assert "calibrate" in comfy.run(world.g).cached
    file_of(comfy, "cached").unlink()
    assert "calibrate" in comfy.run(world.g).executed
    assert len(scores(comfy, "cached")) == 4
    assert "calibrate" in comfy.run(world.g).cached


def test_it_draws_exactly_what_the_student_sampler_draws(comfy: Comfy) -> None:
    lines = ["glossy red heart on blue", "flat cat face on yellow", "noto pizza on pink"]
    world = World(lines, oracle="world")
    add_calibrate(world, "exact", text="\n".join(lines))
    add_judge(world, None, threshold="absolute", value=0.0)
    run = comfy.run(world.g)
    assert scores(comfy, "exact") == [float(j["score"]) for j in verdict(run)]


def test_prompts_come_from_a_csv_or_the_bundled_file_and_more_are_appended(comfy: Comfy) -> None:
    folder = comfy.base / "input"
    folder.mkdir(exist_ok=True)
    (folder / "captions.csv").write_text("id,caption\n1,0.2 heart\n2,0.3 heart\n3,0.4 heart\n")
    for limit in (2, 0):
        world = World(["0.5 heart"])
        add_calibrate(world, "csv", prompts="captions.csv", max_prompts=limit)
        comfy.run(world.g)
        assert len(scores(comfy, "csv")) == (limit or 3)
    assert scores(comfy, "csv") == pytest.approx([0.2, 0.3, 0.4])
    world = World(["0.5 heart"], oracle="world")
    add_calibrate(world, "bundled", max_prompts=3)
    comfy.run(world.g)
    assert len(scores(comfy, "bundled")) == 3


def test_an_interrupted_calibration_keeps_its_batches_and_goes_on_where_it_was(comfy: Comfy) -> None:
    def graph(name: str) -> Graph:
        world = World(["0.5 heart"], oracle="world")
        add_calibrate(world, name, max_prompts=24, batch_size=2)
        return world.g

    comfy.run_and_cancel(graph("stopped"), 650)
    held = scores(comfy, "stopped")
    assert 6 <= len(held) < 24 and len(held) % 2 == 0
    comfy.run(graph("stopped"))
    comfy.run(graph("whole"))
    assert scores(comfy, "stopped")[: len(held)] == held
    assert scores(comfy, "stopped") == scores(comfy, "whole")


def test_another_schedule_student_or_oracle_is_refused_by_name(comfy: Comfy) -> None:
    world = World(["0.5 heart"])
    add_calibrate(world, "strict", text="0.1 heart\n0.9 heart")
    comfy.run(world.g)
    other = World(["0.5 heart"])
    add_calibrate(other, "strict", text="0.1 heart\n0.8 heart", steps=1)
    with pytest.raises(GraphError, match=r"was made with another schedule .*choose another name, or delete"):
        comfy.run(other.g)
    other = World(["0.5 heart"])
    other.student = other.teacher
    add_calibrate(other, "strict", text="0.1 heart\n0.8 heart")
    with pytest.raises(GraphError, match="was made with another student"):
        comfy.run(other.g)
    for changes, message in (({"steps": 1}, "another schedule"), ({}, "made with oracle")):
        judged = World(["0.5 heart"], oracle="world" if not changes else "TestPromptOracle")
        loaded = judged.g.add("ApprenticeLoadCalibration", "load", name="strict")
        add_judge(judged, loaded[0], **changes)
        with pytest.raises(GraphError, match=message):
            comfy.run(judged.g)


def test_a_lora_and_its_strength_make_another_student_and_being_loaded_does_not(comfy: Comfy) -> None:
    from comfyui_apprentice.networks.tiny_unet import TinyUNet

    key, weight = next((k, v) for k, v in TinyUNet().state_dict().items() if k.endswith("weight") and v.ndim == 2)
    stem = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
    folder = comfy.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    rank = {"lora_up": torch.ones(weight.shape[0], 2), "lora_down": torch.ones(2, weight.shape[1])}
    save_file({f"{stem}.{k}.weight": v for k, v in rank.items()}, folder / "ones.safetensors")

    def graph(lines: int, strength: float) -> Graph:
        world = World(["0.5 heart"])
        if strength:
            world.student = world.g.add(
                "LoraLoaderModelOnly", "lora", model=world.student, lora_name="ones.safetensors", strength_model=strength
            )
        add_calibrate(world, "lora", text="\n".join(LINES[:lines]))
        return world.g

    comfy.run(graph(2, 0.5))
    requests.post(f"{comfy.url}/free", json={"unload_models": True, "free_memory": True}, timeout=ANSWER_SECONDS)
    comfy.run(graph(3, 0.5))
    for strength in (0.25, 0.0):
        with pytest.raises(GraphError, match="was made with another student"):
            comfy.run(graph(4, strength))
    comfy.run(graph(4, 0.5))
    assert len(scores(comfy, "lora")) == 4


def test_published_calibrations_load_and_hold_for_their_oracle_only(comfy: Comfy) -> None:
    world = World(["0.5 heart"])
    loaded = world.g.add("ApprenticeLoadCalibration", "load", name="lcm-sdxl-imagereward")
    world.g.add("TestSave", "save_report", name="published", text=loaded[1])
    assert "1.6417" in comfy.run(world.g).outputs["save_report"]["text"][0]
    add_judge(world, loaded[0])
    with pytest.raises(GraphError, match="holds for the oracle ImageReward, but the judge uses prompt oracle"):
        comfy.run(world.g)
    world.g.nodes["load"]["inputs"]["name"] = "nobody"
    with pytest.raises(GraphError, match="There is no calibration 'nobody'"):
        comfy.run(world.g)


def test_pairs_with_the_teacher_make_a_guarantee_and_a_whole_calibration_needs_no_teacher(comfy: Comfy) -> None:
    lines = [f"0.{i:02} heart" for i in range(1, 31)]
    settings = {"text": "\n".join(lines), "batch_size": 15, "teacher_steps": 2, "strategy": "regenerate"}
    world = World(["0.5 heart"])
    node = add_calibrate(world, "paired", teacher=world.teacher, **settings)
    add_judge(world, node[0], threshold="guaranteed", value=0.1)
    run = comfy.run(world.g)
    # The prompt's score is the same for both, so that no draft is worse: 30 of 30 pairs certify everything.
    assert verdict(run)[0]["accepted"] and "0 of the 30 that pass" in run.outputs["save_verdict"]["note"][0]
    assert "regenerate, 2 steps of dpmpp_2m karras" in json.loads(file_of(comfy, "paired").read_text())["teacher"]["settings"]
    again = World(["0.5 heart"])
    boom = again.g.add("TestBoomModel", "boom", why="the teacher was loaded")
    node = add_calibrate(again, "paired", teacher=boom, **{**settings, "batch_size": 5})
    add_judge(again, node[0], threshold="guaranteed", value=0.1)
    comfy.counts()
    assert verdict(comfy.run(again.g))[0]["accepted"] and "boom" not in comfy.counts()
    more = World(["0.5 heart"])
    add_calibrate(more, "paired", teacher=more.g.add("TestBoomModel", "boom", why="the teacher was loaded"),
                  **{**settings, "text": "0.99 heart"})  # fmt: skip
    with pytest.raises(GraphError, match="the teacher was loaded"):
        comfy.run(more.g)
    assert comfy.counts()["boom"] == 1


def test_expected_gain_takes_each_prompts_own_baseline(comfy: Comfy) -> None:
    world = World(["0.4 heart", "0.6 heart"])
    node = add_calibrate(world, "gain", text="0.4 heart\n0.6 heart", drafts_per_prompt=2)
    add_judge(world, node[0], threshold="expected gain", value=0.0)
    run = comfy.run(world.g)
    assert [float(j["threshold"]) for j in verdict(run)] == pytest.approx([0.4, 0.6])
    world.g.nodes["lines"]["inputs"]["text"] = "0.4 heart\n0.7 heart"
    with pytest.raises(GraphError, match=r"no baseline for the prompt '0\.7 heart'"):
        comfy.run(world.g)


def state(comfy: Comfy, name: str) -> dict[str, Any]:
    return json.loads((comfy.base / "output" / "apprentice" / "controllers" / f"{name}.json").read_text())


def test_running_counts_a_picture_once_and_starts_anew_when_its_file_is_deleted(comfy: Comfy) -> None:
    def graph(prompts: list[str], **changes: Any) -> Graph:
        world = World(prompts)
        add_judge(world, None, threshold="running", value=0.5, controller="once", **changes)
        return world.g

    first = comfy.run(graph(["0.4 heart", "0.6 heart", "0.5 heart"]))
    before = state(comfy, "once")
    assert before["pictures"] == 3 and before["target"] == 0.5
    assert "judge" in comfy.run(graph(["0.4 heart", "0.6 heart", "0.5 heart"])).cached
    # An input that matters to budget alone makes the judge run again on the same pictures.
    again = comfy.run(graph(["0.4 heart", "0.6 heart", "0.5 heart"], teacher_nfe=11.0))
    assert "judge" in again.executed and verdict(again) == verdict(first) and state(comfy, "once") == before
    comfy.run(graph(["0.3 heart"]))
    assert state(comfy, "once")["pictures"] == 4
    (comfy.base / "output" / "apprentice" / "controllers" / "once.json").unlink()
    assert "judge" in comfy.run(graph(["0.3 heart"])).executed
    assert state(comfy, "once")["pictures"] == 1
    assert "judge" in comfy.run(graph(["0.3 heart"])).cached


def test_the_all_in_one_node_passes_controller_and_confidence_on(comfy: Comfy) -> None:
    world = World(["0.4 heart", "0.6 heart"])
    world.sampler("ruled", threshold="running", value=0.5, controller="inner")
    comfy.run(world.g)
    assert state(comfy, "inner")["pictures"] == 2
    comfy.run(world.g)
    assert state(comfy, "inner")["pictures"] == 2
    (comfy.base / "output" / "apprentice" / "controllers" / "inner.json").unlink()
    comfy.run(world.g)
    assert state(comfy, "inner")["pictures"] == 2
    world = World(["0.4 heart"])
    world.sampler("sure", threshold="guaranteed", value=0.1, confidence=0.95)
    with pytest.raises(GraphError, match="needs a calibration with paired drafts"):
        comfy.run(world.g)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../escape"}, "can't be a file name"),
        ({"prompts": "missing.txt"}, "There is no prompt file 'missing.txt'"),
        ({"preset": "nothing"}, "preset is 'nothing'"),
    ],
)
def test_wrong_settings_are_refused_before_the_run(comfy: Comfy, changes: dict[str, Any], message: str) -> None:
    world = World(["0.5 heart"])
    add_calibrate(world, changes.get("name", "wrong"), **{k: v for k, v in changes.items() if k != "name"})
    with pytest.raises(GraphError, match=message):
        comfy.run(world.g)


def test_the_command_calibrates_over_http(comfy: Comfy, tmp_path: Path) -> None:
    from comfyui_apprentice.cli.calibrate import calibrate
    from typer import Typer
    from typer.testing import CliRunner

    app = Typer()
    app.command()(calibrate)
    prompts = tmp_path / "p.txt"
    prompts.write_text("glossy red heart on blue\nflat cat face on yellow\n")
    command = ["by hand", "--prompts", str(prompts), "--url", comfy.url]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "2 drafts of 2 prompts" in result.output, result.output
    first = scores(comfy, "by hand")
    assert len(first) == 2
    assert CliRunner().invoke(app, [*command, "--drafts-per-prompt", "2"]).exit_code == 0
    assert scores(comfy, "by hand")[:2] == first and len(scores(comfy, "by hand")) == 4
    world = World(["0.5 heart"])
    add_calibrate(world, "other")
    exported = tmp_path / "api.json"
    exported.write_text(json.dumps(world.g.nodes))
    prompts.write_text("0.3 heart\n")
    command = ["from workflow", "--workflow", str(exported), "--prompts", str(prompts), "--url", comfy.url]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and scores(comfy, "from workflow") == pytest.approx([0.3]), result.output
    missing = CliRunner().invoke(app, ["x", "--url", "http://127.0.0.1:9"])
    assert missing.exit_code == 1 and "No ComfyUI answers" in missing.output
