"""Explore in a real ComfyUI: equal to stock where it must be, within its budget, nothing drawn twice, nothing lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from harness import Comfy, GraphError, Node
from worlds import World

PROMPTS = ["red heart on blue", "red heart on blue", "pizza on green", "crab"]


def source(world: World, **changes: Any) -> Node:
    settings = {"preset": "tiny-world", "steps": 1, "cfg": 1.0, "model": world.student}
    given = {"positive": world.positive, "negative": world.negative, **settings, **changes}
    return world.g.add("ApprenticeSource", **given)


def explore(world: World, name: str, **changes: Any) -> Node:
    given = {
        "oracle": world.oracle, "vae": world.vae, "prompt": world.list, "latent_image": world.latent, "seed": 7,
        "spend": "budget", "value": 4.0, "most": 32.0, "variety": 0.0, "denoise": 1.0,
    }  # fmt: skip
    node = world.g.add("ApprenticeExplore", name, **{**given, **changes})
    world.g.add("TestSave", f"save_{name}", name=name, latent=node[0], image=node[1], verdict=node[2])
    return node


def verdict(run: Any, name: str) -> list[dict[str, Any]]:
    return run.outputs[f"save_{name}"]["verdict"]


def test_with_a_budget_for_one_draft_it_is_the_student_sampler_bit_for_bit(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    explore(world, "one", source_1=source(world)[0], value=1.0)
    drafts = world.g.add(
        "ApprenticeStudentSampler", model=world.student, positive=world.positive, negative=world.negative, seed=7,
        latent_image=world.latent, preset="tiny-world", steps=1, cfg=1.0, denoise=1.0,
    )  # fmt: skip
    images = world.g.add("VAEDecode", samples=drafts, vae=world.vae)
    world.save("stock", latent=drafts, image=images)
    comfy.run(world.g)
    ours, stock = comfy.tensors("one"), comfy.tensors("stock")
    # Pictures of one prompt may have changed places: the better of the two comes to who wanted it first.
    assert torch.equal(ours["latent"][2:], stock["latent"][2:]) and torch.equal(ours["image"][2:], stock["image"][2:])
    assert {t.numpy().tobytes() for t in ours["latent"]} == {t.numpy().tobytes() for t in stock["latent"]}


def test_the_budget_holds_and_scores_rise_with_it_and_what_was_drawn_is_not_drawn_again(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    world.count()
    first = source(world)[0]
    explore(world, "less", source_1=first, value=3.0)
    run = comfy.run(world.g)
    less = verdict(run, "less")
    assert sum(j["nfe"] for j in less) == comfy.counts()["student"] == 12
    world.g.nodes.pop("less"), world.g.nodes.pop("save_less")
    explore(world, "more", source_1=first, value=8.0)
    run = comfy.run(world.g)
    more = verdict(run, "more")
    spent = sum(j["nfe"] for j in more)
    assert 12 < spent <= 32
    assert comfy.counts()["student"] == spent - 12  # what was drawn before isn't drawn again
    assert sum(float(j["score"]) for j in more) > sum(float(j["score"]) for j in less)


def test_every_draft_can_be_drawn_again_from_its_seed_and_place(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    explore(world, "seeds", source_1=source(world)[0], value=6.0)
    run = comfy.run(world.g)
    kept, row = comfy.tensors("seeds")["latent"], 2
    drafts = world.g.add(
        "ApprenticeStudentSampler", model=world.student, positive=world.positive, negative=world.negative,
        seed=verdict(run, "seeds")[row]["seed"], latent_image=world.latent, preset="tiny-world", steps=1, cfg=1.0, denoise=1.0,
    )  # fmt: skip
    world.save("again", latent=drafts)
    comfy.run(world.g)
    torch.testing.assert_close(comfy.tensors("again")["latent"][row], kept[row], atol=1e-5, rtol=1e-4)


def test_two_students_and_finished_pictures_compete_and_the_report_tells_the_order(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    other = world.g.add("ApprenticeTinyWorld", "second", student="sid")
    finished = world.g.add("EmptyImage", width=80, height=64, batch_size=8, color=255)
    node = explore(
        world, "several", source_1=source(world, name="consistency")[0], source_2=source(world, model=other[1], name="sid")[0],
        source_3=world.g.add("ApprenticePictureSource", images=finished, cost=0.0, name="blue")[0], value=6.0, variety=5.0,
    )  # fmt: skip
    world.g.add("PreviewAny", "report", source=node[3])
    run = comfy.run(world.g)
    report = run.outputs["report"]["text"][0]
    assert "consistency" in report and "sid" in report and "blue" in report and "Weitzman" in report
    assert comfy.tensors("several")["image"].shape == (4, 64, 64, 3)
    assert all(j["nfe"] <= 24 for j in verdict(run, "several"))


def test_the_teacher_is_loaded_only_where_it_is_worth_its_price_and_its_gain_is_learned(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    world.count()
    node = explore(world, "gate", source_1=source(world)[0], value=12.0, teacher_nfe=8.0, most=64.0)
    improved = world.g.add(
        "ApprenticeTeacher", "teacher", verdict=node[2], drafts=node[0], model=world.teacher, positive=world.positive,
        negative=world.negative, strategy="regenerate", rollback=0.6, steps=4, cfg=2.0, sampler_name="dpmpp_2m",
        scheduler="karras", seed=7,
    )  # fmt: skip
    better = world.g.add(
        "ApprenticeKeepBetter", "better", oracle=world.oracle, verdict=node[2], drafts=node[0], improved=improved[0],
        draft_images=node[1], improved_images=world.g.add("VAEDecode", samples=improved[0], vae=world.vae), margin=0.0,
    )  # fmt: skip
    world.g.add("TestSave", "save_better", name="better", latent=better[0], image=better[1], verdict=better[2])
    for seed in (7, 8, 9, 10, 11):
        world.g.nodes["gate"]["inputs"]["seed"] = seed
        run = comfy.run(world.g)
        before = verdict(run, "gate")
        assert sum(j["nfe"] for j in before) + 8 * sum(not j["accepted"] for j in before) <= 12 * 4
    note = run.outputs["gate"]["apprentice_text"][0]
    assert "The teacher is worth its 8 evaluations for" in note
    assert all(float(after["score"]) >= float(j["score"]) for after, j in zip(verdict(run, "better"), before, strict=True))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"value": 0.5}, "doesn't reach for one draft"),
        ({"spend": "price", "value": 0.0}, "A price of 0 makes every draft worth it"),
        ({"spend": "price", "value": 0.1, "most": 0.0}, "could be drawn forever"),
        ({"spend": "dice"}, "spend is 'dice'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_before_anything_is_drawn(comfy: Comfy, changes: dict[str, Any], sentence: str) -> None:
    world = World(PROMPTS, oracle="world")
    world.count()
    comfy.counts()  # of the tests before
    explore(world, "wrong", source_1=source(world)[0], **changes)
    with pytest.raises(GraphError, match=sentence):
        comfy.run(world.g)
    assert comfy.counts().get("student", 0) == 0


def test_the_all_in_one_node_explores_as_the_single_nodes_do(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    world.sampler("all", explore=6.0, variety=2.0, steps=1, teacher_steps=2)
    cost = world.g.add(
        "ApprenticeTeacherCost", model=world.student, strategy="refine", rollback=0.6, steps=2, cfg=2.0, sampler_name="dpmpp_2m",
        scheduler="karras",
    )  # fmt: skip
    node = explore(world, "parts", source_1=source(world)[0], value=6.0, variety=2.0, most=24.0, teacher_nfe=cost[0])
    run = comfy.run(world.g)
    scores, parts = ([float(j["score"]) for j in verdict(run, name)] for name in ("all", "parts"))
    assert all(a >= b for a, b in zip(scores, parts, strict=True))
    assert sum(j["nfe"] for j in verdict(run, "all")) <= 6 * 4
    kept = [j["index"] for j in verdict(run, "all") if j["decision"] != "improved"]
    assert kept and torch.equal(comfy.tensors("all")["latent"][kept], comfy.tensors("parts")["latent"][kept])
    assert node is not None


def test_a_word_on_the_board_sends_its_picture_to_the_teacher_and_no_draft_changes(comfy: Comfy) -> None:
    world = World(PROMPTS, oracle="world")
    world.count()
    world.sampler("word", explore=8.0, steps=1, teacher_steps=3)
    for seed in range(31, 35):  # a pair a run: after the fourth it is known what the teacher adds
        world.g.nodes["word"]["inputs"]["seed"] = seed
        first = comfy.run(world.g)
    before, _ = (next(b for n in first.outputs.values() for b in n.get("apprentice_board", []) if b["stage"] == s)
                 for s in ("judged", "improved"))  # fmt: skip
    place = next(p["index"] for p in before["pictures"] if p["decision"] == "accepted")
    comfy.counts()
    words = json.dumps({"v": 1, "by": {before["pictures"][place]["key"]: "teacher"}})
    world.g.nodes["word"]["inputs"]["overrides"] = words
    second = comfy.run(world.g)
    after = next(b for n in second.outputs.values() for b in n.get("apprentice_board", []) if b["stage"] == "judged")
    counts = comfy.counts()
    assert [p["key"] for p in after["pictures"]] == [p["key"] for p in before["pictures"]]
    assert after["pictures"][place]["decision"] == "rejected" and after["pictures"][place]["override"] == "teacher"
    assert counts.get("student", 0) == 0 and counts["teacher"] > 0
