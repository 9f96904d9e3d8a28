"""``apprentice bench control``: its parts on the tiny world."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.benchmarks import control as bench
from comfyui_apprentice.benchmarks import control_memory
from comfyui_apprentice.benchmarks import control_tilted as tilted
from comfyui_apprentice.benchmarks import control_tilted_toy as tilted_toy
from comfyui_apprentice.benchmarks import control_toy as toy
from comfyui_apprentice.benchmarks.control_loop import loop
from comfyui_apprentice.benchmarks.control_start import start_laws
from comfyui_apprentice.benchmarks.control_world import (
    TUNED,
    Measured,
    Tuned,
    against,
    drawn_by,
    exact_laws,
    measure,
    weighed_diversity,
)
from comfyui_apprentice.networks.tiny_unet import Denoiser
from comfyui_apprentice.precision import autocast
from comfyui_apprentice.world.recipe.sampling import World, unit_noise
from comfyui_apprentice.world.weights import load_unet


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
        with autocast():
            whole = Denoiser(bench.merged(tuned))(x, sigma, context).float()
    assert (apart - plain).abs().max() > 0.1
    assert (apart - whole).abs().mean() < 0.1 * (apart - plain).abs().mean()


def test_without_a_lora_nothing_is_gained(world: World) -> None:
    tuned = Tuned(world, 4, 0)
    before, after = (measure(world, drawn_by(tuned, name), 3, 2) for name in (None, TUNED))
    claims = against(before, after)
    assert claims["reward_gain"].value == pytest.approx(0, abs=1e-6)
    assert claims["diversity_ratio"].value == pytest.approx(1, abs=1e-6)
    assert before.diversity() > 0 and before.frechet() > 0


def test_an_unchanged_student_changes_nothing_in_the_loop(world: World) -> None:
    from comfyui_apprentice.world.weights import load_unet

    rows, claims = loop(world, {"same": load_unet("student_consistency")}, 8)
    assert [row["student"] for row in rows] == ["before", "same"]
    assert claims["loop_quality_gain"].value == 0 and claims["loop_reject_share_change"].value == 0


def test_the_toys_frontier_pays_reward_with_spread() -> None:
    lines = bench.toy_frontier(5)
    assert set(lines) == {"kl", "half_chi2", "forward_kl", "js2", "jeffreys"}
    for name, points in lines.items():
        rewards = [reward for reward, _spread in points]
        assert rewards == sorted(rewards) and len(points) >= 3, name
    assert min(spread for _reward, spread in lines["kl"]) < 1.0


def test_a_students_one_step_is_its_draft(world: World) -> None:
    tuned, noise = Tuned(World(), 4, 0, student=True), unit_noise(2, 3)
    drawn = drawn_by(tuned, None)(["panda", "rose"], noise)
    assert torch.allclose(drawn, world.draft(["panda", "rose"], noise, 1).latents, atol=0.05)


def test_tuning_is_measured_along_its_way_and_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = replace(next(iter(bench.student_ways(bench.Plan.of(True)).values())), updates=2, batch=2)
    along = bench.tune(Tuned(World(), 4, 0, True), "a way", settings, tmp_path, lambda _text: None, 3, 2)
    assert [entry["update"] for entry in along] == [0, 1, 2]
    assert {"oracle", "judge", "diversity", "Frechet"} <= along[0].keys()
    said: list[str] = []
    assert bench.tune(Tuned(World(), 4, 0, True), "a way", settings, tmp_path, said.append, 3, 2) == along
    assert said == []
    with pytest.raises(ValueError, match="was begun with another updates"):
        bench.tune(Tuned(World(), 4, 0, True), "a way", replace(settings, updates=3), tmp_path, said.append, 3, 2)


def test_a_student_towards_the_tilted_teacher_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    plan, said, teacher = tilted.Plan(16, 3, 2, 2, 4), list[str](), load_unet("teacher")
    first = tilted.student(world, teacher, plan, "tilted", 0.5, tmp_path, lambda _text: None)
    again = tilted.student(world, teacher, plan, "tilted", 0.5, tmp_path, said.append)
    assert said == [] and all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), teacher.parameters(), strict=True))
    with pytest.raises(ValueError, match="another price"):
        tilted.student(world, teacher, plan, "tilted", 0.1, tmp_path, said.append)


def test_a_student_that_is_tuned_afterwards_begins_as_that_student(tmp_path: Path) -> None:
    plan, network = tilted.Plan(16, 3, 2, 2, 4), load_unet("student_sid")
    settings = replace(tilted.THEN_TUNED, learning_rate=1e-12)
    tuned = tilted.tuned(network, plan, tilted.THEN, settings, 16, tmp_path, lambda _text: None)
    for before, after in zip(network.parameters(), tuned.parameters(), strict=True):
        assert torch.allclose(before, after, atol=1e-6)


def test_the_claims_of_the_tilted_student_are_against_plain_sid_and_the_teacher() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((6, 3, 4))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    base = Measured(rng.standard_normal((6, 3)), rng.standard_normal((6, 3)), features, torch.zeros(0))
    better = replace(base, oracle=base.oracle + 2, judge=base.judge + 1)
    found = {tilted.PLAIN: base, tilted.TEACHER: replace(base, judge=base.judge + 3)}
    found |= {tilted.THEN: better, tilted.FIRST: replace(base, judge=base.judge + 5)}
    claims = tilted.claims_of({**found, tilted.name_of(tilted.PRICES[0]): better})
    expected = {
        "gain": 1, "gain_over_teacher": -2, "gain_over_distil_then_tune": 0, "gain_over_tune_then_distil": -4, "reward_gain": 2,
        "variety": 1,
    }  # fmt: skip
    assert {name: claim.value for name, claim in claims.items()} == pytest.approx(
        {f"tilted_student_{name}": value for name, value in expected.items()}, abs=1e-9
    )


def test_the_mixture_s_exact_fake_score_is_the_law_s_own() -> None:
    x, sigma = torch.linspace(-3, 3, 7)[:, None], torch.full((7, 1), 0.5)
    bank = toy.exact_quantiles(1e9, "kl", 20_000)[:, None].float()
    assert torch.allclose(tilted_toy.posterior_mean(bank)(x, sigma, None), toy.denoise(x, sigma[:, 0]), atol=0.02)


def test_the_mixture_s_generator_moves_towards_the_tilted_law() -> None:
    far = toy.wasserstein(2.5 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)), 0.5, "kl")
    near = toy.wasserstein(tilted_toy.solve(0.5, tilted_toy.OURS, updates=150, draws=20_000).samples, 0.5, "kl")
    assert near < 0.5 * far


def test_optimal_laws_of_two_kinds_of_pictures_are_those_on_paper() -> None:
    # A prompt has two kinds of pictures, as often, at a right angle, with rewards 0 and 1: q of the better is e / (e + e^0).
    half, eye = 32, np.eye(2)
    features = np.repeat(eye, half, 0)[None].repeat(3, 0)
    rewards = np.repeat([0.0, 1.0], half)[None].repeat(3, 0)
    base = Measured(rewards, 2 * rewards, features, torch.zeros(0))
    laws = exact_laws(base, (math.e / (1 + math.e) - 0.5, 0.6), ("kl", "half_chi2"))
    assert [len(lines) for lines in laws.values()] == [1, 1], "a gain of 0.6 is out of reach"
    law, q = laws["kl"][0], math.e / (1 + math.e)
    assert law["alpha"] == pytest.approx(1, abs=1e-4)
    assert law["oracle"] == pytest.approx(q, abs=1e-4) and law["judge"] == pytest.approx(2 * q, abs=1e-4)
    # Of two different pictures the kinds differ: 2 q (1 - q), over the chance that they are not one picture.
    assert law["diversity"] == pytest.approx(2 * q * (1 - q) / (1 - (q**2 + (1 - q) ** 2) / half), rel=1e-3)
    assert law["ess"] == pytest.approx(half / (q**2 + (1 - q) ** 2), rel=1e-3)


def test_equal_weights_are_the_plain_diversity(world: World) -> None:
    found = measure(world, drawn_by(Tuned(World(), 4, 0, True), None), 3, 4)
    assert weighed_diversity(found.features, np.full((3, 4), 0.25)) == pytest.approx(found.diversity())


def test_promising_noise_is_promising_for_the_teacher_too(world: World) -> None:
    rows, claims = start_laws(world, 12, 2, lambda _text: None, (0.3,))
    assert [row["law"] for row in rows] == ["any noise", "of 8, alpha 0.3"]
    assert claims["start_reward_gain"].value > 0.3 and claims["start_reward_gain"].lo > 0


def test_only_plain_backpropagation_grows_with_the_steps() -> None:
    figures = control_memory.run(True, lambda _text: None, (3, 6), batch=1)
    held = {row["algorithm"]: [row["3 steps, MiB"], row["6 steps, MiB"]] for row in figures.rows}
    assert held["plain backpropagation"][1] > 1.6 * held["plain backpropagation"][0]
    network, judge = figures.findings["parts"].values()
    for name, (few, many) in held.items():
        if name != "plain backpropagation":
            assert many < 1.02 * few, name
            assert few <= 1.05 * (network + judge if name == "preview" else max(network, judge)), name


def test_the_plots_are_drawn(tmp_path: Path) -> None:
    points = [{"update": n, "oracle": 20.0 + n, "judge": 19.0 + n, "diversity": 0.1 - n / 100, "Frechet": 0.2} for n in range(3)]
    law = {"alpha": 1.0, "oracle": 21.0, "judge": 20.0, "diversity": 0.09, "ess": 20.0}
    figures = bench.Figures("control", {}, findings={"along a": points, "along student, b": points})
    figures.findings["optimal"] = {"start": points[0], "laws": {"kl": [law]}}
    bench.draw(figures, tmp_path / "laws.png")
    bench.draw_along(figures, tmp_path / "along.png")
    for name in ("laws.png", "along.png"):
        assert (tmp_path / name).stat().st_size > 20_000
