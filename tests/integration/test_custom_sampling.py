"""SIGMAS, SAMPLER, GUIDER and NOISE in a real ComfyUI: the nodes draw what SamplerCustomAdvanced draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import Comfy, GraphError
from test_adaptive import BAD, GOOD, MIXED, decisions
from worlds import World


def custom(world: World, model: Any, seed: int, sigmas: str, sampler: str, cfg: float) -> dict[str, Any]:
    """What SamplerCustomAdvanced is given."""
    g = world.g
    guider = g.add("CFGGuider", model=model, positive=world.positive, negative=world.negative, cfg=cfg)
    return {
        "sigmas": g.add("TestManualSigmas", sigmas=sigmas)[0], "sampler": g.add("KSamplerSelect", sampler_name=sampler)[0],
        "guider": guider[0], "noise": g.add("RandomNoise", noise_seed=seed)[0],
    }  # fmt: skip


def advanced(world: World, name: str, given: dict[str, Any]) -> None:
    world.save(name, latent=world.g.add("SamplerCustomAdvanced", latent_image=world.latent, **given))


def teachers(given: dict[str, Any]) -> dict[str, Any]:
    return {f"teacher_{name}": link for name, link in given.items()}


def test_all_in_one_draws_what_samplercustomadvanced_draws_for_student_and_teacher(comfy: Comfy) -> None:
    world = World(MIXED)
    world.count()
    student = custom(world, world.student, 21, "80, 3, 0", "lcm", 1.0)
    teacher = custom(world, world.teacher, 33, "80, 9, 2, 0.4, 0", "euler_ancestral", 3.0)
    advanced(world, "drafts", student)
    advanced(world, "regenerated", teacher)
    settings = {"margin": -1.0, "preset": "flux-schnell", "cfg": 4.0, **student, **teachers(teacher)}
    world.sampler("open", value=-1.0, **settings)
    world.sampler("shut", value=2.0, strategy="regenerate", **settings)
    world.sampler("some", strategy="regenerate", **settings)
    run = comfy.run(world.g)
    drawn = {name: comfy.tensors(name)["latent"] for name in ("drafts", "regenerated", "open", "shut", "some")}
    assert torch.equal(drawn["open"], drawn["drafts"]) and torch.equal(drawn["shut"], drawn["regenerated"])
    assert decisions(run, "some") == ["accepted", "improved", "accepted", "improved"]
    assert torch.equal(drawn["some"][[0, 2]], drawn["drafts"][[0, 2]])
    torch.testing.assert_close(drawn["some"][[1, 3]], drawn["regenerated"][[1, 3]], rtol=0, atol=1e-4)
    assert [j["nfe"] for j in run.outputs["save_some"]["verdict"]] == [2.0, 10.0, 2.0, 10.0]


def test_what_a_teachers_guider_needs_is_loaded_only_for_a_reject_and_budget_counts_it(comfy: Comfy) -> None:
    world = World([GOOD, GOOD])
    boom = world.g.add("TestBoomModel", "boom", why="the teacher was loaded")[0]
    given = custom(world, boom, 33, "80, 9, 2, 0.4, 0", "heun", 3.0)
    world.teacher = boom
    world.sampler("calm", **teachers(given))
    assert decisions(comfy.run(world.g), "calm") == ["accepted", "accepted"]
    world = World([GOOD, BAD, BAD, BAD])
    given = custom(world, world.teacher, 33, "80, 9, 2, 0.4, 0", "heun", 3.0)
    # heun at four levels with guidance: 14 evaluations, so that of 4 pictures 2 + 2 * 14 / 4 = 9 a picture pay for two
    world.sampler("paid", threshold="budget", value=9.0, strategy="regenerate", margin=-1.0, **teachers(given))
    run = comfy.run(world.g)
    assert decisions(run, "paid").count("improved") == 2
    assert sorted(j["nfe"] for j in run.outputs["save_paid"]["verdict"]) == [2.0, 2.0, 16.0, 16.0]


def test_a_guider_of_another_model_is_told_in_a_sentence(comfy: Comfy) -> None:
    world = World([GOOD, BAD])
    world.sampler("wrong", guider=custom(world, world.teacher, 1, "80, 0", "lcm", 1.0)["guider"])
    with pytest.raises(GraphError, match="The GUIDER draws with another model"):
        comfy.run(world.g)
