"""SIGMAS, SAMPLER, GUIDER and NOISE: what ComfyUI's SamplerCustomAdvanced draws from them, to the bit; of a part, its rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny
from torch import Tensor

tiny.start()

import comfy.samplers  # noqa: E402
import comfy_extras.nodes_custom_sampler as core  # noqa: E402
from comfy_extras.nodes_perpneg import PerpNegGuider  # noqa: E402
from comfyui_apprentice.bridge.drawing import Drawing  # noqa: E402
from comfyui_apprentice.bridge.info import info_of  # noqa: E402
from comfyui_apprentice.bridge.prompts import join  # noqa: E402
from comfyui_apprentice.bridge.teacher import INFO, improve  # noqa: E402
from comfyui_apprentice.gate.verdict import Judgement, Verdict  # noqa: E402
from comfyui_apprentice.nodes.sample import ApprenticeStudentSampler, ApprenticeTeacher, ApprenticeTeacherCost  # noqa: E402
from comfyui_apprentice.samplers.schedules import refine_sigmas, rollback_sigma  # noqa: E402

NAMES = ("flux2", "cascade", "wan21", "sdxl", "zimage")
SETTINGS: dict[str, Any] = {"seed": 77, "steps": 9, "cfg": 1.5}  # none of which may count
MANUAL = {"flux2": [1.0, 0.9674, 0.9081, 0.7672, 0.0]}  # Flux2Scheduler's at 1024 pixels


def sigmas_of(patcher: Any, name: str) -> Tensor:
    if name in MANUAL:
        return torch.tensor(MANUAL[name])
    return core.BasicScheduler.execute(patcher, "simple", 4, 1.0)[0]


def guiders(patcher: Any, name: str, texts: int = 3) -> dict[str, Any]:
    """The usual two for every family, all that there are for two of them."""
    positive, negative, middle = tiny.text(name, texts), tiny.text(name, seed=9), tiny.text(name, 2, seed=3)
    usual = {
        "CFGGuider": core.CFGGuider.execute(patcher, positive, negative, 2.0)[0],
        "BasicGuider": core.BasicGuider.execute(patcher, positive)[0],
    }
    return usual if name not in ("flux2", "sdxl") else usual | {
        "DualCFGGuider": core.DualCFGGuider.execute(patcher, positive, middle, negative, 2.0, 1.5, "regular")[0],
        "nested": core.DualCFGGuider.execute(patcher, positive, middle, negative, 2.0, 1.5, "nested")[0],
        "PerpNegGuider": PerpNegGuider.execute(patcher, positive, negative, tiny.text(name, seed=4), 2.0, 0.7)[0],
    }


def advanced(guider: Any, latent: dict[str, Any], sigmas: Tensor, sampler: Any, seed: int = 5, noise: Any = None) -> Tensor:
    """ComfyUI's own node."""
    noise = noise or core.Noise_RandomNoise(seed)
    with torch.inference_mode():
        return core.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)[0]["samples"]


def named(name: str) -> Any:
    return comfy.samplers.sampler_object(name)


def drafted(patcher: Any, latent: dict[str, Any], preset: str = "tiny-world", **given: Any) -> dict[str, Any]:
    texts = {"positive": tiny.text("sdxl", seed=50), "negative": tiny.text("sdxl", seed=51)}
    settings = {**SETTINGS, **texts, "preset": preset, "denoise": 1.0, "latent_image": latent, **given}
    with torch.inference_mode():
        return ApprenticeStudentSampler.execute(model=patcher, **settings)[0]


def verdict(total: int, rejected: list[int]) -> Verdict:
    judgements = tuple(Judgement(row, float(row not in rejected), 0.5, row not in rejected) for row in range(total))
    return Verdict(judgements, "", "", "absolute", 0.5)


def taught(
    patcher: Any, drafts: dict[str, Any], rejected: list[int], strategy: str = "regenerate", **given: Any
) -> dict[str, Any]:
    settings = {**SETTINGS, "sampler_name": "dpmpp_2m", "scheduler": "karras", "rollback": 0.6, "strategy": strategy}
    with torch.inference_mode():
        return ApprenticeTeacher.execute(
            verdict=verdict(len(drafts["samples"]), rejected), drafts=drafts, model=patcher, **{**settings, **given}
        )[0]


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


EVERYONE = [0, 1, 2]


@pytest.mark.parametrize("name", NAMES)
def test_gate_open_the_student_draws_what_samplercustomadvanced_draws_to_the_bit(name: str) -> None:
    patcher, latent = tiny.model(name), tiny.empty(name, 3)
    for kind, guider in guiders(patcher, name).items():
        for sampler in ("euler", "dpmpp_2m_sde", "lcm") if kind == "CFGGuider" else ("euler",):
            given = {"sigmas": sigmas_of(patcher, name), "sampler": named(sampler), "guider": guider}
            expected = advanced(guider, latent, given["sigmas"], given["sampler"])
            found = drafted(patcher, latent, **given, noise=core.Noise_RandomNoise(5))
            assert torch.equal(found["samples"], expected), (kind, sampler)
            assert torch.equal(drafted(patcher, latent, **{**given, "seed": 5})["samples"], expected), kind


@pytest.mark.parametrize("name", NAMES)
def test_gate_shut_the_teacher_draws_it_to_the_bit_and_one_rejected_row_is_its_row(name: str) -> None:
    student, patcher, latent = tiny.model(name, seed=1), tiny.model(name), tiny.empty(name, 3)
    drafts = drafted(student, latent, "custom", sigmas=sigmas_of(student, name), guider=guiders(student, name)["BasicGuider"])
    for kind, guider in guiders(patcher, name).items():
        for sampler in ("euler", "euler_ancestral") if kind == "CFGGuider" else ("euler",):
            given = {"sigmas": sigmas_of(patcher, name), "sampler": named(sampler), "guider": guider,
                     "noise": core.Noise_RandomNoise(5)}  # fmt: skip
            whole = advanced(guider, latent, given["sigmas"], given["sampler"])
            assert torch.equal(taught(patcher, drafts, EVERYONE, **given)["samples"], whole), (kind, sampler)
            for rows in ([1], [2, 0]):
                found = taught(patcher, drafts, rows, **given)["samples"]
                kept = [row for row in EVERYONE if row not in rows]
                assert close(found[rows], whole[rows]), (kind, sampler, rows)
                assert torch.equal(found[kept], drafts["samples"][kept])


@pytest.mark.parametrize("name", NAMES)
def test_refining_takes_the_tail_of_the_given_sigmas(name: str) -> None:
    patcher, latent = tiny.model(name), tiny.empty(name, 3)
    guider, sigmas = guiders(patcher, name)["CFGGuider"], sigmas_of(patcher, name)
    drafts = drafted(patcher, latent, sigmas=sigmas, sampler=named("euler"), guider=guider)
    start = rollback_sigma(0.6, patcher.get_model_object("model_sampling"))
    tail = refine_sigmas(sigmas, start)
    assert float(tail[0]) == pytest.approx(start) and 2 <= len(tail) <= len(sigmas)
    whole = advanced(guider, {"samples": drafts["samples"]}, tail, named("euler"), seed=6)
    given = {"sigmas": sigmas, "sampler": named("euler"), "guider": guider, "seed": 6}
    assert torch.equal(taught(patcher, drafts, EVERYONE, "refine", **given)["samples"], whole)
    assert close(taught(patcher, drafts, [1], "refine", **given)["samples"][1], whole[1])


def test_each_input_wins_alone_over_what_is_set() -> None:
    patcher, latent = tiny.model("sdxl"), tiny.empty("sdxl", 3)
    positive, negative = tiny.text("sdxl", 3), tiny.text("sdxl", seed=9)
    settings = {"positive": positive, "negative": negative, "cfg": 2.0, "seed": 5, "steps": 4, "preset": "custom",
                "sampler_name": "euler", "scheduler": "simple"}  # fmt: skip
    guider = core.CFGGuider.execute(patcher, positive, negative, 2.0)[0]
    expected = advanced(guider, latent, sigmas_of(patcher, "sdxl"), named("euler"))
    wrong = {"cfg": 7.0, "seed": 1, "steps": 7, "preset": "sdxl-lightning", "sampler_name": "lcm", "scheduler": "karras"}
    given = [
        ({}, ()),
        ({"guider": guider}, ("cfg",)),
        ({"noise": core.Noise_RandomNoise(5)}, ("seed",)),
        ({"sampler": named("euler")}, ("sampler_name",)),
        ({"sigmas": sigmas_of(patcher, "sdxl")}, ("steps", "scheduler")),
        ({"sigmas": sigmas_of(patcher, "sdxl"), "sampler": named("euler")}, ("steps", "scheduler", "sampler_name", "preset")),
    ]
    for connected, names in given:
        changed = {name: wrong[name] for name in names}
        assert torch.equal(drafted(patcher, latent, **{**settings, **connected, **changed})["samples"], expected), connected


def test_levels_alone_leave_the_preset_its_sampler_and_a_sampler_alone_its_levels() -> None:
    patcher, latent = tiny.model("sdxl"), tiny.empty("sdxl", 2)
    guider, sigmas = guiders(patcher, "sdxl")["CFGGuider"], sigmas_of(patcher, "sdxl")
    given = {"guider": guider, "seed": 5, "steps": 0}
    expected = advanced(guider, latent, sigmas, named("lcm"))
    assert torch.equal(drafted(patcher, latent, "dmd2", sigmas=sigmas, **given)["samples"], expected)
    found = drafted(patcher, latent, "sdxl-lightning", sampler=named("heun"), **given)
    assert "heun at 14.61 4.08" in info_of(found).schedule and "CFGGuider cfg=2" in info_of(found).schedule
    with pytest.raises(ValueError, match="'auto' can't tell"):
        drafted(patcher, latent, "auto", sigmas=sigmas, **given)


def test_a_preset_that_reads_the_network_otherwise_does_so_through_a_guider() -> None:
    patcher, latent = tiny.model("sdxl"), tiny.empty("sdxl", 2)
    positive, negative = tiny.text("sdxl", 2), tiny.text("sdxl", seed=9)
    plain = drafted(patcher, latent, "sdxl-lightning-1step/x0", steps=0, cfg=1.0, positive=positive, negative=negative)
    guider = core.CFGGuider.execute(patcher, positive, negative, 1.0)[0]
    assert torch.equal(drafted(patcher, latent, "sdxl-lightning-1step/x0", steps=0, guider=guider)["samples"], plain["samples"])


def test_masks_indices_prompts_of_two_lengths_and_packs_with_a_guider() -> None:
    patcher, negative = tiny.model("flux2"), tiny.text("flux2", seed=9)
    lines = [tiny.text("flux2", 1, tokens, seed=row) for row, tokens in enumerate((7, 12, 5))]
    guider = core.CFGGuider.execute(patcher, join(lines), negative, 2.0)[0]
    mask = torch.zeros(3, 8, 8)
    for row in EVERYONE:
        mask[row, : 2 * row + 2] = 1
    latent = {**tiny.empty("flux2", 3), "noise_mask": mask, "batch_index": [4, 2, 9]}
    latent["samples"] = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(3))
    given = {"sigmas": sigmas_of(patcher, "flux2"), "sampler": named("euler"), "guider": guider}
    found = drafted(patcher, latent, seed=5, **given)["samples"]
    again = taught(patcher, latent, [2, 0], seed=5, max_batch=1, **given)["samples"]
    for row, line in enumerate(lines):
        alone = {"samples": latent["samples"][[row]], "noise_mask": mask[[row]], "batch_index": [latent["batch_index"][row]]}
        own = core.CFGGuider.execute(patcher, line, negative, 2.0)[0]
        expected = advanced(own, alone, given["sigmas"], given["sampler"])[0]
        assert close(found[row], expected)
        assert close(again[row], latent["samples"][row] if row == 1 else expected)


def test_samplers_with_settings_of_their_own_give_a_row_its_noise_in_the_batch() -> None:
    patcher, latent = tiny.model("sdxl"), tiny.empty("sdxl", 3)
    guider, sigmas = guiders(patcher, "sdxl")["CFGGuider"], sigmas_of(patcher, "sdxl")
    made = {
        "ancestral": core.SamplerEulerAncestral.execute(0.7, 1.1)[0],
        "sde": core.SamplerDPMPP_SDE.execute(0.9, 1.0, 0.5, "cpu")[0],
        "2m sde": core.SamplerDPMPP_2M_SDE.execute("heun", 0.8, 1.0, "cpu")[0],
        "adaptive": core.SamplerDPMAdaptative.execute(3, 0.5, 0.078, 0.05, 0.0, 1.0, 0.0, 0.81, 0.0, 1.0)[0],
        "ddim": named("ddim"), "uni_pc": named("uni_pc"),
    }  # fmt: skip
    for name, sampler in made.items():
        given = {"sigmas": sigmas, "sampler": sampler, "guider": guider, "seed": 5}
        whole = taught(patcher, latent, EVERYONE, **given)
        if name != "adaptive":  # drawn one by one, as its steps depend on the batch
            assert torch.equal(whole["samples"], advanced(guider, latent, sigmas, sampler)), name
        part = taught(patcher, latent, [2, 1], **given)
        assert close(part["samples"][1:], whole["samples"][1:]), name
        assert "whole batch" not in part[INFO].note, name


def own_noise(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, noise_sampler: Any = None, **_: Any) -> Tensor:
    """Another pack's sampler, with noise that only it knows."""
    rng = torch.Generator().manual_seed(99)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
        x = denoised + following * torch.randn(x.shape, generator=rng)
    return x


def wrapping(model: Any, x: Tensor, sigmas: Tensor, *, inner: Any, **kwargs: Any) -> Tensor:
    """Another pack's sampler around a sampler."""
    return inner.sampler_function(model, x, sigmas * 1.0, **kwargs, **inner.extra_options)


class OwnSampler(comfy.samplers.Sampler):
    def sample(self, model_wrap: Any, sigmas: Tensor, *given: Any, **options: Any) -> Tensor:
        return named("euler_ancestral").sample(model_wrap, sigmas, *given, **options)


class OwnGuider:
    """Another pack's guider that has nothing in common with ComfyUI's but what SamplerCustomAdvanced asks for."""

    def __init__(self, guider: Any) -> None:
        self.inner, self.model_patcher = guider, guider.model_patcher

    def sample(self, *given: Any, **options: Any) -> Tensor:
        return self.inner.sample(*given, **options)


def test_what_cannot_be_taken_apart_is_drawn_whole_for_the_rejected_rows() -> None:
    patcher, latent = tiny.model("sdxl"), tiny.empty("sdxl", 3)
    plain, sigmas = guiders(patcher, "sdxl")["CFGGuider"], sigmas_of(patcher, "sdxl")
    ksampler = comfy.samplers.KSAMPLER
    cases = [
        (ksampler(own_noise), plain, "draws noise of its own"),
        (ksampler(wrapping, {"inner": named("euler_ancestral")}), plain, "draws noise of its own"),
        (OwnSampler(), plain, "one of its own kind"),
        (named("euler"), OwnGuider(plain), "keeps its conditionings to itself"),
        (ksampler(wrapping, {"inner": named("euler")}), plain, ""),
    ]
    for sampler, guider, why in cases:
        given = {"sigmas": sigmas, "sampler": sampler, "guider": guider, "seed": 5}
        whole = advanced(guider, latent, sigmas, sampler)
        assert torch.equal(taught(patcher, latent, EVERYONE, **given)["samples"], whole)
        found = taught(patcher, latent, [1], **given)
        assert close(found["samples"][1], whole[1]) and not found["samples"][[0, 2]].any()
        assert why in found[INFO].note and ("whole batch" in found[INFO].note) == bool(why)
        assert found[INFO].nfe == (0, 24.0 if why else 8.0, 0)


def test_the_evaluations_told_are_those_counted() -> None:
    student = tiny.model("sdxl")
    for name in ("sdxl", "flux2"):
        patcher, latent = tiny.model(name), tiny.empty(name, 3)
        for kind, guider in guiders(patcher, name).items():
            for sampler in ("euler", "heun"):
                given = {"sigmas": sigmas_of(patcher, name), "sampler": named(sampler), "guider": guider}
                for strategy in ("regenerate", "refine"):
                    settings = {"steps": 30, "cfg": 9.0, "strategy": strategy, "rollback": 0.6, "sampler_name": "lcm"}
                    with torch.inference_mode():
                        told = ApprenticeTeacherCost.execute(student, scheduler="karras", **settings, **given)[0]
                    count = taught(patcher, latent, EVERYONE, strategy, **given)[INFO].nfe[2]
                    assert told == count, (name, kind, sampler, strategy)


def test_the_teacher_starts_where_the_students_sigmas_did() -> None:
    """Over a picture from halfway, by the student's SIGMAS; the teacher, by its own scheduler, doesn't start from noise."""
    patcher, latent = tiny.model("flux"), tiny.empty("flux", 2)
    latent["samples"] = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(3))
    texts = {"positive": tiny.text("flux"), "negative": tiny.text("flux", seed=9)}
    drafts = drafted(patcher, latent, sigmas=torch.tensor([0.5, 0.2, 0.0]), sampler=named("euler"), **texts)
    assert info_of(drafts).denoise == pytest.approx(0.5, abs=1e-6)
    found = taught(patcher, drafts, [0, 1], steps=3, sampler_name="euler", scheduler="simple", cfg=1.0, **texts)
    own = tiny.stock(patcher, latent, *texts.values(), seed=77, steps=3, cfg=1.0, denoise=0.5)
    assert torch.equal(found["samples"], own)


def test_contradictions_are_told_in_a_sentence() -> None:
    patcher, other, latent = tiny.model("sdxl"), tiny.model("flux"), tiny.empty("sdxl", 2)
    guider, sigmas = guiders(patcher, "sdxl")["CFGGuider"], sigmas_of(patcher, "sdxl")
    for sigma in (torch.tensor([]), torch.tensor([1.0]), torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match="SIGMAS are at least two noise levels"):
            drafted(patcher, latent, sigmas=sigma)
        with pytest.raises(ValueError, match="SIGMAS are at least two noise levels"):
            taught(patcher, latent, [0], sigmas=sigma, guider=guider)
    sentence = r"The GUIDER draws with another model \(SDXL\) than the one connected \(Flux\): connect"
    with pytest.raises(ValueError, match=sentence):
        drafted(other, latent, sigmas=sigmas, sampler=named("euler"), guider=guider)
    with pytest.raises(ValueError, match=sentence):
        taught(other, latent, [0], guider=guider)
    assert drafted(patcher.clone(), latent, "custom", steps=2, guider=guider)  # a LoRA on it, or ModelSampling: the same model


def test_the_teachers_inputs_are_asked_for_only_when_something_was_rejected() -> None:
    given = dict.fromkeys(("model", "positive", "negative", "sigmas", "noise"))
    ask = ApprenticeTeacher.check_lazy_status
    assert ask(verdict(2, []), {}, **given, guider=None) == []
    assert ask(verdict(2, [1]), {}, **given) == ["model", "positive", "negative", "sigmas", "noise"]
    assert ask(verdict(2, [1]), {}, **given, guider=None) == ["model", "sigmas", "guider", "noise"]


@pytest.mark.skipif(not hasattr(core, "DualModelGuider"), reason="newer ComfyUIs have it")
def test_the_guider_of_two_models() -> None:
    """Ideogram 4's way: the negative by a model of its own."""
    name = "flux2"
    patcher, other, latent = tiny.model(name), tiny.model(name, seed=2), tiny.empty(name, 3)
    for cfg, evaluations in ((3.0, 6.0), (1.0, 3.0)):
        guider = core.DualModelGuider.execute(patcher, tiny.text(name, 3), cfg, other, tiny.text(name, 2, seed=9))[0]
        given = {"sigmas": core.ManualSigmas.execute("1, 0.9, 0.6, 0")[0], "sampler": named("euler"), "guider": guider}
        whole = advanced(guider, latent, given["sigmas"], given["sampler"])
        assert torch.equal(drafted(patcher, latent, **given, noise=core.Noise_RandomNoise(5))["samples"], whole)
        part = taught(patcher, latent, [2], seed=5, **given)
        assert close(part["samples"][2], whole[2]) and part[INFO].nfe[2] == evaluations
        with torch.inference_mode():
            told = ApprenticeTeacherCost.execute(
                patcher, strategy="regenerate", rollback=1.0, steps=9, cfg=9.0, sampler_name="lcm", scheduler="karras", **given
            )[0]
        assert told == evaluations


def test_a_model_that_draws_noise_over_the_whole_batch_is_drawn_whole() -> None:
    """Stable Diffusion's x4 upscaler adds noise to the pictures that it is shown, all in one draw."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD_X4Upscaler({**tiny.FAMILIES["sd15"].network, "in_channels": 7, "num_classes": 1000})
    config.unet_config["disable_self_attentions"] = [False, False]  # it has two levels, not four
    base = config.get_model({}, "", device=None)
    tiny.fill(base.diffusion_model)
    model = comfy.model_patcher.ModelPatcher(base.eval(), torch.device("cpu"), torch.device("cpu"))
    shown = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    text = tiny.text("sd15", 3, concat_image=shown, noise_augmentation=0.5)
    latent = tiny.empty("sd15", 3)
    with torch.inference_mode():
        found = improve(model, text, text, latent, [2], "regenerate", 0.5, Drawing(2, 2.0, "euler", "simple", 1))
    whole = tiny.stock(model, latent, text, text)
    assert float((found["samples"][2] - whole[2]).abs().max()) < 1e-4 * float(whole.abs().max())
    assert "the whole batch was drawn for them, as the model SD_X4Upscaler" in info_of(found).note
