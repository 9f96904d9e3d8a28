"""``apprentice draw --comfyui`` on running ComfyUIs, of which one is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from comfyui_apprentice.bulk.folder import Folder
from comfyui_apprentice.bulk.items import Item
from comfyui_apprentice.bulk.job import Job, PictureError, run
from comfyui_apprentice.bulk.manifest import Manifest, Record
from comfyui_apprentice.bulk.workflow import Policy, Template
from comfyui_apprentice.charts.pictures import read_picture
from comfyui_apprentice.cli.draw import tiny_world
from comfyui_apprentice.fleet.comfyui_workers import ComfyUILine
from costs import SERVERS
from harness import PROMPT_SECONDS, Comfy, comfyui

WORDS = ["glossy red heart on blue", "flat cat face on yellow", "pizza on white", "green leaf on black"]


def drawn(line: ComfyUILine, folder: Path) -> dict[int, Record]:
    manifest = Manifest(folder, {})
    with manifest.held():
        items = [Item(number, WORDS[number % len(WORDS)]) for number in range(12)]
        assert run(Job(items, 2, 11), line.draw, manifest, lambda *_: None, at_once=line.at_once)
    return dict(manifest.records)


def kill_at_work(server: Comfy, process: int) -> None:
    """Once it has a batch in work."""
    deadline = time.monotonic() + PROMPT_SECONDS
    while not server.get("/queue")["queue_running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)


def test_two_comfyuis_over_one_folder_draw_what_one_draws_though_one_is_killed(comfy: Comfy, tmp_path: Path) -> None:
    template = Template(tiny_world(), 2, Policy())
    expected = drawn(ComfyUILine([comfy.url], template), tmp_path / "one")
    before = set(SERVERS)
    with comfyui(comfy.base, log=comfy.base / "doomed.log") as doomed:
        (process,) = SERVERS - before
        line = ComfyUILine([comfy.url, doomed.url], template)
        killer = threading.Thread(target=kill_at_work, args=(doomed, process))
        killer.start()
        found = drawn(line, tmp_path / "two")
        killer.join()
    assert line._pool.replaced == 1
    assert found == expected and len(found) == 12
    for record in found.values():
        pictures: list[Any] = [read_picture(tmp_path / name / record.file) for name in ("one", "two")]
        assert pictures[0].equal(pictures[1])


def test_a_folder_of_workflows_is_drawn_and_a_refused_one_is_marked(comfy: Comfy, tmp_path: Path) -> None:
    template = Template(tiny_world(), 2, Policy())
    good, bad = template.filled(WORDS[:2], 11), template.filled(WORDS[:1], 11)
    bad["world"]["inputs"]["student"] = "nobody"
    (tmp_path / "in").mkdir()
    for name, graph in {"a": bad, "b": good}.items():
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(graph))
    folder = Folder(tmp_path / "in", template)
    manifest = Manifest(tmp_path / "job", folder.facts)
    with manifest.held():
        assert run(Job(folder.items, 8), ComfyUILine([comfy.url], folder).draw, manifest, lambda *_: None)
    found = manifest.records
    assert "nobody" in found[0].error and [found[i].prompt for i in (1, 2)] == WORDS[:2] and found[2].seed == 11


def test_a_workflow_that_comfyui_refuses_is_told_in_a_sentence(comfy: Comfy) -> None:
    graph = tiny_world()
    graph["world"]["inputs"]["student"] = "nobody"
    with pytest.raises(PictureError, match=r"ComfyUI refused: .*has no student 'nobody'"):
        ComfyUILine([comfy.url], Template(graph, 1, Policy())).draw([Item(0, "pizza")], 1)
    with pytest.raises(ValueError, match=r"None of these answers as a ComfyUI: http://127\.0\.0\.1:9"):
        ComfyUILine(["http://127.0.0.1:9"], Template(graph, 1, Policy()))
