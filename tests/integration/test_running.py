"""Interrupting, progress and previews, over HTTP and websocket."""

from __future__ import annotations

import json
import time
import uuid

import pytest
import requests
import websocket
from harness import Comfy, GraphError
from worlds import World


def test_interrupt_in_the_teacher_stops_within_a_step_and_leaves_comfyui_usable(comfy: Comfy) -> None:
    world = World(["0.1 pizza", "0.9 heart"])
    world.modular("long", teacher_steps=1000, strategy="regenerate", sampler_name="euler", seed=31)
    stopped: dict[str, float] = {}
    client = uuid.uuid4().hex
    connection = websocket.create_connection(f"{comfy.url.replace('http', 'ws')}/ws?clientId={client}", timeout=120)
    prompt = comfy.queue(world.g, client)
    steps_after = 0
    while True:
        message = connection.recv()
        if isinstance(message, bytes):
            continue
        event = json.loads(message)
        if event["type"] == "progress" and event["data"]["max"] == 1000:
            if stopped:
                steps_after += 1
            elif event["data"]["value"] >= 3:
                requests.post(f"{comfy.url}/interrupt", json={"prompt_id": prompt}, timeout=30)
                stopped["at"] = time.monotonic()
        if event["type"] == "execution_interrupted":
            break
    connection.close()
    assert steps_after <= 2
    assert comfy.history(prompt)["status"]["status_str"] == "error"
    after = World(["0.1 pizza", "0.9 heart"])
    after.modular("after")
    assert comfy.run(after.g).status["status_str"] == "success"


def test_progress_and_previews_arrive_and_the_bar_runs_once_over_all_packs(comfy: Comfy) -> None:
    world = World(["0.1 pizza"] * 3)
    nodes = world.modular("bar", strategy="regenerate", teacher_steps=4, max_batch=1, seed=41)
    run = comfy.run(world.g)
    steps = [e["data"] for e in run.events if e["type"] == "progress" and e["data"]["node"] == nodes["teacher"].key]
    assert [s["value"] for s in steps] == sorted(s["value"] for s in steps)
    assert {s["max"] for s in steps} == {12} and steps[-1]["value"] == 12
    assert run.binaries >= 4


def test_an_unknown_student_is_refused_before_the_run(comfy: Comfy) -> None:
    world = World(["0.9 heart"])
    world.g.nodes["tiny"]["inputs"]["student"] = "nobody"
    world.sampler("refused")
    with pytest.raises(GraphError, match="has no student 'nobody'; choose one of: consistency"):
        comfy.run(world.g)
