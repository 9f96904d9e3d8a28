"""What a fraction of the way means, asked of every kind of sampling that ComfyUI has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.samplers.presets import PRESETS, preset_sigmas
from comfyui_apprentice.samplers.schedules import rollback_sigma, sampling_kind

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)


def sampling(kind: str, prediction: str = "EPS") -> Any:
    """A model's ``model_sampling`` of ComfyUI's own classes."""
    import comfy.model_sampling as core

    base, mixed = getattr(core, kind), getattr(core, prediction)
    return type("ModelSampling", (base, mixed), {})()


@pytest.mark.parametrize(
    ("kind", "prediction", "expected"),
    [
        ("ModelSamplingDiscrete", "EPS", "discrete"), ("ModelSamplingDiscrete", "V_PREDICTION", "discrete"),
        ("ModelSamplingDiscrete", "X0", "discrete"), ("ModelSamplingDiscreteEDM", "EDM", "edm"),
        ("ModelSamplingContinuousEDM", "EDM", "edm"), ("ModelSamplingContinuousV", "V_PREDICTION", "edm"),
        ("ModelSamplingDiscreteFlow", "CONST", "flow"), ("ModelSamplingFlux", "CONST", "flow"),
        ("StableCascadeSampling", "EPS", "cascade"), ("ModelSamplingCosmosRFlow", "COSMOS_RFLOW", "rflow"),
    ],
)  # fmt: skip
def test_a_fraction_is_of_the_time_that_the_model_itself_tells(kind: str, prediction: str, expected: str) -> None:
    """Core's own ``timestep`` of the level is that fraction of its time, where core has a time of its own."""
    own = sampling(kind, prediction)
    assert sampling_kind(own) == expected
    levels = [rollback_sigma(f, own) for f in (0.0, *FRACTIONS, 1.0)]
    assert levels == sorted(levels) and levels[0] == 0 and levels[-1] == pytest.approx(float(own.sigma_max))
    for fraction, level in zip(FRACTIONS, levels[1:-1], strict=True):
        assert float(own.sigma_min) < level < float(own.sigma_max)
        time = float(own.timestep(torch.tensor(level)))
        if expected == "discrete":
            assert time == pytest.approx(fraction * 999, abs=0.51)  # core rounds to a whole timestep
        elif kind == "ModelSamplingDiscreteFlow":
            assert time / own.multiplier == pytest.approx(fraction, abs=1e-3)
        elif expected == "cascade":
            assert time == pytest.approx(fraction, abs=1e-3)
        elif expected == "rflow":
            assert time == pytest.approx(fraction * float(own.sigma_max / (1 + own.sigma_max)), abs=1e-3)


def test_half_the_way_in_stable_cascade() -> None:
    cascade = tiny.model("cascade").get_model_object("model_sampling")
    assert rollback_sigma(0.5, cascade) == pytest.approx(2.03, abs=0.01)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_preset_falls_or_is_refused_in_every_family(name: str) -> None:
    own = tiny.model(name).get_model_object("model_sampling")
    for preset in PRESETS:
        if PRESETS[preset].kind != sampling_kind(own):
            with pytest.raises(ValueError, match=r": choose [a-z]|for which there is no preset: take"):
                preset_sigmas(preset, 0, own)
        else:
            sigmas = preset_sigmas(preset, 0, own)
            assert bool((sigmas.diff() < 0).all()) and float(sigmas[0]) <= float(own.sigma_max) * 1.001
