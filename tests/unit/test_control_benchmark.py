"""``apprentice bench control``: its parts on the tiny world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.benchmarks import control as bench
from comfyui_apprentice.benchmarks.control_world import TUNED, Tuned, by_teacher, measure
from comfyui_apprentice.benchmarks.world import World, unit_noise
from comfyui_apprentice.networks.tiny_unet import Denoiser
from comfyui_apprentice.world.recipe.concepts import training_prompts


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_a_merged_lora_is_the_network_with_it_on(world: World) -> None:
    tuned = Tuned(World(), 4, 0)
    with torch.no_grad():
        for up in tuned.lora.up:
            up.copy_(torch.randn(up.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    x, sigma, context = unit_noise(3, 0) * 5, torch.full((3,), 5.0), world.context(["panda", "pizza", "rose"])
    with torch.no_grad():
        apart = tuned.denoise(TUNED)(x, sigma, context)
        plain = tuned.denoise(None)(x, sigma, context)
        with torch.autocast("cpu", torch.bfloat16):
            whole = Denoiser(bench.merged(tuned))(x, sigma, context).float()
    assert (apart - plain).abs().max() > 0.1
    assert (apart - whole).abs().mean() < 0.1 * (apart - plain).abs().mean()


def test_without_a_lora_nothing_is_gained(world: World) -> None:
    tuned = Tuned(world, 4, 0)
    before, after = (measure(world, by_teacher(tuned, name), 3, 2) for name in (None, TUNED))
    claims = bench.against(before, after)
    assert claims["reward_gain"].value == pytest.approx(0, abs=1e-6)
    assert claims["diversity_ratio"].value == pytest.approx(1, abs=1e-6)
    assert before.diversity() > 0 and before.frechet() > 0


def test_an_unchanged_student_changes_nothing_in_the_loop(world: World) -> None:
    from comfyui_apprentice.world.weights import load_unet

    rows, claims = bench.loop(world, load_unet("student_consistency"), 8)
    assert [row["student"] for row in rows] == ["before", "after"]
    assert claims["loop_quality_gain"].value == 0 and claims["loop_reject_share_change"].value == 0


def test_the_toys_frontier_pays_reward_with_spread() -> None:
    lines = bench.toy_frontier()
    assert set(lines) == {"kl", "half_chi2", "forward_kl", "js2", "jeffreys"}
    for name, points in lines.items():
        rewards = [reward for reward, _spread in points]
        assert rewards == sorted(rewards) and len(points) > 5, name
    assert min(spread for _reward, spread in lines["kl"]) < 1.0


def test_tuning_is_measured_along_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "training_prompts", lambda _count, seed: training_prompts(3, seed))
    tuned = Tuned(World(), 4, 0)
    settings = replace(next(iter(bench.ways(bench.Plan.of(True)).values())), updates=2, batch=2)
    along = bench.tune(tuned, "a way", settings, tmp_path, lambda _text: None, 2)
    assert [entry["update"] for entry in along] == [1, 2]
    assert {"oracle", "judge", "diversity", "Frechet"} <= along[0].keys()
