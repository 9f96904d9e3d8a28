"""Preset noise levels against diffusers' own schedulers and published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.samplers.presets import CUSTOM, PRESETS, find_preset, initial_scale, preset_sigmas, recognise
from comfyui_apprentice.samplers.schedules import refine_sigmas, rollback_sigma, timestep_sigma
from comfyui_apprentice.samplers.students import sample_tcd

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "schedules.json").read_text())
NAMES = {"sid-lsg-1step/t625": "sid-lsg/1step"}  # what the golden calls them -> what we do
BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def golden_sigmas(row: dict) -> list[float]:
    if "f64_sigma_k" in row:
        return [*row["f64_sigma_k"], 0.0]
    return row["sigmas"]


# SD3.5-Turbo follows ComfyUI's practice instead: tests/data/schedules.json shows diffusers' doubly shifted end point.
@pytest.mark.parametrize("row", [r for r in GOLDEN["rows"] if "sd35" not in r["preset"]], ids=lambda r: r["preset"])
def test_preset_equals_the_stored_numbers(row: dict) -> None:
    np.testing.assert_allclose(preset_sigmas(NAMES.get(row["preset"], row["preset"])).numpy(), golden_sigmas(row), rtol=1e-4)


def vp_sigmas(timesteps: torch.Tensor | list[float]) -> list[float]:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)
    return [*(((1 - abar[int(t)]) / abar[int(t)]) ** 0.5 for t in timesteps), 0.0]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8])
def test_lcm_and_tcd_equal_diffusers(steps: int) -> None:
    from diffusers import LCMScheduler, TCDScheduler

    for name, scheduler in (("lcm-lora-sd15-sdxl", LCMScheduler(**BETAS)), ("tcd-eta0.3", TCDScheduler(**BETAS))):
        scheduler.set_timesteps(steps)
        np.testing.assert_allclose(preset_sigmas(name, steps).numpy(), vp_sigmas(scheduler.timesteps), rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("name", ["sdxl-turbo/trailing", "sdxl-lightning", "hyper-sd", "dmd2", "pcm"])
def test_trailing_presets_equal_diffusers_euler(name: str, steps: int) -> None:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(preset_sigmas(name, steps).numpy(), scheduler.sigmas.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "shift"), [("flux-schnell", 1.0), ("z-image-turbo/shift3", 3.0), ("qwen-image-lightning/shift3", 3.0)]
)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_flow_presets_equal_diffusers(name: str, shift: float, steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    np.testing.assert_allclose(preset_sigmas(name, steps).numpy(), scheduler.sigmas.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        ("lcm-lora-sd15-sdxl/4step", [999, 759, 499, 259]),
        ("sdxl-turbo/stability-first-n/4step", [999, 899, 799, 699]),
        ("sdxl-turbo/trailing/4step", [999, 749, 499, 249]),
        ("sdxl-lightning-1step/x0", [999]),
        ("hyper-sdxl-1step/t800", [800]),
        ("dmd2/4step", [999, 749, 499, 249]),
        ("dmd2-1step/t399", [399]),
        ("sid-lsg/1step", [625]),
        ("sid-lsg-4step", [625, 468, 312, 156]),
    ],
)
def test_published_timesteps(name: str, timesteps: list[int]) -> None:
    np.testing.assert_allclose(preset_sigmas(name).numpy(), vp_sigmas(timesteps), rtol=1e-4)


def test_sd35_turbo_is_drawn_as_comfyui_draws_it() -> None:
    np.testing.assert_allclose(preset_sigmas("sd35-large-turbo/shift3/4step").numpy(), [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)


def test_sid_lsg_sigma_is_the_published_one() -> None:
    assert timestep_sigma(625) == pytest.approx(2.5017, rel=1e-4)


def test_dmd2_one_step_gets_unit_variance() -> None:
    sigma = float(preset_sigmas("dmd2-1step/t399")[0])
    assert 1 / initial_scale("dmd2-1step/t399", sigma) == pytest.approx(0.758, abs=5e-4)
    assert initial_scale("sid-lsg", 2.5017) == 1.0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_falls_to_zero_in_its_own_number_of_steps(name: str) -> None:
    preset, _ = find_preset(name)
    sigmas = preset_sigmas(name)
    assert len(sigmas) == preset.steps + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


@pytest.mark.parametrize("name", ["sdxl-lightning", "lcm-lora-sd15-sdxl", "flux-schnell", "tiny-world", "tcd-eta0.3"])
def test_denoise_takes_the_tail_of_a_longer_schedule(name: str) -> None:
    half = preset_sigmas(name, 4, denoise=0.5)
    whole = torch.tensor([*PRESETS[name].rule(8, 1.0)])
    levels = whole if PRESETS[name].kind != "discrete" else torch.tensor([timestep_sigma(float(t)) for t in whole])
    torch.testing.assert_close(half[:-1], levels[-4:].float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense",), "There is no preset 'nonsense'; choose one of: tiny-world"),
        (("sdxl-lightning", 9), "draws in 1 to 8 steps, not 9"),
        (("flux-schnell", 4, None, 0.0), "denoise is above 0"),
        (("sdxl-turbo/stability-first-n", 5, None, 0.3), "has 3 steps at denoise 0.3"),
    ],
)
def test_wrong_settings_are_one_sentence(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset_sigmas(*arguments)
    assert CUSTOM not in PRESETS


class DiscreteSampling:
    """Stable Diffusion's levels, with ComfyUI's interface."""

    sigma_min, sigma_max, num_timesteps = torch.tensor(timestep_sigma(0)), torch.tensor(timestep_sigma(999)), 1000

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tensor(timestep_sigma(float(timestep)))

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        table = torch.tensor([timestep_sigma(t) for t in range(1000)])
        return (table - sigma).abs().argmin().float()


class CONST:  # the name of ComfyUI's class for flow models
    sigma_min, sigma_max, shift = torch.tensor(0.003), torch.tensor(1.0), 3.0


class ContinuousEDM:
    sigma_min, sigma_max = torch.tensor(0.01), torch.tensor(80.0)


@pytest.mark.parametrize("sampling", [DiscreteSampling(), CONST(), ContinuousEDM()])
def test_rollback_runs_from_nothing_to_everything(sampling) -> None:
    assert rollback_sigma(0.0, sampling) == 0.0
    assert rollback_sigma(1.0, sampling) == float(sampling.sigma_max)
    levels = [rollback_sigma(r, sampling) for r in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert levels == sorted(levels) and levels[0] > 0 and levels[-1] < float(sampling.sigma_max)
    with pytest.raises(ValueError, match="rollback is from 0"):
        rollback_sigma(1.1, sampling)


def test_rollback_is_a_fraction_of_the_training_timesteps_or_of_flow_time() -> None:
    assert rollback_sigma(0.5, DiscreteSampling()) == pytest.approx(timestep_sigma(499.5))
    assert rollback_sigma(0.5, CONST()) == 0.5
    assert rollback_sigma(0.5, ContinuousEDM()) == pytest.approx((0.01 * 80) ** 0.5)


def test_refinement_starts_at_its_level_and_takes_the_rest_of_the_schedule() -> None:
    schedule = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0])
    assert refine_sigmas(schedule, 3.0).tolist() == [3.0, 2.0, 1.0, 0.0]
    assert refine_sigmas(schedule, 2.0).tolist() == [2.0, 1.0, 0.0]
    assert refine_sigmas(schedule, 10.0).tolist() == schedule.tolist()
    assert len(refine_sigmas(schedule, 0.0)) == 0


class Eps:
    """A model with a known answer, wrapped as ComfyUI's samplers see it."""

    def __init__(self) -> None:
        self.model_sampling = DiscreteSampling()
        self.inner_model = self

    def eps(self, x_vp: torch.Tensor, timestep: int) -> torch.Tensor:
        return torch.tanh(x_vp * 0.7 + timestep / 500)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        timestep = int(self.model_sampling.timestep(sigma[0]))
        x_vp = x / (1 + sigma[0] ** 2).sqrt()
        return x - sigma[0] * self.eps(x_vp, timestep)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_sampler_equals_diffusers_tcd_scheduler(steps: int, eta: float) -> None:
    from diffusers import TCDScheduler

    scheduler = TCDScheduler(**BETAS)
    scheduler.set_timesteps(steps)
    torch.manual_seed(0)
    start = torch.randn(2, 3, 4, 4)
    model, x = Eps(), start.clone()
    for t in scheduler.timesteps:
        generator = torch.Generator().manual_seed(int(t))
        x = scheduler.step(model.eps(x, int(t)), t, x, eta=eta, generator=generator).prev_sample
    sigmas = preset_sigmas("tcd-eta0.3", steps)
    drawn = iter(scheduler.timesteps.tolist())

    def noise_sampler(sigma: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        return torch.randn(start.shape, generator=torch.Generator().manual_seed(int(next(drawn))))

    ours = sample_tcd(model, start * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise_sampler=noise_sampler, eta=eta)
    torch.testing.assert_close(ours, x, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "preset", "steps"),
    [
        ("sdxl_lightning_8step_unet.safetensors", "sdxl-lightning", 8),
        ("sdxl_lightning_4step.safetensors", "sdxl-lightning", 4),
        ("sdxl_lightning_1step_unet_x0.safetensors", "sdxl-lightning-1step/x0", 1),
        ("sdxl_lightning_1step_x0.safetensors", "sdxl-lightning-1step/x0", 1),
        ("dmd2_sdxl_4step_unet_fp16.bin", "dmd2", 4), ("dmd2_sdxl_1step_unet_fp16.bin", "dmd2-1step/t399", 1),
        ("Hyper-SDXL-1step-Unet.safetensors", "hyper-sdxl-1step/t800", 1),
        ("Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors", None, 0), ("Hyper-FLUX.1-dev-8steps-lora.safetensors", None, 0),
        ("lcm-sdxl", "lcm-lora-sd15-sdxl", 4), ("LCM_Dreamshaper_v7", "lcm-lora-sd15-sdxl", 4),
        ("sd_xl_turbo_1.0_fp16.safetensors", "sdxl-turbo/stability-first-n", 1), ("sd_xl_base_1.0.safetensors", None, 0),
        ("DreamShaperXL_Turbo.safetensors", None, 0), ("my sdxl-turbo merge.safetensors", None, 0),
        ("flux1-schnell-fp8.safetensors", "flux-schnell", 4), ("flux1-dev.safetensors", None, 0),
        ("sd3.5_large_turbo.safetensors", "sd35-large-turbo/shift3", 4), ("sd3.5_large.safetensors", None, 0),
        ("z_image_turbo_bf16.safetensors", "z-image-turbo/res-multistep", 9), ("z_image_bf16.safetensors", None, 0),
        ("flux-2-klein-4b-fp8.safetensors", "flux2-klein", 4), ("flux-2-klein-base-4b.safetensors", None, 0),
        ("krea2_turbo_fp8_scaled.safetensors", "krea2-turbo", 8),
        ("ernie-image-turbo.safetensors", "ernie-image-turbo/shift3", 8),
        ("mage_flow_turbo_int8_convrot.safetensors", "mage-flow-turbo/shift6", 4),
        ("lens_turbo_bf16.safetensors", "lens-turbo", 4),
        ("boogu_image_turbo_fp8_scaled.safetensors", "boogu-turbo/shift3.16", 4),
        ("hidream_i1_fast_fp8.safetensors", "hidream-i1-fast/shift3", 16),
        ("qwen_image_2.1_turbo_int8_convrot.safetensors", "qwen-image-2.1-turbo", 8), ("qwen_image_2512.safetensors", None, 0),
        ("ltx-2-19b-distilled.safetensors", "ltx-distilled", 8), ("ltx-2.3-22b-dev-fp8.safetensors", None, 0),
        ("wan2.1_t2v_14b_lightx2v_4step.safetensors", "wan21-lightx2v/shift5", 4),
    ],
)  # fmt: skip
def test_students_are_recognised_by_the_names_of_their_published_files_and_no_others(
    name: str, preset: str | None, steps: int
) -> None:
    found = recognise(["model.safetensors", name])
    if preset is None:
        assert found is None
    else:
        assert found is not None and found[1] == name
        assert find_preset(found[0]) == (PRESETS[preset], steps)
