"""What the Draft Board is given by a real ComfyUI, and what its choices do there."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import requests
from harness import Comfy, GraphError, Run
from PIL import Image
from worlds import World

GOOD, BAD = "0.9 red heart on blue", "0.1 pizza on green"
PROMPTS = [GOOD, BAD, "0.8 blue square", "0.2 crab"]


def boards(run: Run) -> list[dict[str, Any]]:
    """The boards among the results, the judge's first."""
    both = [output["apprentice_board"][0] for output in run.outputs.values() if "apprentice_board" in output]
    return sorted(both, key=lambda board: board["stage"] == "improved")


def by_hand(**words: str) -> str:
    return json.dumps({"v": 1, "by": words})


def live(run: Run) -> list[dict[str, Any]]:
    return [event["data"] for event in run.events if event["type"] == "apprentice.board"]


def test_pictures_and_scores_arrive_while_it_runs_on_the_node_that_the_artist_sees(comfy: Comfy) -> None:
    world = World(PROMPTS)
    world.sampler("live", seed=21)
    run = comfy.run(world.g)
    events = live(run)
    assert {event["node"] for event in events} == {"live"} and {event["total"] for event in events} == {4}
    judged = [event for event in events if event["stage"] == "judged"]
    assert [p["score"] for p in judged[0]["pictures"]] == [None] * 4, "first all pictures, waiting"
    assert [[p["score"] for p in event["pictures"]] for event in judged[1:]] == [[pytest.approx(s)] for s in (0.9, 0.1, 0.8, 0.2)]
    improved = [p for event in events if event["stage"] == "improved" for p in event["pictures"]]
    assert {p["index"] for p in improved if p.get("improved")} == {1, 3}
    place = [e["type"] for e in run.events].index
    assert place("apprentice.board") < len(run.events) - 1 - [e["type"] for e in run.events][::-1].index("executed")


def test_the_whole_board_is_the_nodes_result_and_its_pictures_are_served(comfy: Comfy) -> None:
    world = World(PROMPTS)
    world.sampler("whole", seed=11)
    judged, improved = boards(comfy.run(world.g))
    assert [p["decision"] for p in judged["pictures"]] == ["accepted", "rejected", "accepted", "rejected"]
    assert [p["passes"] for p in judged["pictures"]] == [True, False, True, False]
    assert judged["threshold"] == 0.5 and judged["costs"]["student"] == 2 and judged["mode"] == "absolute"
    assert improved["costs"]["teacher"] > 2
    assert improved["pictures"][1]["improved_key"] and not improved["pictures"][0]["improved"]
    assert [p["key"] for p in improved["pictures"]] == [p["key"] for p in judged["pictures"]]
    file = improved["pictures"][1]["improved"]
    answer = requests.get(f"{comfy.url}/view", {name: file[name] for name in ("filename", "subfolder", "type")}, timeout=60)
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)


def test_a_score_that_is_no_number_leaves_the_board_readable(comfy: Comfy) -> None:
    world = World(["nan heart", GOOD])
    world.sampler("nan")
    board = boards(comfy.run(world.g))[0]
    assert [p["score"] for p in board["pictures"]] == [None, pytest.approx(0.9)]
    json.dumps(board, allow_nan=False)


def test_names_are_the_same_however_the_graph_is_wired_and_others_with_another_seed(comfy: Comfy) -> None:
    world, other = World(PROMPTS), World(PROMPTS)
    world.sampler("first")
    world.modular("wired")
    other.sampler("first", seed=8)
    names = {tuple(p["key"] for p in board["pictures"]) for board in boards(comfy.run(world.g))}
    assert len(names) == 1 and len(set(*names)) == 4
    assert not set(*names) & {p["key"] for p in boards(comfy.run(other.g))[0]["pictures"]}


def test_only_the_teacher_runs_after_a_look_and_a_choice_by_hand(comfy: Comfy) -> None:
    """Stop after judging, accept a weak one, send a good one to the teacher, and queue again."""

    def graph(**changes: Any) -> World:
        world = World(PROMPTS)
        world.count()
        world.sampler("hand", **changes)
        return world

    comfy.counts()
    stopped = comfy.run(graph(stop_after_judging=True).g)
    assert "save_hand" not in stopped.outputs and "teacher" not in comfy.counts()
    board = boards(stopped)[0]
    assert board["stopped"] and board["costs"]["teacher"] > 2, "what the teacher would cost is said before it runs"
    keys = [p["key"] for p in board["pictures"]]
    words = by_hand(**{keys[1]: "accept", keys[0]: "teacher"})
    run = comfy.run(graph(overrides=words).g)
    counts = comfy.counts()
    assert counts["teacher"] and "student" not in counts and counts["oracle"] == 2, "the oracle looks at the new pictures alone"
    assert [p["override"] for p in boards(run)[1]["pictures"]] == ["teacher", "accept", "", ""]
    assert [j["accepted"] for j in run.outputs["save_hand"]["verdict"]] == [False, True, True, False]
    assert "(1 accepted and 1 sent to the teacher by hand)" in boards(run)[1]["summary"]


def test_single_nodes_stop_and_take_the_artists_word_too(comfy: Comfy) -> None:
    world = World(PROMPTS)
    nodes = world.modular("wired")
    world.g.nodes[nodes["judge"].key]["inputs"]["stop_after_judging"] = True
    run = comfy.run(world.g)
    assert "save_wired" not in run.outputs
    assert "2 of 4 would go to the teacher" in run.outputs["wired_teacher"]["apprentice_text"][0]


def test_nothing_loads_the_teacher_while_it_is_stopped(comfy: Comfy) -> None:
    world = World(PROMPTS)
    world.sampler("idle", teacher=world.g.add("TestBoomModel", why="boom"), stop_after_judging=True)
    comfy.run(world.g)
    world.g.nodes["idle"]["inputs"]["stop_after_judging"] = False
    with pytest.raises(GraphError, match="boom"):
        comfy.run(world.g)
    comfy.counts()


def test_saved_pictures_carry_the_artists_word(comfy: Comfy) -> None:
    world = World(PROMPTS[:2])
    node = world.sampler("png", seed=3)
    key = boards(comfy.run(world.g))[0]["pictures"][1]["key"]
    world.g.nodes["png"]["inputs"]["overrides"] = by_hand(**{key: "accept"})
    world.g.add("ApprenticeSaveImages", "save", images=node[1], verdict=node[2], filename_prefix="apprentice/hand")
    files = comfy.run(world.g).outputs["save"]["images"]
    stories = [json.loads(Image.open(comfy.base / "output" / f["subfolder"] / f["filename"]).text["apprentice"]) for f in files]
    assert [(s["override"], s["decision"]) for s in stories] == [("", "accepted"), ("accept", "accepted")]
    assert stories[1]["key"] == key


@pytest.mark.parametrize("node", ["ApprenticeSampler", "ApprenticeJudge"])
def test_damaged_overrides_are_refused_before_anything_is_drawn(comfy: Comfy, node: str) -> None:
    world = World(PROMPTS[:1])
    inputs = world.sampler("bad") if node == "ApprenticeSampler" else world.modular("bad")["judge"]
    world.g.nodes[inputs.key]["inputs"]["overrides"] = '{"v": 9}'
    with pytest.raises(GraphError, match="overrides is what the Draft Board writes"):
        comfy.run(world.g)
