"""What a run is said to take beforehand, and what "quick", "good" and "paper" set."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
import torch
from comfyui_apprentice.training import forecast
from comfyui_apprentice.training.finetune_options import FinetuneOptions
from comfyui_apprentice.training.finetune_task import ALGORITHMS
from comfyui_apprentice.training.forecast import STATE, Forecast, duration, held, learning, looking
from comfyui_apprentice.training.promptkd_options import CriticOptions, TeacherOptions
from comfyui_apprentice.training.qualities import AS_SET, GOOD, KEEP, PAPER, QUALITIES, QUICK, SID_QUALITIES, settings_of
from comfyui_apprentice.training.sid_options import FULL, LORA, SidOptions
from torch import nn

METHODS = [SidOptions, FinetuneOptions, TeacherOptions, CriticOptions]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "1 s"), (75, "75 s"), (600, "10 min"), (7300, "2 h"), (40 * 3600, "40 h"), (10 * 86400, "10 days")],
)
def test_times_are_in_the_unit_that_people_read(seconds: float, words: str) -> None:
    assert duration(seconds) == f"about {words}"


def test_a_forecast_is_one_line() -> None:
    assert str(Forecast(20_000, 7300, 3_210_000_000)) == "20,000 pictures, about 2 h, about 3.21 GB of memory"


def test_memory_counts_what_is_there_once_and_what_learning_adds() -> None:
    one, two = nn.Linear(100, 50, bias=False), nn.Linear(100, 50, bias=False)
    two.weight = one.weight
    assert held([one, two], []) == 100 * 50 * 4
    assert held([one], [one.weight]) == 100 * 50 * (4 + STATE)


def test_a_pass_counts_what_it_keeps_and_leaves_no_gradient() -> None:
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    x = torch.randn(8, 64)
    state = torch.random.get_rng_state()
    seconds, kept = learning(lambda x: network(x) + torch.rand(1), x)
    assert seconds > 0 and all(p.grad is None for p in network.parameters()) and not x.requires_grad
    assert torch.equal(state, torch.random.get_rng_state()), "the run would draw other noise"
    activations, weights = 8 * 256 * 4, 2 * 64 * 256 * 4
    assert activations <= kept <= weights + 4 * activations
    assert learning(network, torch.randn(64, 64))[1] - learning(network, x)[1] >= 7 * activations


def test_the_time_is_that_of_the_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, passes = [0.0], []
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: clock[0])

    def work() -> None:
        clock[0] += 10.0 if not passes else 3.0
        passes.append(1)

    assert looking(work) == 3.0 and len(passes) == 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_has_its_passes(algorithm: str) -> None:
    looks, learns = forecast.finetune_passes(algorithm, 20, 8)
    assert 0 < learns <= 28 and 0 < looks <= 28


def test_guidance_costs_sid_a_pass_each() -> None:
    assert forecast.sid_passes(1.0, 1.0, 1.0) == (1, 4) and forecast.sid_passes(1.5, 1.5, 1.5) == (1, 7)


# ------------------------------------------------------------------------------------------------------- qualities


@pytest.mark.parametrize("options", METHODS)
@pytest.mark.parametrize("quality", [QUICK, GOOD, PAPER])
def test_a_word_sets_only_what_the_method_has_and_makes_options_of_it(options: type, quality: str) -> None:
    found = settings_of(options, quality)
    assert found and set(found) <= {each.name for each in fields(options)}
    options(**found)


def work(options: type, quality: str) -> float:
    found: Any = options(**settings_of(options, quality))
    return {
        SidOptions: lambda: found.pictures, FinetuneOptions: lambda: found.updates * found.batch * found.steps,
        TeacherOptions: lambda: found.shots * found.epochs, CriticOptions: lambda: found.epochs * (1 + found.augment),
    }[options]()  # fmt: skip


@pytest.mark.parametrize("options", METHODS)
def test_quick_is_less_work_than_good_and_good_no_more_than_paper(options: type) -> None:
    assert work(options, QUICK) < work(options, GOOD) <= work(options, PAPER)


@pytest.mark.parametrize("options", METHODS)
def test_what_one_word_sets_another_sets_too(options: type) -> None:
    """So a run doesn't depend on what stood in a widget; but for what is the artist's own affair."""
    keys = {quality: set(settings_of(options, quality)) for quality in (QUICK, GOOD, PAPER)}
    assert keys[QUICK] == keys[GOOD] == keys[PAPER] - {"part", "method", "augment"}


@pytest.mark.parametrize("stray", [AS_SET, "Saved my student.safetensors after 20,000 images.", "", None, 7, ["quick"]])
def test_anything_else_leaves_the_widgets_alone(stray: Any) -> None:
    """An old file's text of progress lands in the newest widget."""
    assert all(settings_of(options, stray) == {} for options in METHODS)


def test_the_papers_numbers_are_the_published_ones() -> None:
    sid = SidOptions(**settings_of(SidOptions, PAPER))
    assert (sid.pictures, sid.batch, sid.method, sid.generator_rate, sid.kappa4) == (10_000_000, 512, FULL, 1e-6, 1.5)
    critic = CriticOptions(**settings_of(CriticOptions, PAPER))
    assert (critic.epochs, critic.batch, critic.learning_rate, critic.weight, critic.depth) == (20, 8, 0.005, 1000.0, 9)
    assert QUALITIES[0] == AS_SET and re.match("quick", QUALITIES[1])


def test_the_word_that_keeps_a_look_is_sid_s_alone_and_leaves_the_other_words_as_they_were() -> None:
    assert (*QUALITIES, KEEP) == SID_QUALITIES and settings_of(FinetuneOptions, KEEP) == {}
    kept = SidOptions(**settings_of(SidOptions, KEEP))
    assert (kept.method, kept.steps, kept.kappa4) == (LORA, 4, 1.5)
    assert kept.pictures // kept.batch == 750 and "steps" not in settings_of(SidOptions, QUICK)
