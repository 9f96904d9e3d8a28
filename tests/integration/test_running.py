"""Interrupting, progress and previews, over HTTP and websocket."""

from __future__ import annotations

import pytest
from harness import Comfy, GraphError
from worlds import World


def test_interrupt_in_the_teacher_stops_within_a_step_and_leaves_comfyui_usable(comfy: Comfy) -> None:
    world = World(["0.1 pizza", "0.9 heart"])
    world.modular("long", teacher_steps=1000, strategy="regenerate", sampler_name="euler", seed=31)
    events = comfy.run_and_cancel(world.g, 3, layers=5)
    bars = [e["data"] for e in events if e["type"] == "progress" and e["data"]["max"] == 1000]
    assert bars[-1]["value"] == 3, "it stopped in the fourth step"
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
