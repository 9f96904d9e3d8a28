"""Workflows saved by version 0.4.0, as the browser saved them and as API prompts: read the same, accepted, and drawn, for ever.

tests/data/workflows-0.4.0 is never written again: its files are what people have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests
from harness import ANSWER_SECONDS, ROOT, Comfy
from run_workflow import to_prompt

OLD = ROOT / "tests" / "data" / "workflows-0.4.0"
PROMPTS: dict[str, dict[str, Any]] = json.loads((OLD / "prompts.json").read_text())
WORKFLOWS = sorted(path for path in OLD.glob("*.json") if path.name != "prompts.json")
STRAY = "4 of 8 accepted\n**0.61** to 0.93, threshold 0.7"
"""A node's progress text, which front ends save behind its widgets."""


def refusal(comfy: Comfy, prompt: dict[str, Any]) -> Any:
    """What ComfyUI has against a prompt before anything runs; None where it takes it."""
    return requests.post(f"{comfy.url}/apprentice_test/validate", json=prompt, timeout=ANSWER_SECONDS).json()


def test_all_workflows_of_that_version_are_here() -> None:
    assert {path.stem for path in WORKFLOWS} == set(PROMPTS) and len(PROMPTS) == 12
    assert len({node["class_type"] for prompt in PROMPTS.values() for node in prompt.values()}) > 40


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_saved_value_falls_on_its_input_and_comfyui_takes_it(comfy: Comfy, path: Path) -> None:
    """With and without the text that a front end saved behind the widgets: what is new since has its default, or that text."""
    workflow, info = json.loads(path.read_text()), comfy.schemas
    strays = {node["widgets_values"][-1] for node in workflow["nodes"] if node.get("widgets_values")} | {STRAY}
    assert set(surplus(to_prompt(workflow, info), PROMPTS[path.stem])) <= strays  # some were saved after a run
    assert refusal(comfy, PROMPTS[path.stem]) is None
    saved_values = {node["id"]: node.get("widgets_values") or [] for node in workflow["nodes"]}
    for stray in (STRAY, ""):
        for node in workflow["nodes"]:
            if node["type"].startswith("Apprentice"):
                node["widgets_values"] = [*saved_values[node["id"]], stray]
        strayed = to_prompt(workflow, info)
        assert set(surplus(strayed, PROMPTS[path.stem])) <= strays | {stray}
        assert refusal(comfy, strayed) is None


@pytest.mark.parametrize("stray", [STRAY, "Saved my look.safetensors.", ""])
def test_a_text_behind_the_widgets_of_a_younger_version_is_no_choice_of_what_is_newer(comfy: Comfy, stray: str) -> None:
    """Where ``quality`` was the last widget it falls on the next one."""
    newer = {"ApprenticeSiDDistill": ("made_for", "variety", "optimiser"), "ApprenticeRewardFinetune": ("optimiser",)}
    for path in (ROOT / "example_workflows").glob("*.json"):
        workflow = json.loads(path.read_text())
        workflow["nodes"] = [{**node, "mode": 0} for node in workflow["nodes"]]
        for node in [node for node in workflow["nodes"] if node["type"] in newer]:
            prompt = to_prompt(workflow, comfy.get("/object_info"))
            inputs = prompt[str(node["id"])]["inputs"]
            for name in newer[node["type"]]:
                prompt[str(node["id"])]["inputs"] = {**inputs, name: stray}
                assert "not one of" not in str(refusal(comfy, prompt)), (path.stem, name)


def surplus(prompt: dict[str, Any], old: dict[str, Any]) -> list[Any]:
    """What a prompt gives to inputs that the old one doesn't have.

    Raises:
        AssertionError: Some value of the old one is missing, or elsewhere.
    """
    assert prompt.keys() == old.keys()
    extra = []
    for key, node in prompt.items():
        before, now = old[key]["inputs"], node["inputs"]
        assert {name: now[name] for name in before} == before
        extra += [value for name, value in now.items() if name not in before]
    return extra


@pytest.mark.parametrize(("name", "count"), [("adaptive", 9), ("adaptive-modular", 1)])  # pictures and contact sheets
def test_they_draw_what_they_did_stray_text_or_not(comfy: Comfy, name: str, count: int) -> None:
    prompt = json.loads(json.dumps(PROMPTS[name]))
    judges = [node for node in prompt.values() if node["class_type"] in ("ApprenticeJudge", "ApprenticeSampler")]
    for node in judges:
        node["inputs"]["overrides"] = STRAY
    pictures = [len(saved(comfy, graph)) for graph in (PROMPTS[name], prompt)]
    assert judges and pictures == [count, count]


def saved(comfy: Comfy, prompt: dict[str, Any]) -> list[dict[str, str]]:
    outputs = comfy.run(prompt).outputs
    nodes = [key for key, node in prompt.items() if node["class_type"] in ("ApprenticeSaveImages", "SaveImage")]
    return [image for key in nodes for image in outputs[key]["images"]]
