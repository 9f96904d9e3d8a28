"""What other packs' nodes give over their wires, in a real ComfyUI."""

from __future__ import annotations

import pytest
import torch
from harness import Comfy, GraphError
from worlds import World


def test_samplers_over_old_style_wires_draw_as_the_stock_ksampler_does(comfy: Comfy) -> None:
    world = World(["0.9 red heart on blue", "0.1 pizza on green"])
    old = world.g.add("TestOldChoice", sampler="euler", scheduler="simple")
    names = {"sampler_name": old[0], "scheduler": old[1]}
    world.stock("ksampler", world.student, steps=3, cfg=1.0, **names)
    world.sampler("all", value=-1.0, preset="custom", steps=3, sampler_name=old[2], scheduler=old[3])
    drafts = world.g.add(
        "ApprenticeStudentSampler", model=world.student, positive=world.positive, negative=world.negative,
        latent_image=world.latent, seed=7, preset="custom", steps=3, cfg=1.0, denoise=1.0, **names,
    )  # fmt: skip
    world.save("drafts", latent=drafts)
    world.modular("teacher", value=2.0, margin=-1.0, strategy="regenerate", **names)
    world.stock("taught", world.teacher, **names)
    comfy.run(world.g)
    for name, stock in (("all", "ksampler"), ("drafts", "ksampler"), ("teacher", "taught")):
        assert torch.equal(comfy.tensors(name)["latent"], comfy.tensors(stock)["latent"]), name


def test_what_comes_over_a_wire_is_checked_when_it_is_there(comfy: Comfy) -> None:
    wrong = [("mine", "simple", "sampler_name is 'mine', which is not one of: euler,"),
             ("euler", "no", "scheduler is 'no', which is not one of: simple,")]  # fmt: skip
    for sampler, scheduler, message in wrong:
        world = World(["0.9 red heart on blue"])
        old = world.g.add("TestOldChoice", sampler=sampler, scheduler=scheduler)
        world.sampler("wrong", preset="custom", steps=3, sampler_name=old[2], scheduler=old[3])
        with pytest.raises(GraphError, match=message):
            comfy.run(world.g)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda world, old: {"sampler_name": old[4]}, "sampler_name takes COMBO, and what is connected gives STRING"),
        (lambda world, old: {"student": world.clip}, "student takes MODEL, and what is connected gives CLIP"),
        (lambda world, old: {"preset": old[2]}, "preset takes COMBO, and what is connected gives a choice"),
    ],
)
def test_a_wire_of_another_kind_is_refused_before_anything_runs(comfy: Comfy, change, message: str) -> None:
    world = World(["0.9 red heart on blue"])
    old = world.g.add("TestOldChoice", sampler="euler", scheduler="simple")
    world.sampler("wrong", **change(world, old))
    with pytest.raises(GraphError, match=message):
        comfy.run(world.g)
