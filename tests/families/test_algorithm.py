"""The node graph is Algorithm 1: the plain function over stock samplers gives the same pictures, scores and decisions."""

from __future__ import annotations

import math

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.benchmarks.families import CFG, SEED, STEPS, Case
from torch import Tensor

tiny.start()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
from comfyui_apprentice.bridge.guiders import stock_sigmas  # noqa: E402
from comfyui_apprentice.nodes.judge import ApprenticeJudge, ApprenticeKeepBetter  # noqa: E402
from comfyui_apprentice.nodes.sample import ApprenticeStudentSampler, ApprenticeTeacher  # noqa: E402
from comfyui_apprentice.samplers.adaptive import Collaboration, adaptive_collaboration, refine, regenerate  # noqa: E402
from comfyui_apprentice.samplers.schedules import refine_sigmas, rollback_sigma  # noqa: E402
from families.judges import Brightness  # noqa: E402

ROLLBACK = 0.6


def look(latents: Tensor) -> Tensor:
    """Pictures [B, H, W, 3] in 0..1, for a judge."""
    flat = latents.reshape(len(latents), latents.shape[1], *latents.shape[-2:])
    return flat[:, :3].float().sigmoid().movedim(1, -1)


def stock(case: Case, model: object, cfg: float, sigmas: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
    """ComfyUI's own sampler on the whole batch."""
    with torch.inference_mode():
        drawn: Tensor = comfy.sample.sample_custom(
            model, noise, cfg, comfy.samplers.sampler_object("euler"), sigmas, case.positive, case.negative, latents, seed=SEED
        )
    return drawn


def algorithm(case: Case, strategy: str, tau: float, margin: float) -> Collaboration:
    """Algorithm 1 with stock samplers for S and T; T draws the whole batch, of which the rejected are taken."""
    empty = comfy.sample.fix_empty_latent_channels(case.student, case.latent["samples"])
    z = comfy.sample.prepare_noise(empty, SEED)
    sigmas = stock_sigmas(case.teacher, "euler", "simple", STEPS, 1.0)
    below = refine_sigmas(sigmas, rollback_sigma(ROLLBACK, case.teacher.get_model_object("model_sampling")))

    def student(noise: Tensor) -> Tensor:
        return stock(case, case.student, 1.0, stock_sigmas(case.student, "euler", "simple", STEPS, 1.0), noise, empty)

    def teacher(start: Tensor, rows: Tensor) -> Tensor:
        whole = torch.zeros(2, *z.shape)
        whole[:, rows] = start.movedim(1, 0)
        levels, latents = (sigmas, empty) if strategy == "regenerate" else (below, whole[1])
        return stock(case, case.teacher, CFG, levels, whole[0], latents)[rows]

    # The sampler mixes noise and latents itself: both are handed on.
    both = refine(0.0, z, lambda x, _sigma, eps: torch.stack([eps, x], 1))
    anew = regenerate(torch.stack([z, torch.zeros_like(z)], 1))
    return adaptive_collaboration(
        student, lambda x, _rows: Brightness().score(look(x), [""] * len(x)), teacher, z, tau,
        anew if strategy == "regenerate" else both, margin,
    )  # fmt: skip


@pytest.mark.parametrize("margin", [-math.inf, 0.0], ids=["as in the paper", "keep better"])
@pytest.mark.parametrize("strategy", ["refine", "regenerate"])
@pytest.mark.parametrize("family", ["sdxl", "flux", "qwen", "wan21"])
def test_the_graph_of_nodes_is_the_algorithm(family: str, strategy: str, margin: float) -> None:
    case = Case(family)
    drafts = ApprenticeStudentSampler.execute(
        case.student, case.positive, case.negative, case.latent, SEED, "custom", STEPS, 1.0, 1.0, "euler", "simple"
    )[0]
    pictures = look(drafts["samples"])
    scores = Brightness().score(pictures, [""] * len(pictures))
    tau = float(scores.sort().values[1:].mean())  # between the second and the best: two of three are rejected
    verdict = ApprenticeJudge.execute([Brightness()], [pictures], [""], ["absolute"], [tau], drafts=[drafts])[0]
    improved = ApprenticeTeacher.execute(
        verdict, drafts, strategy, ROLLBACK, STEPS, CFG, "euler", "simple", SEED, case.teacher, case.positive, case.negative
    )[0]
    latent, _, after = ApprenticeKeepBetter.execute(
        Brightness(), verdict, drafts, improved, pictures, max(margin, -1e9), look(improved["samples"])
    ).result
    result = algorithm(case, strategy, tau, margin)
    assert verdict.rejected == result.rejected.nonzero().flatten().tolist() and len(verdict.rejected) == 2
    assert [j.decision == "improved" for j in after] == result.replaced.tolist()
    torch.testing.assert_close(latent["samples"], result.x, rtol=1e-4, atol=1e-4 * float(result.x.abs().max()))
    torch.testing.assert_close(torch.tensor([j.score for j in after]), result.rho.float(), rtol=1e-4, atol=1e-5)
    kept = ~result.replaced
    assert torch.equal(latent["samples"][kept], result.x[kept])
