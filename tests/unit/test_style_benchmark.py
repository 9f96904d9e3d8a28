"""The style benchmark's own arithmetic, and its students at a few pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.benchmarks import style, style_world
from comfyui_apprentice.benchmarks.figures import Figures
from comfyui_apprentice.benchmarks.style import Measured, Run, ratio
from comfyui_apprentice.benchmarks.style_plot import draw_plot
from comfyui_apprentice.benchmarks.style_score import Look, fisher
from comfyui_apprentice.training.lora import adaptable
from comfyui_apprentice.world.recipe.sampling import World
from comfyui_apprentice.world.weights import load_unet
from make_figures import STYLE_WORDS, style_figures

NOTHING = Measured(np.zeros((2, 1, 2)), np.zeros((2, 1)), torch.zeros(2, 64, 64, 3))


def test_fisher_s_direction_is_that_of_two_gaussians() -> None:
    """S^-1 (m1 - m0), with the covariance shrunk by a tenth: a noisy axis counts less than a quiet one."""
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 4.0])
    plain, styled = (rng.normal(size=(20_000, 2)) * spread + mean for mean in ([0, 0], [1, 4]))
    wanted = np.array([1 / (0.9 + 0.85), 4 / (0.9 * 16 + 0.85)])
    assert fisher(styled, plain) == pytest.approx(wanted / np.linalg.norm(wanted), abs=0.02)


def test_the_scale_runs_from_plain_to_slow_and_is_of_the_chosen_subjects() -> None:
    plain, slow = np.zeros((3, 2, 2)), np.ones((3, 2, 2)) * np.array([2.0, 5.0])
    slow[2] *= 10
    look = Look(np.array([1.0, 0.0]), plain, slow)
    assert look.kept(plain) == 0 and look.kept(slow) == 1
    half = np.concatenate([slow[:2] / 2, slow[2:]])
    assert look.kept(half, np.array([0, 1])) == pytest.approx(0.5) and look.kept(half) > 0.9
    more = np.concatenate([slow, slow], axis=1)
    assert look.kept(more) == 1 and look.told_apart() == pytest.approx((1 + 1 / 3) / 2)


def points(*kept: float, judge: float = 10.0) -> list[dict[str, float]]:
    return [{"pictures": 100.0 * i, "kept": value, "judge": judge} for i, value in enumerate(kept)]


def test_a_run_has_got_there_when_it_keeps_the_look_and_shows_what_was_asked_for() -> None:
    assert Run(points(0.5, 0.89, 0.9, 0.2), NOTHING).reached(10.4) == 200
    assert Run(points(0.5, 0.95, judge=9.0), NOTHING).reached(10.0) is None


def test_the_ratio_counts_a_cold_run_that_never_got_there_with_all_its_pictures() -> None:
    warm, cold = (
        [Run(points(0.5, 0.92), NOTHING)] * 2,
        [Run(points(0.1, 0.2, 0.3, 0.91), NOTHING), Run(points(*[0.1] * 6), NOTHING)],
    )
    found = ratio(warm, cold, 10.0)
    assert found.value == pytest.approx((1 / 3 + 1 / 5) / 2) and found.lo < found.value < found.hi
    assert ratio(cold[1:], cold[1:], 10.0).value == float("inf")


def test_subjects_that_teach_and_those_that_are_asked_for_are_apart_and_prompts_name_no_style() -> None:
    taught, asked = style_world.subjects(held_out=False), style_world.subjects(held_out=True)
    assert not set(taught) & set(asked) and len(taught) + len(asked) == len(style_world.CONCEPTS)
    prompts = style_world.prompts_of(asked, 2)
    assert len(set(prompts)) == 2 * len(asked) and not any(prompt.startswith(("noto ", "flat ", "glossy ")) for prompt in prompts)


def test_a_student_is_distilled_from_the_published_one_on_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    world, styled = World(), load_unet("teacher")
    shown: list[tuple[int, torch.Tensor]] = []

    def look(network: torch.nn.Module, pictures: int) -> None:
        shown.append((pictures, network.conv_out.weight.clone()))

    def made(folder: str, *pictures: int) -> torch.nn.Module:
        for count in pictures:
            way = style_world.Way("consistency", count)
            network = style_world.distil_styled(world, styled, way, tmp_path / folder, look, 1, lambda _text: None)
        return network

    style_world.STUDENT_BATCH, before = 2, style_world.STUDENT_BATCH
    try:
        whole, parts = made("whole", 4), made("parts", 2, 4)
    finally:
        style_world.STUDENT_BATCH = before
    assert [pictures for pictures, _ in shown] == [0, 2, 4, 0, 2, 4]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    change, student = style_world.change_of("consistency"), adaptable(load_unet("student_consistency"))
    first = shown[0][1] - styled.conv_out.weight
    assert float((first - change("conv_out")).norm()) < 0.7 * float(change("conv_out").norm())  # at rank 64
    assert torch.equal(styled.conv_out.weight + change("conv_out"), student["conv_out"].weight)


def test_the_plot_shows_curves_and_pictures(tmp_path: Path) -> None:
    figures = Figures("style", {"kept": 0.9, "tolerance": 0.5})
    figures.findings = {"slow judge": 10.0, "warm": [points(0.5, 0.95)], "cold": [points(0.1, 0.2)]}
    drawn = torch.rand(24, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    draw_plot(figures, {"slow": drawn, "fast": drawn}, tmp_path / "style.png")
    assert (tmp_path / "style.png").stat().st_size > 20_000


def test_the_scale_is_drawn_once_and_reads_0_and_1_at_its_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "SLOW_STEPS", 2)
    monkeypatch.setattr(style, "subjects", lambda held_out: [1, 5, 9] if held_out else [0, 2, 3, 4])
    icons = torch.randint(256, (10, 8, 64, 64, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plan, styled = style.Plan(32, 32, 32, 1, 1, 1, 3), load_unet("student_sid")
    scale = style.Scale(World(), icons, styled, plan, tmp_path)
    assert [scale.look.kept(end.features) for end in (scale.plain, scale.styled)] == pytest.approx([0, 1])
    measured = scale.student(load_unet("student_consistency"))
    assert measured.features.shape == (3, 1, 64) and style.together([measured, measured]).scores.shape == (3, 2)
    monkeypatch.setattr(style.Scale, "slow", None)  # what is kept isn't drawn again
    assert np.array_equal(style.Scale(World(), icons, styled, plan, tmp_path).look.direction, scale.look.direction)


def test_a_figure_that_is_no_number_is_null_in_the_json(tmp_path: Path) -> None:
    """As of a warm run that never comes to the look; NaN and Infinity are no JSON."""
    short = [Run([{"pictures": 9, "kept": 0.1, "judge": 0.0}], NOTHING)]
    never = ratio(short, short, 0.0)
    Figures("style", {}, claims={"warm_start_ratio": never}).save(tmp_path / "style.json")
    found = json.loads((tmp_path / "style.json").read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    claim = found["claims"]["warm_start_ratio"]
    assert claim == {"value": None, "lo": None, "hi": None}
    told = style_figures({"rows": [{"way": "cold"}], "claims": dict.fromkeys(STYLE_WORDS, claim)})
    assert "| not reached | one seed |" in told
