"""Promises to people who share workflows: inputs stay, every node is explained, every example runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests
from blueprints import taken_out
from examples.graph import Example
from harness import ANSWER_SECONDS, ROOT, Comfy
from make_examples import files, table
from make_locales import locale
from run_workflow import to_prompt

SNAPSHOT = ROOT / "tests" / "data" / "object_info.json"
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
TINY = [path for path in EXAMPLES if '"models"' not in path.read_text()]  # the others need files; see tests/families
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
NODE_IDS = [
    "ApprenticeTinyWorld", "ApprenticePrompts", "ApprenticeStudentSampler", "ApprenticeJudge", "ApprenticeTeacher",
    "ApprenticeKeepBetter", "ApprenticeSampler", "ApprenticeReport", "ApprenticeSaveImages",
    "ApprenticeCalibrate", "ApprenticeLoadCalibration", "ApprenticeLoadOracle", "ApprenticeScore", "ApprenticeBestOf",
    "ApprenticeCombineOracles", "ApprenticeOracleCompare", "ApprenticeFastDecode", "ApprenticeTeacherCost",
    "ApprenticeLoadStudent", "ApprenticeLoadEDM", "ApprenticeSiDSampler", "ApprenticeSiDDistill", "ApprenticePromptKDTeacher",
    "ApprenticePromptKDDistill", "ApprenticeLoadPromptKD", "ApprenticeClassify", "ApprenticeSort", "ApprenticePromptKDOracle",
    "ApprenticeDomainText", "ApprenticeRewardFinetune", "ApprenticeRewardCurve",
    "ApprenticeTiltedStart", "ApprenticeSplit", "ApprenticeMerge", "ApprenticeTaste", "ApprenticeLoadTaste",
    "ApprenticeTasteFinetune",
    "ApprenticeExplore", "ApprenticeSource", "ApprenticePictureSource",
    "ApprenticeCascadeOracle",
]  # fmt: skip


def ours(comfy: Comfy) -> dict[str, Any]:
    return {name: info for name, info in comfy.schemas.items() if name.startswith("Apprentice")}


def signature(info: dict[str, Any]) -> dict[str, Any]:
    """What a saved workflow depends on: names, order and types of inputs and outputs."""
    inputs = [
        [part, name, "COMBO" if isinstance(spec[0], list) else spec[0], "default" in (spec[1] if len(spec) > 1 else {})]
        for part in ("required", "optional")
        for name, spec in info["input"].get(part, {}).items()
    ]
    return {"inputs": inputs, "outputs": list(info["output"])}


def broken_promises(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What would break workflows saved with ``old``; new inputs may come last, optional or with a default."""
    found = []
    for name, before in old.items():
        if name not in new:
            found.append(f"node {name} is gone")
            continue
        after = new[name]
        for part in ("required", "optional"):
            was, now = ([i[1:3] for i in side["inputs"] if i[0] == part] for side in (before, after))
            if now[: len(was)] != was:
                found.append(f"{name}: {part} inputs were {was} and are {now}")
            for extra in [i for i in after["inputs"] if i[0] == part][len(was) :]:
                if part == "required" and not extra[3]:
                    found.append(f"{name}: new input {extra[1]} has no default")
        if after["outputs"][: len(before["outputs"])] != before["outputs"]:
            found.append(f"{name}: outputs were {before['outputs']} and are {after['outputs']}")
    return found


def test_inputs_and_outputs_keep_their_names_and_order(comfy: Comfy) -> None:
    now = {name: signature(info) for name, info in ours(comfy).items()}
    assert broken_promises(json.loads(SNAPSHOT.read_text()), now) == []
    assert sorted(now) == sorted(NODE_IDS)


def test_the_snapshot_notices_what_would_break_a_workflow() -> None:
    old = json.loads(SNAPSHOT.read_text())

    def changed(edit) -> list[str]:
        new = json.loads(SNAPSHOT.read_text())
        edit(new["ApprenticeJudge"]["inputs"], new)
        return broken_promises(old, new)

    assert changed(lambda inputs, new: None) == []
    assert changed(lambda inputs, new: inputs.append(["optional", "new", "INT", True])) == []
    assert changed(lambda inputs, new: inputs.pop(1))
    assert changed(lambda inputs, new: inputs[1].__setitem__(1, "renamed"))
    assert changed(lambda inputs, new: inputs.reverse())
    assert changed(lambda inputs, new: inputs.append(["required", "new", "IMAGE", False]))
    assert changed(lambda inputs, new: new.pop("ApprenticeReport"))


def test_combo_values_of_saved_workflows_stay(comfy: Comfy) -> None:
    spec = ours(comfy)["ApprenticeSampler"]["input"]["required"]
    options = {name: spec[name][1].get("options") or spec[name][0] for name in ("preset", "threshold", "strategy")}
    assert options["threshold"][:4] == ["absolute", "worst share", "percentile", "budget"]
    assert options["strategy"][:2] == ["refine", "regenerate"]
    assert {"tiny-world", "lcm-lora-sd15-sdxl", "sdxl-turbo/stability-first-n", "sid-lsg", "custom"} <= set(options["preset"])


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_every_node_has_tooltips_a_help_page_and_its_words(comfy: Comfy, node_id: str) -> None:
    info = ours(comfy)[node_id]
    for part in ("required", "optional"):
        for name, spec in info["input"].get(part, {}).items():
            assert spec[1].get("tooltip"), f"{node_id}.{name} has no tooltip"
    assert all(info["output_tooltips"]) and info["description"] and info["category"].startswith("Apprentice/")
    page = requests.get(f"{comfy.url}/extensions/apprentice/docs/{node_id}/en.md", timeout=ANSWER_SECONDS)
    assert page.ok and info["display_name"] in page.text
    for part in ("required", "optional"):
        for name in info["input"].get(part, {}):
            assert name in page.text, f"the help page of {node_id} doesn't mention {name}"
    assert f"| `{node_id}` |" in (ROOT / "docs" / "nodes.md").read_text(), "the list has a row for every node"
    in_examples = any(f'"{node_id}"' in path.read_text() for path in EXAMPLES)
    assert in_examples, f"{node_id} is in no example workflow"


def test_locale_says_what_the_schemas_say(comfy: Comfy) -> None:
    stored = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text())
    assert stored == locale(ours(comfy)), "run: python scripts/make_locales.py URL"
    served = comfy.get("/i18n")["en"]["nodeDefs"]
    assert served["ApprenticeJudge"]["display_name"] == "Judge"


def quickly(prompt: dict[str, Any], name: str) -> None:
    """Make training in an example a matter of seconds, under names of its own."""
    for node in prompt.values():
        if node["class_type"] == "ApprenticeSiDDistill":  # a few iterations instead of minutes of them
            assert node["inputs"]["pictures"] >= 1000
            node["inputs"] |= {"pictures": 4, "batch_size": 2, "name": f"from {name}"}
        if node["class_type"] == "ApprenticeRewardFinetune":
            assert node["inputs"]["updates"] >= 20
            few = {"updates": 1, "batch_size": 2, "base_draws": 8, "max_prompts": 1, "steps": 3, "regressed_steps": 1}
            node["inputs"] |= few | {"name": f"tuned for {name}"}
        if node["class_type"] == "ApprenticePromptKDDistill":
            assert node["inputs"]["epochs"] >= 10
            node["inputs"] |= {"epochs": 2, "batch_size": 64, "name": f"from {name}"}


def test_examples_and_blueprints_are_what_the_generator_writes(comfy: Comfy) -> None:
    for place, text in files(comfy.schemas).items():
        assert (ROOT / place).read_text(encoding="utf-8") == text, f"{place}: run scripts/make_examples.py"
    assert (ROOT / "docs" / "examples.md").read_text(encoding="utf-8") == table(), "run scripts/make_examples.py"


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda p: p.stem)
def test_every_blueprint_runs_on_the_tiny_world(comfy: Comfy, path: Path) -> None:
    g = Example("red heart on blue\npanda face on yellow\nburger on green")
    given = {
        "teacher": g.world[0], "student": g.world[1], "clip": g.world[2], "vae": g.world[3], "oracle": g.world[4],
        "positive": g.lines[0], "negative": g.negative[0], "prompt": g.lines[1], "latent_image": g.latent[0], "width": 64,
        "height": 64,
    }  # fmt: skip
    file = json.loads(path.read_text())
    (outer,), (inner,) = file["nodes"], file["definitions"]["subgraphs"]
    assert outer["type"] == inner["id"] and [s["name"] for s in outer["inputs"]] == [s["name"] for s in inner["inputs"]]
    prompt, outputs = taken_out(file, given, comfy.schemas)
    for node in prompt.values():
        if node["class_type"] == "ApprenticeCalibrate":
            node["inputs"] |= {"max_prompts": 2, "batch_size": 2}
        if "preset" in node["inputs"]:
            node["inputs"]["preset"] = "tiny-world"
    prompt |= g.nodes | {"shown": {"class_type": "PreviewImage", "inputs": {"images": outputs["IMAGE"]}}}
    assert comfy.run(prompt).outputs["shown"]["images"]


@pytest.mark.parametrize("path", TINY, ids=lambda p: p.stem)
def test_every_example_workflow_runs(comfy: Comfy, path: Path) -> None:
    prompt = to_prompt(json.loads(path.read_text()), comfy.schemas)
    quickly(prompt, path.stem)
    run = comfy.run(prompt)
    images = [image for output in run.outputs.values() for image in output.get("images", [])]
    assert images and run.status["status_str"] == "success"
    assert f"{path.stem}" in [name for pack in comfy.get("/workflow_templates").values() for name in pack]


def test_import_adds_little_to_start_up(comfy: Comfy) -> None:
    """A loose guard (the benchmark measures it): nothing heavy is imported with the pack."""
    import subprocess
    import sys

    code = (
        "import sys; import comfyui_apprentice.samplers.schedules, "
        "comfyui_apprentice.charts.contact_sheet, comfyui_apprentice.oracles.registry, comfyui_apprentice.weights.checkpoints, "
        "comfyui_apprentice.charts.comparison, comfyui_apprentice.oracles.ensemble, comfyui_apprentice.world.weights; "
        "print([m for m in ('diffusers', 'transformers', 'open_clip', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
