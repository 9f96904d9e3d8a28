"""What ``apprentice bench`` says of black boxes: evaluations are counted as they are made, and clicks' LoRAs are measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_apprentice.benchmarks import control as bench
from comfyui_apprentice.benchmarks import taste_lora
from comfyui_apprentice.benchmarks.artists import tastes_of
from comfyui_apprentice.benchmarks.control_world import Measured, black_box_claims, evaluations
from comfyui_apprentice.benchmarks.taste_lora import ARTISTS, Lesson, clicks_on, gain_of, taste_of
from comfyui_apprentice.training.finetune import finetune
from comfyui_apprentice.training.finetune_task import Settings
from comfyui_apprentice.training.run_folder import RunFolder
from torch import Tensor
from toy_task import task


def counted(denoise: Any, count: Counter[str]) -> Any:
    """``denoise``, every row counted that goes through it, forward and backward."""

    def network(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        count["forward"] += len(x)
        out: Tensor = denoise(x, sigma, rows)
        if out.requires_grad:
            out.register_hook(lambda _gradient: count.update(backward=len(x)))
        return out

    return network


@pytest.mark.parametrize("algorithm", ["adjoint_matching", "path_kl", "weighted_regression", "diffusion_nft"])
def test_evaluations_are_those_that_a_run_makes(tmp_path: Path, algorithm: str) -> None:
    made, count = task(), Counter[str]()
    made = replace(made, base=counted(made.base, count), tuned=counted(made.tuned, count))
    settings = Settings(algorithm=algorithm, value=0.5, updates=2, batch=8, count=3, last=1, base_draws=8, pool=6, rounds=1)
    finetune(made, settings, RunFolder(tmp_path))
    found = count["forward"] + 2 * count["backward"]
    assert found == pytest.approx(evaluations(settings, 2, made.process.steps), rel=0.05)


def test_the_black_box_has_no_more_evaluations_than_path_kl() -> None:
    ways = bench.ways(bench.Plan.of(False))
    spent = {name: evaluations(ways[name], 256, 10) for name in (bench.PATH, bench.BLACK_BOX)}
    assert 0.97 * spent[bench.PATH] < spent[bench.BLACK_BOX] <= spent[bench.PATH]


def test_what_a_black_box_gains_is_told_beside_path_kl() -> None:
    features = np.tile(np.eye(4)[None, :2], (3, 1, 1))
    before, path, box = (Measured(np.full((3, 2), x), np.full((3, 2), x / 2), features, torch.zeros(0)) for x in (1.0, 3.0, 2.5))
    claims = black_box_claims(before, path, box)
    assert [claims[f"blackbox_{name}"].value for name in ("reward_gain", "unseen_gain", "diversity_ratio", "over_path_kl")] == (
        pytest.approx([1.5, 0.75, 1.0, 0.75])
    )


def test_an_artists_unit_is_that_of_the_pairs_it_is_taken_from() -> None:
    pictures, published = torch.rand(8, 4, 4, 3, generator=torch.Generator().manual_seed(0)), np.arange(8.0)
    firsts = np.arange(0, 4, 2)
    for artist, taste in tastes_of(pictures, published, (firsts, firsts + 1)).items():
        if artist != "right and plain":  # of two scaled tastes
            assert np.sqrt(np.mean((taste[firsts] - taste[firsts + 1]) ** 2)) == pytest.approx(1), artist
            assert taste[:4].mean() == pytest.approx(0, abs=1e-9)


def test_clicks_alone_teach_the_student_and_nothing_is_gained_without_learning(tmp_path: Path) -> None:
    lesson = Lesson.of("student", 8, 6)
    assert set(ARTISTS) == set(tastes_of(lesson.clicked.pictures, lesson.clicked.published))
    taste = taste_of(lesson.clicked, "warm")
    clicks = clicks_on(taste, 8, np.random.default_rng(0))
    assert len({a // 2 for a, _b in clicks}) == 8 and all(a // 2 == b // 2 and a != b for a, b in clicks)
    assert np.mean([taste[better] - taste[worse] for better, worse in clicks]) > 0
    assert gain_of(lesson.before, lesson.before, "warm") == pytest.approx(np.zeros(6), abs=1e-9)
    quick = replace(taste_lora.SETTINGS["student"], updates=6, batch=2, learning_rate=3e-3, beta=200.0, ema_half_life=0.0)
    after = lesson.taught("warm", 0, quick, tmp_path)
    row, gain = lesson.row({"warm": after}, "fresh")
    assert gain.value == pytest.approx(gain_of(lesson.before, after, "warm").mean()) and abs(gain.value) > 0.01
    assert row["clicks"] == 8 and row["model"] == "student"
