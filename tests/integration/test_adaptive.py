"""The adaptive graph in a real ComfyUI: equal to stock where it must be, and nothing wasted or lost."""

from __future__ import annotations

import json

import pytest
import torch
from harness import Comfy, GraphError
from PIL import Image
from worlds import World

GOOD, BAD = "0.9 red heart on blue", "0.1 pizza on green"
MIXED = [GOOD, BAD, "0.8 blue square", "0.2 crab"]


def decisions(run, name: str) -> list[str]:
    """The decisions that a TestSave node reported."""
    return [j["decision"] for j in run.outputs[f"save_{name}"]["verdict"]]


def test_open_gate_gives_the_stock_samplers_drafts_bit_for_bit(comfy: Comfy) -> None:
    world = World(MIXED)
    world.sampler("open", value=-1.0)
    sigmas = world.g.add("TestManualSigmas", sigmas="80, 1.5491933384829668, 0")
    sampler = world.g.add("KSamplerSelect", sampler_name="lcm")
    stock = world.g.add(
        "SamplerCustom", model=world.student, add_noise=True, noise_seed=7, cfg=1.0, positive=world.positive,
        negative=world.negative, sampler=sampler, sigmas=sigmas, latent_image=world.latent,
    )  # fmt: skip
    world.save("stock", latent=stock)
    run = comfy.run(world.g)
    assert decisions(run, "open") == ["accepted"] * 4
    assert torch.equal(comfy.tensors("open")["latent"], comfy.tensors("stock")["latent"])


def test_custom_preset_is_the_stock_ksampler_bit_for_bit(comfy: Comfy) -> None:
    world = World(MIXED)
    world.sampler("custom", value=-1.0, preset="custom", steps=3, sampler_name="euler_ancestral", scheduler="simple")
    world.stock("ksampler", world.student, steps=3, cfg=1.0, sampler_name="euler_ancestral", scheduler="simple")
    comfy.run(world.g)
    assert torch.equal(comfy.tensors("custom")["latent"], comfy.tensors("ksampler")["latent"])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "dpmpp_sde", "heun"])
def test_shut_gate_with_regenerate_is_the_stock_ksampler_on_the_teacher_bit_for_bit(comfy: Comfy, sampler: str) -> None:
    world = World(MIXED)
    world.sampler("shut", value=2.0, strategy="regenerate", margin=-1.0, sampler_name=sampler)
    world.stock("teacher", world.teacher, sampler_name=sampler)
    run = comfy.run(world.g)
    assert decisions(run, "shut") == ["improved"] * 4
    assert torch.equal(comfy.tensors("shut")["latent"], comfy.tensors("teacher")["latent"])


def test_refine_is_the_stock_samplercustom_from_that_sigma_with_that_noise(comfy: Comfy) -> None:
    world = World(MIXED)
    nodes = world.modular("refined", value=2.0, margin=-1.0, rollback=0.6, scheduler="karras", teacher_steps=6)
    schedule = world.g.add("BasicScheduler", model=world.teacher, scheduler="karras", steps=6, denoise=1.0)
    world.g.add("TestTellSigmas", "levels", sigmas=schedule)
    levels = comfy.run(world.g).outputs["levels"]["sigmas"]
    start = 0.01**0.4 * 80**0.6
    chosen = [start, *(s for s in levels if s < start)]
    sigmas = world.g.add("TestManualSigmas", sigmas=", ".join(repr(s) for s in chosen))
    stock = world.g.add(
        "SamplerCustom", model=world.teacher, add_noise=True, noise_seed=8, cfg=2.0, positive=world.positive,
        negative=world.negative, sampler=world.g.add("KSamplerSelect", sampler_name="dpmpp_2m"), sigmas=sigmas,
        latent_image=nodes["drafts"],
    )  # fmt: skip
    world.save("custom", latent=stock)
    comfy.run(world.g)
    assert torch.equal(comfy.tensors("refined")["latent"], comfy.tensors("custom")["latent"])


def test_refine_at_rollback_one_is_the_stock_ksampler_over_the_draft(comfy: Comfy) -> None:
    world = World(MIXED)
    nodes = world.modular("full", value=2.0, margin=-1.0, rollback=1.0)
    world.stock("over", world.teacher, latent_image=nodes["drafts"], seed=8)
    comfy.run(world.g)
    assert torch.equal(comfy.tensors("full")["latent"], comfy.tensors("over")["latent"])


@pytest.mark.parametrize("strategy", ["refine", "regenerate"])
def test_all_in_one_node_equals_the_modular_graph_bit_for_bit(comfy: Comfy, strategy: str) -> None:
    world = World(MIXED, oracle="world")
    settings = {"threshold": "worst share", "value": 0.5, "strategy": strategy}
    world.sampler("one", **settings)
    world.modular("many", **settings)
    run = comfy.run(world.g)
    one, many = comfy.tensors("one"), comfy.tensors("many")
    assert torch.equal(one["latent"], many["latent"]) and torch.equal(one["image"], many["image"])
    assert run.outputs["save_one"]["verdict"] == run.outputs["save_many"]["verdict"]


@pytest.mark.parametrize("all_in_one", [True, False])
def test_without_rejects_the_teachers_loader_is_never_executed(comfy: Comfy, all_in_one: bool) -> None:
    world = World([GOOD, GOOD])
    world.teacher = world.g.add("TestBoomModel", "boom", why=f"the teacher was loaded {all_in_one}")[0]
    (world.sampler if all_in_one else world.modular)("calm")
    run = comfy.run(world.g)
    assert decisions(run, "calm") == ["accepted", "accepted"]
    assert "boom" not in run.executed and comfy.counts().get("boom", 0) == 0


@pytest.mark.parametrize("all_in_one", [True, False])
def test_with_a_reject_the_teachers_loader_is_executed(comfy: Comfy, all_in_one: bool) -> None:
    world = World([GOOD, BAD])
    world.teacher = world.g.add("TestBoomModel", "boom", why="the teacher was loaded")[0]
    (world.sampler if all_in_one else world.modular)("storm")
    with pytest.raises(GraphError, match="the teacher was loaded"):
        comfy.run(world.g)


@pytest.mark.parametrize(("sampler", "cfg"), [("dpmpp_2m", 2.0), ("heun", 2.0), ("euler", 1.0)])
@pytest.mark.parametrize("strategy", ["refine", "regenerate"])
def test_reported_nfe_is_what_went_through_the_networks(comfy: Comfy, sampler: str, cfg: float, strategy: str) -> None:
    world = World(MIXED)
    world.count()
    world.sampler("cost", sampler_name=sampler, teacher_cfg=cfg, strategy=strategy, teacher_steps=5)
    comfy.counts()
    run = comfy.run(world.g)
    found = comfy.counts()
    verdict = run.outputs["save_cost"]["verdict"]
    assert sum(j["nfe"] for j in verdict) == found["student"] + found["teacher"]
    assert [j["nfe"] for j in verdict if j["accepted"]] == [2, 2]
    assert found["student"] == 8 and found["teacher"] > 0


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "lcm", "ddim", "dpm_adaptive"])
def test_a_picture_is_the_same_whichever_others_were_rejected_and_however_packed(comfy: Comfy, sampler: str) -> None:
    results = {}
    ways = [("everyone", 2.0, 0), ("some", 0.5, 0), ("singly", 0.5, 1), ("threes", 2.0, 3)]
    for name, value, pack in ways[:2] if sampler == "dpm_adaptive" else ways:  # which takes ten times the evaluations
        world = World(MIXED)
        world.modular(
            name, value=value, margin=-1.0, sampler_name=sampler, strategy="regenerate", teacher_steps=3, max_batch=pack
        )
        comfy.run(world.g)
        results[name] = comfy.tensors(name)["latent"]
    for name in results:
        for i in (1, 3):
            torch.testing.assert_close(results[name][i], results["everyone"][i], rtol=1e-3, atol=2e-3)
    assert not torch.allclose(results["everyone"][1], results["everyone"][3], atol=0.1)
    assert not torch.allclose(results["some"][0], results["everyone"][0], atol=0.1), "the accepted stay drafts"


def test_order_of_the_batch_is_kept(comfy: Comfy) -> None:
    world = World(MIXED)
    world.modular("mixed", margin=-1.0)
    world.modular("drafts", value=-1.0)
    comfy.run(world.g)
    mixed, drafts = comfy.tensors("mixed"), comfy.tensors("drafts")
    same = [torch.equal(mixed["latent"][i], drafts["latent"][i]) for i in range(4)]
    assert same == [True, False, True, False]
    assert [torch.equal(mixed["image"][i], drafts["image"][i]) for i in range(4)] == same


def test_batch_of_one_and_empty_prompt(comfy: Comfy) -> None:
    world = World(["0.1"], oracle="world")
    world.positive = world.negative
    world.sampler("one", value=1000.0, prompt="")
    run = comfy.run(world.g)
    assert run.outputs["save_one"]["verdict"][0]["prompt"] == ""
    assert comfy.tensors("one")["image"].shape == (1, 64, 64, 3)


def test_batch_of_32_with_a_third_rejected(comfy: Comfy) -> None:
    prompts = [BAD if i % 3 == 0 else GOOD for i in range(32)]
    world = World(prompts)
    world.modular("many", margin=-1.0, steps=1, teacher_steps=2, max_batch=4)
    run = comfy.run(world.g)
    assert decisions(run, "many") == ["improved" if i % 3 == 0 else "accepted" for i in range(32)]
    assert comfy.tensors("many")["image"].shape == (32, 64, 64, 3)


def test_nan_scores_are_rejected_and_never_replace_a_draft(comfy: Comfy) -> None:
    world = World([GOOD, "nan pizza"])
    world.modular("nan", margin=-1.0)
    world.modular("draft", value=-1.0)
    world.sampler("shut", value=2.0)
    run = comfy.run(world.g)
    assert decisions(run, "nan") == ["accepted", "draft kept"]
    assert run.outputs["save_nan"]["verdict"][1]["score"] == "nan"
    assert torch.equal(comfy.tensors("nan")["latent"], comfy.tensors("draft")["latent"])


def test_a_teacher_that_is_not_better_does_not_replace_the_draft(comfy: Comfy) -> None:
    world = World(MIXED)
    world.sampler("margin", margin=0.0)  # this oracle gives draft and improvement the same score
    world.sampler("drafts", value=-1.0)
    run = comfy.run(world.g)
    assert decisions(run, "margin") == ["accepted", "draft kept", "accepted", "draft kept"]
    assert torch.equal(comfy.tensors("margin")["image"], comfy.tensors("drafts")["image"])


def test_number_of_prompts_must_fit_the_batch(comfy: Comfy) -> None:
    world = World(MIXED)
    world.latent = world.g.add("EmptyLatentImage", width=64, height=64, batch_size=3)[0]
    world.positive = world.negative
    world.sampler("misfit")
    with pytest.raises(GraphError, match="There are 4 prompts for 3 pictures; give one prompt for all"):
        comfy.run(world.g)


def test_budget_mode_says_which_share_it_sends_to_the_teacher(comfy: Comfy) -> None:
    world = World(MIXED)
    world.modular("budget", threshold="budget", value=6.0, teacher_nfe=8.0)
    run = comfy.run(world.g)
    assert "sends 50% of the drafts to the teacher: 2 of 4" in run.outputs["save_budget"]["text"][0]
    assert decisions(run, "budget") == ["accepted", "draft kept", "accepted", "draft kept"]


@pytest.mark.parametrize(("sampler", "cfg"), [("dpmpp_2m", 2.0), ("heun", 2.0), ("euler", 1.0), ("dpmpp_sde", 1.0)])
@pytest.mark.parametrize("strategy", ["refine", "regenerate"])
def test_the_teachers_cost_is_known_before_it_draws(comfy: Comfy, sampler: str, cfg: float, strategy: str) -> None:
    world = World(MIXED)
    settings = {"sampler_name": sampler, "strategy": strategy, "rollback": 0.6, "scheduler": "karras"}
    cost = world.g.add("ApprenticeTeacherCost", model=world.student, steps=5, cfg=cfg, **settings)
    world.g.add("PreviewAny", "cost", source=cost[0])
    world.sampler("priced", teacher_steps=5, teacher_cfg=cfg, **settings)
    run = comfy.run(world.g)
    spent = {j["nfe"] - 2 for j in run.outputs["save_priced"]["verdict"] if not j["accepted"]}
    assert spent == {float(run.outputs["cost"]["text"][0])}


@pytest.mark.parametrize("strategy", ["refine", "regenerate"])
def test_a_budget_is_spent_and_never_exceeded(comfy: Comfy, strategy: str) -> None:
    world = World([f"0.{i} crab" for i in range(1, 9)])
    world.sampler("spent", threshold="budget", value=9.0, strategy=strategy, teacher_steps=8)
    verdict = comfy.run(world.g).outputs["save_spent"]["verdict"]
    costs = [j["nfe"] for j in verdict]
    dearest = max(costs) - 2
    assert 9.0 - dearest / 8 < sum(costs) / 8 <= 9.0
    assert [j["accepted"] for j in verdict] == sorted(j["accepted"] for j in verdict), "the worst go first"


def test_same_workflow_twice_is_served_from_the_cache(comfy: Comfy) -> None:
    world = World(MIXED)
    world.sampler("cache", seed=1234)
    comfy.run(world.g)
    again = comfy.run(world.g)
    assert again.executed == [] and set(again.cached) >= {"cache", "tiny", "save_cache"}


@pytest.mark.parametrize("all_in_one", [True, False])
def test_another_threshold_runs_neither_the_student_nor_the_oracle(comfy: Comfy, all_in_one: bool) -> None:
    def graph(value: float):
        world = World(MIXED)
        world.count()
        (world.sampler if all_in_one else world.modular)("gate", seed=4321 + all_in_one, value=value)
        return world.g

    comfy.counts()
    comfy.run(graph(-1.0))
    first = comfy.counts()
    assert first["student"] == 8 and first["oracle"] == 4
    run = comfy.run(graph(0.05))
    assert comfy.counts() == {}
    assert decisions(run, "gate") == ["accepted"] * 4


def test_saved_png_holds_its_own_judgement_beside_the_workflow(comfy: Comfy) -> None:
    world = World(MIXED)
    node = world.sampler("saved", margin=-1.0, seed=99)
    world.g.add("ApprenticeSaveImages", "png", images=node[1], verdict=node[2], filename_prefix="apprentice/test")
    run = comfy.run(world.g)
    files = run.outputs["png"]["images"]
    assert len(files) == 4
    for i, entry in enumerate(files):
        with Image.open(comfy.base / "output" / entry["subfolder"] / entry["filename"]) as picture:
            story, prompt = json.loads(picture.info["apprentice"]), json.loads(picture.info["prompt"])
            assert picture.size == (64, 64)
        assert story["index"] == i and story["seed"] == 99 and story["prompt"] == MIXED[i]
        assert story["decision"] == ("accepted" if i % 2 == 0 else "improved")
        assert story["nfe"] == (2 if i % 2 == 0 else 2 + story["nfe"] - 2) and story["nfe"] >= 2
        assert story["score"] == pytest.approx(float(MIXED[i].split()[0])) and "tiny" in prompt
    assert not list((comfy.base / "output" / "apprentice").glob(".*part"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "nonsense"}, "preset is 'nonsense', which is not one of: tiny-world"),
        ({"preset": "lcm-lora-sd15-sdxl"}, "this is the tiny world's model: choose tiny-world"),
        ({"steps": 9}, "draws in 1 to 8 steps, not 9"),
        ({"threshold": "worst share", "value": 3.0}, "The worst share is a number from 0"),
    ],
)
def test_bad_settings_get_one_clear_sentence(comfy: Comfy, change: dict, message: str) -> None:
    world = World(MIXED)
    world.sampler("bad", **change)
    with pytest.raises(GraphError, match=message.replace("(", r"\(")):
        comfy.run(world.g)
