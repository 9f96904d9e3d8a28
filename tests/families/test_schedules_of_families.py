"""What a fraction of the noise means, for every kind of ``model_sampling`` that ComfyUI has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.samplers.edm import sid_levels
from comfyui_apprentice.samplers.presets import PRESETS, preset_sigmas
from comfyui_apprentice.samplers.schedules import rollback_sigma

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
    with pytest.raises(ValueError, match="of Stable Cascade, for which there is no preset"):
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


def template(shift: float, scheduler: str, steps: int, kind: str = "ModelSamplingDiscreteFlow") -> Any:
    """ComfyUI's own levels."""
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(sampling(kind, "CONST", shift=shift), scheduler, steps)


# Of each template (Comfy-Org/workflow_templates, at CFG 1): sampler, scheduler, steps; and of core's class the shift.
@pytest.mark.parametrize(
    ("preset", "sampler", "scheduler", "steps", "shift", "kind"),
    [
        ("krea2-turbo", "euler", "simple", 8, 1.15, "ModelSamplingFlux"),
        ("ernie-image-turbo/shift3", "euler", "simple", 8, 3.0, "ModelSamplingDiscreteFlow"),
        ("mage-flow-turbo/shift6", "euler", "simple", 4, 6.0, "ModelSamplingDiscreteFlow"),
        ("boogu-turbo/shift3.16", "lcm", "sgm_uniform", 4, 3.16, "ModelSamplingDiscreteFlow"),
        ("qwen-image-lightning/shift3.1", "euler", "simple", 4, 3.1, "ModelSamplingDiscreteFlow"),
        ("wan22-lightx2v/shift5", "euler", "simple", 4, 5.0, "ModelSamplingDiscreteFlow"),
    ],
)
def test_presets_of_2026_are_the_templates_schedules(
    preset: str, sampler: str, scheduler: str, steps: int, shift: float, kind: str
) -> None:
    model = sampling(kind, "CONST", shift=shift)
    found = preset_sigmas(preset, None, model)
    assert PRESETS[preset].sampler == sampler and len(found) == steps + 1
    torch.testing.assert_close(found, template(shift, scheduler, steps, kind), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(1024, 1024), (512, 512), (1440, 1440), (1920, 1088)])
def test_presets_that_depend_on_the_size_are_the_templates_nodes(width: int, height: int) -> None:
    from comfy_extras.nodes_flux import Flux2Scheduler
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    for steps in (4, 8):
        found = preset_sigmas(f"flux2-klein/{steps}step", None, None, tiles=width * height / 256)
        torch.testing.assert_close(found, Flux2Scheduler.execute(steps, width, height)[0], rtol=1e-5, atol=1e-6)
    import comfy.samplers

    patched = ModelSamplingFlux().patch(tiny.model("flux"), 1.15, 0.5, width, height)[0].get_model_object("model_sampling")
    wanted = comfy.samplers.calculate_sigmas(patched, "simple", 4)
    torch.testing.assert_close(preset_sigmas("lens-turbo", None, None, tiles=width * height / 256), wanted, rtol=0, atol=1e-5)


def test_klein_is_drawn_by_the_size_of_its_latents() -> None:
    from comfyui_apprentice.bridge.drafts import draw_drafts
    from comfyui_apprentice.bridge.drawing import Drawing
    from comfyui_apprentice.bridge.info import info_of

    def schedule(name: str, side: int) -> str:
        latent = tiny.empty(name, 1, height=side, width=side)
        with torch.inference_mode():
            drafts = draw_drafts(
                tiny.model(name), tiny.text(name), tiny.text(name), latent, "flux2-klein", Drawing(0, 1.0, "lcm", "karras", 1)
            )
        return info_of(drafts).schedule

    assert schedule("flux2", 64) == "flux2-klein, euler at 1 0.9674 0.9081 0.7672 0, CFG 1"  # 1024 pixels
    assert schedule("flux2", 32) != schedule("flux2", 64) == schedule("flux", 128)


@pytest.mark.parametrize(
    ("preset", "levels"),
    [
        ("ltx-distilled", [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0]),
        ("qwen-image-2.1-turbo", [1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568, 0]),
        ("wan21-lightx2v/shift5", [1.0, 0.9375, 5 / 6, 0.625, 0.0]),
        ("sid-dit", [1.0, 0.75, 0.5, 0.25, 0.0]),
    ],
)
def test_presets_are_the_levels_that_their_authors_list(preset: str, levels: list[float]) -> None:
    torch.testing.assert_close(preset_sigmas(preset), torch.tensor(levels), rtol=0, atol=1e-6)


def test_a_listed_schedule_has_its_own_number_of_steps_and_a_tail() -> None:
    torch.testing.assert_close(preset_sigmas("ltx-distilled", denoise=0.4), torch.tensor([0.909375, 0.725, 0.421875, 0.0]))
    with pytest.raises(ValueError, match="exactly 8 steps, and 4 were asked for; leave steps at 0"):
        preset_sigmas("ltx-distilled", 4)
