"""What a fraction of the noise means, for every kind of ``model_sampling`` that ComfyUI has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui_apprentice.samplers.edm import sid_levels
from comfyui_apprentice.samplers.schedules import PRESETS, preset_sigmas, rollback_sigma

FRACTIONS = [0.05, 0.25, 0.5, 0.75, 0.95]


def sampling(schedule: str, kind: str = "EPS", **settings: Any) -> Any:
    import comfy.model_sampling as core

    composed = type("ModelSampling", (getattr(core, schedule), getattr(core, kind)), {})
    return composed(SimpleNamespace(sampling_settings=settings))


@pytest.mark.parametrize(
    ("schedule", "kind", "settings"),
    [
        ("ModelSamplingDiscrete", "EPS", {}),
        ("ModelSamplingDiscrete", "V_PREDICTION", {"zsnr": True}),
        ("StableCascadeSampling", "EPS", {"shift": 2.0}),
        ("ModelSamplingContinuousEDM", "EDM", {"sigma_max": 80.0, "sigma_data": 0.5}),
        ("ModelSamplingContinuousV", "V_PREDICTION", {"sigma_max": 500.0, "sigma_min": 0.03}),
    ],
)
def test_rollback_is_the_fraction_that_core_itself_means(schedule: str, kind: str, settings: dict[str, Any]) -> None:
    model = sampling(schedule, kind, **settings)
    for fraction in FRACTIONS:
        assert rollback_sigma(fraction, model) == pytest.approx(float(model.percent_to_sigma(1 - fraction)), rel=1e-4)


def test_rollback_of_cascade_is_not_taken_for_a_timestep_of_a_thousand() -> None:
    assert rollback_sigma(0.5, sampling("StableCascadeSampling", shift=2.0)) == pytest.approx(2.03, abs=0.01)


@pytest.mark.parametrize("schedule", ["ModelSamplingDiscreteFlow", "ModelSamplingFlux"])
def test_rollback_of_flow_models_is_the_flow_time_whatever_the_shift(schedule: str) -> None:
    assert [rollback_sigma(f, sampling(schedule, "CONST", shift=3.0)) for f in FRACTIONS] == FRACTIONS


def test_rollback_of_a_discrete_edm_schedule_is_a_level_between_its_ends() -> None:
    model = sampling("ModelSamplingDiscreteEDM")
    levels = [rollback_sigma(f, model) for f in FRACTIONS]
    assert levels == sorted(levels) and float(model.sigma_min) < levels[0] and levels[-1] < float(model.sigma_max)


def test_presets_of_stable_diffusion_are_refused_by_cascade() -> None:
    with pytest.raises(ValueError, match="is for discrete models, but this is of kind cascade"):
        preset_sigmas("dmd2", None, sampling("StableCascadeSampling", shift=2.0))


def test_sid_refuses_cascade() -> None:
    with pytest.raises(ValueError, match="this is Stable Cascade"):
        sid_levels(sampling("StableCascadeSampling", shift=2.0))


def test_a_kind_that_cannot_be_told_is_refused() -> None:
    unknown = SimpleNamespace(sigma_min=torch.tensor(0.1), sigma_max=torch.tensor(9.0))
    with pytest.raises(ValueError, match="not known for SimpleNamespace"):
        rollback_sigma(0.5, unknown)


@pytest.mark.parametrize(
    ("preset", "sampler", "scheduler", "steps", "shift"),
    [
        ("z-image-turbo/res-multistep", "res_multistep", "simple", 9, 3.0),
        ("hidream-i1-fast/shift3", "lcm", "normal", 16, 3.0),
        ("hidream-i1-dev/shift6", "lcm", "normal", 28, 6.0),
    ],
)
def test_presets_are_the_templates_schedules(preset: str, sampler: str, scheduler: str, steps: int, shift: float) -> None:
    import comfy.samplers

    model = sampling("ModelSamplingDiscreteFlow", "CONST", shift=shift)
    wanted = comfy.samplers.calculate_sigmas(model, scheduler, steps)
    assert PRESETS[preset].sampler == sampler
    # "simple" rounds to one of 1000 levels
    torch.testing.assert_close(preset_sigmas(preset, None, model), wanted, rtol=0, atol=2e-3 if scheduler == "simple" else 1e-5)
