"""Bypassed and muted nodes of ours: the rest of the workflow runs, or ComfyUI or we say in one sentence what is missing."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import requests
from comfyui_apprentice.world.domain import domain_names
from harness import ANSWER_SECONDS, Comfy
from icons import save_icons
from run_workflow import BYPASSED, MUTED, to_prompt
from test_contract import EXAMPLES, NODE_IDS, quickly

TRAINS = {"ApprenticeSiDDistill", "ApprenticeRewardFinetune", "ApprenticePromptKDDistill"}
# What bypasses these gets from before them what they give.
PASSED_BY = {
    "ApprenticeTeacher", "ApprenticeKeepBetter", "ApprenticeSaveImages", "ApprenticeScore", "ApprenticeBestOf",
    "ApprenticeCombineOracles", "ApprenticeOracleCompare", "ApprenticeTeacherCost", "ApprenticeSort", "ApprenticeDomainText",
}  # fmt: skip
SHOWING = {"SaveImage", "PreviewImage", "PreviewAny", "ApprenticeSaveImages"}
SAID_AT_ONCE = {"required_input_missing", "custom_validation_failed"}


def example(node_id: str) -> tuple[str, dict[str, Any]]:
    """The example with this node that costs least, needs no files of others, and shows something without the node too."""
    found = []
    for path in EXAMPLES:
        workflow = json.loads(path.read_text())
        kinds = [node["type"] for node in workflow["nodes"]]
        foreign = any(node["properties"].get("models") for node in workflow["nodes"])
        if node_id in kinds and not foreign and SHOWING.intersection(kinds) - {node_id}:
            found.append((sum(kind in TRAINS - {node_id} for kind in kinds), len(kinds), path.stem, workflow))
    return min(found, key=lambda one: one[:3])[2:]


def outcome(comfy: Comfy, prompt: dict[str, Any]) -> str:
    """Runs a prompt as far as it can be: what is refused, then what failed; "" if all ran.

    Raises:
        AssertionError: Something crashed instead.
    """
    body = {"prompt": prompt, "client_id": uuid.uuid4().hex}
    answer = requests.post(f"{comfy.url}/prompt", json=body, timeout=ANSWER_SECONDS).json()
    for node in answer["node_errors"].values():
        for error in node["errors"]:
            assert error["type"] in SAID_AT_ONCE, error
    if "prompt_id" not in answer:
        assert answer["error"]["type"] in ("prompt_outputs_failed_validation", "prompt_no_outputs"), answer
        return str(answer["node_errors"])
    for kind, data in comfy.history(answer["prompt_id"], 300)["status"]["messages"]:
        if kind == "execution_error":
            assert data["exception_type"] == "ValueError", data
            return str(data["exception_message"])
    return str(answer["node_errors"] or "")


@pytest.fixture(scope="module")
def few_icons(comfy: Comfy) -> dict[str, str]:
    """What a critic learns from in place of the built-in icons, of which there are thousands."""
    save_icons(comfy.base / "input" / "few icons")
    return {"pictures": "few icons", "classes": "\n".join(domain_names()[:6])}


@pytest.mark.parametrize("mode", [BYPASSED, MUTED], ids=["bypassed", "muted"])
@pytest.mark.parametrize("node_id", NODE_IDS)
def test_without_one_of_our_nodes_the_rest_runs_or_says_what_is_missing(
    comfy: Comfy, few_icons: dict[str, str], node_id: str, mode: int
) -> None:
    name, workflow = example(node_id)
    for node in workflow["nodes"]:
        node["mode"] = mode if node["type"] == node_id else 0
    prompt = to_prompt(workflow, comfy.schemas)
    assert node_id not in {node["class_type"] for node in prompt.values()}
    assert all(link[0] in prompt for node in prompt.values() for link in node["inputs"].values() if isinstance(link, list))
    quickly(prompt, f"{name} in part")
    for node in prompt.values():
        for steps in {"steps", "teacher_steps"} & node["inputs"].keys():
            node["inputs"][steps] = min(node["inputs"][steps], 4)
        if node["class_type"] == "ApprenticePromptKDDistill":
            node["inputs"] |= few_icons
        if node["class_type"] == "ApprenticeCalibrate":
            node["inputs"]["max_prompts"] = 6  # a cascade wants ten drafts
            node["inputs"]["name"] += f" without {node_id}" if node_id in PASSED_BY else " in part"  # else another oracle's
    said = outcome(comfy, prompt)
    assert not said if mode == BYPASSED and node_id in PASSED_BY else len(said) < 2000


def test_a_bypassed_teacher_costs_nothing_and_says_so(comfy: Comfy) -> None:
    _, workflow = example("ApprenticeTeacher")
    for node in workflow["nodes"]:
        node["mode"] = BYPASSED if node["type"] == "ApprenticeTeacher" else 0
    prompt = to_prompt(workflow, comfy.schemas)
    keep = next(key for key, node in prompt.items() if node["class_type"] == "ApprenticeKeepBetter")
    prompt["said"] = {"class_type": "TestSave", "inputs": {"name": "bypassed", "verdict": [keep, 2]}}
    said = comfy.run(prompt).outputs["said"]
    assert {one["decision"] for one in said["verdict"]} == {"accepted", "draft kept"}
    assert {one["nfe"] for one in said["verdict"]} == {2.0}
    assert "no teacher" in said["note"][0]
