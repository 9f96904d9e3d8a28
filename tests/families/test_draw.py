"""``apprentice draw`` with ComfyUI's real nodes, in this process: the same pictures as the graph, and what stops it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.bridge.headless import Headless, Interrupted, NodeError, home
from comfyui_apprentice.bulk.folder import Folder
from comfyui_apprentice.bulk.items import Item
from comfyui_apprentice.bulk.job import Job, run
from comfyui_apprentice.bulk.manifest import Manifest
from comfyui_apprentice.bulk.workflow import Policy, Template
from comfyui_apprentice.charts.pictures import read_picture
from comfyui_apprentice.cli.calibrate import _calibrated_here
from comfyui_apprentice.cli.calibrate import tiny_world as measured_world
from comfyui_apprentice.cli.draw import _drawer, tiny_world
from families import executing

WORDS = ["glossy red heart on blue", "flat cat face on yellow", "pizza on white"]


@pytest.fixture(scope="module")
def engine() -> Headless:
    made = Headless(home(), packs=False)
    executing.register()
    return made


def test_drawn_are_the_pictures_of_the_graph_and_its_verdict(engine: Headless, tmp_path: Path) -> None:
    template = Template(tiny_world(), 3, Policy())
    manifest, job = Manifest(tmp_path / "job", {}), Job([Item(i, text) for i, text in enumerate(WORDS)], 3, 11)
    with manifest.held():
        assert run(job, _drawer(engine, template), manifest, lambda *_: None)
    graph = template.filled(WORDS, 11)
    for name, link in (("pictures", template.ends.pictures), ("verdict", template.ends.verdict)):
        graph[name] = {"class_type": "Keep", "inputs": {"name": name, "value": link}}
    executing.run(graph)
    pictures, verdict = executing.Keep.kept["pictures"][0], executing.Keep.kept["verdict"][0]
    assert sum(not j.accepted for j in verdict) == 1
    for number, judgement in enumerate(verdict):
        record = manifest.records[number]
        assert (record.score, record.decision, record.nfe) == (judgement.score, judgement.decision, judgement.nfe)
        assert (record.seed, record.place) == (11, number)
        saved = read_picture(manifest.folder / record.file)
        assert torch.equal((saved * 255).round(), (pictures[number] * 255).clamp(0, 255).to(torch.uint8).float())


def test_a_folder_of_workflows_is_drawn_as_they_stand_and_a_bad_one_is_marked(engine: Headless, tmp_path: Path) -> None:
    template = Template(tiny_world(), 2, Policy())
    refused = template.filled(["pizza"], 1)
    refused["world"]["inputs"]["student"] = "nobody"
    (tmp_path / "in").mkdir()
    for name, graph in {"a": template.filled(WORDS[:2], 5), "c": refused, "d": template.filled(WORDS[2:], 6)}.items():
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(graph))
    (tmp_path / "in" / "b.json").write_text("{")
    folder = Folder(tmp_path / "in", template)
    assert [item.workflow for item in folder.items] == ["a.json", "a.json", "b.json", "c.json", "d.json"]
    manifest = Manifest(tmp_path / "job", folder.facts)
    with manifest.held():
        assert run(Job(folder.items, 8, sheet=5), _drawer(engine, folder), manifest, lambda *_: None)
    found = manifest.records
    assert [found[i].prompt for i in range(5)] == [*WORDS[:2], "", "", WORDS[2]]
    assert [(found[i].seed, found[i].place) for i in (0, 1, 4)] == [(5, 0), (5, 1), (6, 0)]
    assert "no valid JSON" in found[2].error and "nobody" in found[3].error
    graph = template.filled(WORDS[:2], 5)
    pictures = engine.run(graph, {"pictures": template.ends.pictures})["pictures"][0]
    assert torch.equal((read_picture(manifest.folder / found[1].file) * 255).round(), (pictures[1] * 255).to(torch.uint8).float())
    assert (manifest.folder / "sheets/0000000.png").exists()


def test_models_are_loaded_once_and_the_teacher_only_when_it_is_needed(engine: Headless) -> None:
    template = Template(tiny_world(), 2, Policy("absolute", -1e6))
    wanted = {"verdict": template.ends.verdict}
    engine.run(template.filled(WORDS[:2], 1), wanted)
    assert not [name for name in engine.seen if "Teacher" in name]
    told: list[tuple[int, int]] = []
    engine.progress = lambda done, total: told.append((done, total))
    engine.run(template.filled(WORDS[1:], 2), wanted)
    assert "world" not in engine.seen and "sampler" in engine.seen  # the loader came from the cache
    assert (2, 2) in told  # the student's steps


def test_a_refused_workflow_and_a_failing_node_are_told_in_words(engine: Headless) -> None:
    graph = tiny_world()
    graph["world"]["inputs"]["student"] = "nobody"
    with pytest.raises(NodeError, match=r"ComfyUI refuses the workflow: .*nobody"):
        engine.run(graph, {"verdict": ["sampler", 2]})
    graph = tiny_world()
    graph["latent"]["inputs"]["batch_size"] = 3
    graph["positive"]["inputs"]["text"] = "a\nb"
    with pytest.raises(NodeError, match="Apprentice"):
        engine.run(graph, {"verdict": ["sampler", 2]})


def test_an_interrupt_ends_the_workflow_and_the_next_one_runs(engine: Headless) -> None:
    template = Template(tiny_world(), 1, Policy())
    engine._server.send_sync = lambda event, data, _client=None: engine.interrupt() if event == "executing" else None
    try:
        with pytest.raises(Interrupted):
            engine.run(template.filled(WORDS[:1], 77), {"verdict": template.ends.verdict})
    finally:
        engine._server.send_sync = engine._hear
    assert len(engine.run(template.filled(WORDS[:1], 77), {"verdict": template.ends.verdict})["verdict"][0]) == 1


def test_calibrating_here_is_the_node_s_calibration(engine: Headless, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "calibrations", ([str(tmp_path)], {".json"}))
    monkeypatch.setattr("comfyui_apprentice.bridge.headless.Headless", lambda _home: engine)
    report = _calibrated_here(measured_world({"name": "trial", "max_prompts": 0, "text": "\n".join(WORDS[:2])}, teacher=False))
    assert "2 drafts of 2 prompts" in report and (tmp_path / "trial.json").exists()
    broken = measured_world({"name": "trial", "max_prompts": 0, "text": "a", "preset": "nobody's"}, teacher=False)
    with pytest.raises(ValueError, match="preset"):
        _calibrated_here(broken)


def test_a_comfyui_that_is_not_there_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"There is no ComfyUI in {tmp_path}"):
        home(tmp_path)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(ValueError, match="set COMFYUI_PATH"):
        home()


def test_the_event_loop_of_the_process_is_left_usable(engine: Headless) -> None:
    assert asyncio.run(asyncio.sleep(0, "fine")) == "fine"
