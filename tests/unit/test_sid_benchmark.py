"""The measurements of SiD: claims of made-up pictures, intervals that cover, and a plain baseline that is the same step."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.benchmarks import sid, sid_speed
from comfyui_apprentice.benchmarks.figures import Figures, bootstrap
from comfyui_apprentice.benchmarks.sid import Pool
from comfyui_apprentice.benchmarks.sid_speed import PLAIN, Turn, Variant
from comfyui_apprentice.world.recipe.frechet import frechet

REAL = (np.zeros(3), np.eye(3))


def pool(name: str, steps: int, scale: float, quality: float = 0.0, guidance: float = 0.0, prompts: int = 80) -> Pool:
    """Gaussian features of spread ``scale``, the same draws for all: the distance to ``REAL`` is about 3 (scale - 1)^2."""
    rng = np.random.default_rng(0)
    scores, features = quality + rng.standard_normal((prompts, 2)), scale * rng.standard_normal((prompts, 2, 3))
    return Pool(name, steps, steps * (2 if guidance else 1), scores, features, guidance)


# ---------------------------------------------------------------------------------------------------- quality


def test_the_strictest_teacher_is_the_opponent_and_claims_are_about_the_one_step_student() -> None:
    pools = [
        pool("consistency", 1, 1.9), pool("sid", 1, 1.5, quality=3.0), pool("sid", 2, 1.0),
        pool("teacher", 4, 3.0, guidance=2.0), pool("teacher", 9, 2.0, guidance=2.0), pool("teacher", 9, 2.5, guidance=1.5),
    ]  # fmt: skip
    teacher = sid.best_teacher(pools, REAL)
    assert (teacher.steps, teacher.guidance) == (9, 2.0)
    found = sid.claims(pools[1], teacher, REAL, draws=200)
    expected = frechet(pools[1].features.reshape(-1, 3), *REAL) / frechet(teacher.features.reshape(-1, 3), *REAL)
    assert found["sid_frechet_ratio"].value == pytest.approx(expected) and expected == pytest.approx(0.25, abs=0.1)
    # The pictures are the same but for a constant, so no resample tells otherwise.
    assert [found["sid_judge_difference"].value, found["sid_judge_difference"].lo] == pytest.approx([3.0, 3.0])
    # 1 - cosine of unit features; here 1 - a . b, whose mean falls with the square of the spread.
    gaps = [1 - (f[:, 0] * f[:, 1]).sum(-1).mean() for f in (pools[1].features, teacher.features)]
    assert found["sid_diversity_ratio"].value == pytest.approx(gaps[0] / gaps[1])
    for claim in found.values():
        assert claim.lo <= claim.value <= claim.hi


def test_diversity_is_that_of_the_adaptive_benchmark() -> None:
    from types import SimpleNamespace

    from comfyui_apprentice.benchmarks.adaptive import diversity

    mine = pool("sid", 1, 1.0)
    theirs = diversity(SimpleNamespace(prompts=range(80), seeds=2), SimpleNamespace(features=mine.features.reshape(160, 3)))
    assert mine.spread() == pytest.approx(theirs)
    assert mine.first_seed().spread() == 0.0


def test_the_jackknife_covers_a_ratio_of_distances() -> None:
    real = (np.zeros(8), np.eye(8))
    rng, values, intervals = np.random.default_rng(2), [], []
    for _ in range(120):
        a, b = 1.3 * rng.standard_normal((40, 8)), rng.standard_normal((40, 8))
        ratio = lambda i, a=a, b=b: frechet(a[i], *real) / frechet(b[i], *real)  # noqa: E731
        values.append(ratio(np.arange(40)))
        intervals.append(sid.jackknife(ratio, 40))
    truth = float(np.mean(values))
    assert 0.85 < np.mean([c.lo <= truth <= c.hi for c in intervals]) < 1


def test_the_bootstrap_of_a_distance_misses_it_and_the_jackknife_does_not() -> None:
    x, real = np.random.default_rng(0).standard_normal((100, 8)), (np.zeros(8), np.eye(8))
    distance = lambda i: frechet(x[i], *real)  # noqa: E731
    wrong, right = bootstrap(distance, 100, draws=200), sid.jackknife(distance, 100)
    assert wrong.value == right.value and wrong.lo > wrong.value
    assert right.lo < right.value < right.hi < wrong.hi


def test_noise_is_a_prompt_s_own_and_the_first_seed_is_the_curve_s() -> None:
    few, many = sid.starting_noise(3, 2), sid.starting_noise(20, 2)
    assert torch.equal(few, many[:6])
    recipe = torch.randn(256, 32, 8, 8, generator=torch.Generator().manual_seed(5))  # world/recipe/sid.py, Measure
    assert torch.equal(many[::2], recipe[:20])
    assert not torch.equal(many[0], many[1])


def test_missing_weights_are_told_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sid.World, "draft", lambda *_, **__: pytest.fail("drew"))
    with pytest.raises(FileNotFoundError, match=r"student_nobody\.safetensors"):
        sid.run(quick=True, say=lambda _: None, student="nobody")


def test_labels_keep_apart_and_stay_near_their_lines() -> None:
    assert sid.apart([0.1, 0.5, 0.9], 0.05) == pytest.approx([0.1, 0.5, 0.9])
    found = sid.apart([0.1, 0.5, 0.51, 0.52, 0.53], 0.05)
    assert found[0] == 0.1 and np.diff(found).min() == pytest.approx(0.05) and np.mean(found[1:]) == pytest.approx(0.515)
    assert np.diff(sid.apart([0.3, 0.3, 0.36, 0.36], 0.05)).min() == pytest.approx(0.05)


def test_the_window_shows_the_curve_and_leaves_out_what_is_far_away() -> None:
    low, high = sid.window([3.0, 2.0, 1.0], [1.1, 1.2, 1.5, 90.0])
    assert low < 1.0 and 3.0 < high < 4.0
    assert sid.window([], [1.0, 2.0, 3.0, 90.0])[1] < 10


@pytest.mark.parametrize("prompts", [20, sid.CURVE_PROMPTS])
def test_the_plot_is_drawn_from_the_figures_with_and_without_a_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: int
) -> None:
    pools = [pool(name, steps, 1.5, 3.0, prompts=prompts) for name in ("consistency", "sid") for steps in (1, 2)]
    pools += [pool("teacher", steps, 2.0, guidance=g, prompts=prompts) for g in (2.0, 1.5) for steps in (4, 9)]
    curve = [{"pictures": n, "frechet": 1.0 / (n + 1), "judge": 20.0} for n in (0, 4000)]
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(curve))
    assert sid.read_curve(path) == curve and sid.read_curve(tmp_path / "none.json") == []
    monkeypatch.setattr(sid, "read", lambda name: ({}, {"images_seen": "44000"}))
    for points in (curve, []):
        monkeypatch.setattr(sid, "read_curve", lambda points=points: points)
        figures = sid.compare(pools, REAL, "sid")
        assert figures.settings["student_card"] == {"images_seen": "44000"} and len(figures.rows) == 8
        # The consistency student in one step, and the teacher at the guidance of samplers.
        assert len(figures.findings["beside the curve"]) == (3 if prompts == sid.CURVE_PROMPTS else 0)
        figures.save(tmp_path / "sid.json")
        again = Figures(**{k: v for k, v in json.loads((tmp_path / "sid.json").read_text()).items() if k != "machine"})
        sid.draw_plot(again, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 20_000


# ------------------------------------------------------------------------------------------------------ speed

SMALL = {**sid_speed.CONFIG, "img_resolution": 16, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
         "attn_resolutions": [8]}  # fmt: skip


def test_the_plain_baseline_takes_the_same_step() -> None:
    """Else its time would be that of something else."""
    found = []
    for variant in (PLAIN, Variant("in parts", part=2)):
        nets, step = sid_speed.stepper(variant, SMALL, batch=4)
        torch.manual_seed(3)
        for network in (nets.teacher, nets.fake, nets.generator):  # fresh networks draw nothing yet
            for p in network.parameters():
                torch.nn.init.normal_(p, std=0.1)
        found.append(gradients := [])
        for optimiser in (nets.fake_optimiser, nets.generator_optimiser):  # a step drops them when it is done
            optimiser.register_step_pre_hook(
                lambda o, *_, kept=gradients: kept.extend(p.grad for p in o.param_groups[0]["params"])
            )
        step()
    assert sum(g is not None for g in found[0]) > 150
    for plain, ours in zip(*found, strict=True):
        if plain is not None:
            assert torch.allclose(plain, ours, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


def test_the_step_moves_both_learners_and_never_the_teacher() -> None:
    nets, step = sid_speed.stepper(PLAIN, SMALL, batch=2)
    before = {name: p.clone() for name, p in nets.teacher.named_parameters()}
    step()
    for network, moves in ((nets.teacher, False), (nets.fake, True), (nets.generator, True)):
        assert any(not torch.equal(p, before[name]) for name, p in network.named_parameters()) is moves


def test_the_configuration_is_the_one_that_was_measured_officially() -> None:
    nets = sid_speed.Networks.make(sid_speed.CONFIG)
    assert sum(p.numel() for p in nets.teacher.parameters()) / 1e6 == pytest.approx(3.5, abs=0.05)
    adam = nets.generator_optimiser.param_groups[0]
    assert adam["betas"] == (0.0, 0.999) and adam["lr"] == 1e-5


def test_ratios_are_of_one_turn_and_claims_of_the_fastest_in_float32() -> None:
    whole, parts, narrow = Variant("whole"), Variant("parts", part=8), Variant("narrow", bfloat16=True)
    load = [1.0, 3.0, 2.0]  # other work, which slows a turn's steps alike

    def turns(seconds: float, peak: float) -> list[Turn]:
        return [Turn(seconds * by, 2 * seconds * by, peak * 2**30) for by in load]

    found = sid_speed.compare(
        {PLAIN: turns(8.0, 4.0), whole: turns(6.4, 2.0), parts: turns(6.0, 1.0), narrow: turns(3.0, 1.5)}, batch=32
    )
    assert found.settings["step"] == "parts"
    assert found.claims["sid_cpu_seconds_per_image"].value == pytest.approx(12.0 / 32)
    assert found.claims["sid_peak_gb"].value == 1.0
    ratio = found.claims["sid_speed_ratio_to_plain"]
    assert [ratio.value, ratio.lo, ratio.hi] == pytest.approx([8 / 6] * 3)
    assert found.claims["sid_memory_ratio_to_plain"].value == 0.25
    by_name = {r["step"]: r for r in found.rows}
    assert by_name["narrow"]["times as fast as plain"] == pytest.approx(8 / 3)
    assert by_name["whole"]["steps/s"] == pytest.approx(1 / 25.6)


def test_a_step_is_timed_and_a_process_tells_its_own_peak() -> None:
    turn = sid_speed.timed(lambda: sum(range(300_000)))
    assert 0 < turn.cpu < 5 and turn.wall > 0 and turn.peak > 1e8
    assert math.isfinite(turn.peak)
