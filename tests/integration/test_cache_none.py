"""A ComfyUI that remembers nothing draws nothing twice; the other cache modes are in tests/families/test_cache_modes.py."""

from __future__ import annotations

import pytest
from harness import comfyui
from worlds import World


def test_with_cache_none_the_cost_told_is_the_cost(tmp_path_factory: pytest.TempPathFactory) -> None:
    with comfyui(tmp_path_factory.mktemp("comfyui_none"), "--cache-none") as comfy:
        for seed, wire in enumerate((World.sampler, World.modular)):
            world = World(["0.9 red heart on blue", "0.1 pizza on green"])
            world.count()
            wire(world, "cost", seed=seed)
            run = comfy.run(world.g)
            found = comfy.counts()
            assert sum(j["nfe"] for j in run.outputs["save_cost"]["verdict"]) == found["student"] + found["teacher"]
            assert found["student"] == 4 and found["oracle"] == 3
