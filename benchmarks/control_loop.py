"""The loop closed: the student distilled again from the tuned teacher, and adaptive collaboration with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..networks.tiny_unet import Denoiser, TinyUNet
from ..samplers.schedules import tiny_world_sigmas
from ..training.distill import Settings as SidSettings
from ..training.distill import Task as SidTask
from ..training.distill import distil
from ..training.loop import Watch
from ..training.sid import EdmLevels
from ..training.sid_iteration import Players
from ..world.recipe.concepts import held_out_prompts, training_prompts
from ..world.recipe.sampling import World, unit_noise
from ..world.recipe.sid import denoiser
from ..world.weights import DEFAULT_STUDENT, load_unet
from .adaptive import TEACHER_STEPS, Pool, mean_of, route, share_for
from .control_world import SHAPE, kept_run
from .figures import Array, Claim

Say = Callable[[str], None]
BUDGET, GUIDANCE = 12.0, 1.5  # evaluations a picture of the loop; of the tuned teacher in SiD


def redistil(world: World, teacher: TinyUNet, pictures: int, folder: Path, say: Say) -> TinyUNet:
    """The one-step student against the tuned teacher, by SiD at all noise levels, from the old student on.

    Raises:
        ValueError: ``folder`` holds another run of it.
    """
    generator, fake = load_unet(f"student_{DEFAULT_STUDENT}"), load_unet("teacher")
    prompts = [p.text() for p in training_prompts(512, seed=4)]
    with torch.no_grad():
        contexts, empty = world.context(prompts), world.context([""])

    for network in (generator, fake):
        network.requires_grad_(True)
    players = Players(
        denoiser(teacher), denoiser(fake), denoiser(generator), list(fake.parameters()), list(generator.parameters())
    )

    def labels(rng: torch.Generator, batch: int) -> tuple[Any, Any]:
        return contexts[torch.randint(len(prompts), (batch,), generator=rng)], empty.expand(batch, -1, -1)

    settings = SidSettings(
        pictures=pictures, batch=32, generator_rate=3e-5, fake_rate=3e-4, alpha=1.0, kappa4=GUIDANCE, steps=2,
        generator_scale=1.0, ema_half_life=1500, ema_rampup=0.3, warmup=0.05, delay=0.12,
    )  # fmt: skip
    task = SidTask(
        players, generator, fake, SHAPE, labels, lambda steps: tuple(tiny_world_sigmas(steps)), EdmLevels(p_mean=-0.4, p_std=1.2)
    )
    watch = Watch(lambda step, _p, means: say(f"SiD {step}: {means['generator']:.4g}"), 25)
    run = kept_run(folder / "distilled again", settings)
    ema = distil(task, settings, run, watch=watch, save_every=50)
    generator.load_state_dict(ema.shadow)
    return generator.eval().requires_grad_(False)


def loop(world: World, taught: dict[str, TinyUNet], prompts: int) -> tuple[list[dict[str, Any]], dict[str, Claim]]:
    """Adaptive collaboration with the old student and the taught ones: the same threshold, then the same cost.

    The threshold is the median of the old student's drafts of these prompts, so that it rejects half of them.

    Returns:
        A row for each student, and the claims, which are about the first of the taught.
    """
    words, noise = [p.text() for p in held_out_prompts()[:prompts]], unit_noise(prompts, 21)

    def pool(latents: Tensor, nfe: int) -> Pool:
        pictures = world.pictures(latents)
        gate, quality = (o.score(pictures, words).double().numpy() for o in (world.oracle, world.judge))
        return Pool(gate, quality, np.zeros((len(words), 1)), nfe, pictures, gate)

    redrawn = world.redraw(words, noise, TEACHER_STEPS)
    teacher, steps = pool(redrawn.latents, redrawn.nfe), 2
    world._students |= {name: Denoiser(network) for name, network in taught.items()}
    students = {"before": DEFAULT_STUDENT} | {name: name for name in taught}
    drafts = {
        name: pool(world.draft(words, noise, steps, seed=31, student=network).latents, steps)
        for name, network in students.items()
    }
    old, first = drafts["before"], next(iter(taught))
    threshold, share = float(np.median(old.gate)), share_for(BUDGET, old, teacher)
    routed = {name: route(draft, teacher, share, keep_better=True) for name, draft in drafts.items()}
    rejected: dict[str, Array] = {name: (draft.gate < threshold).astype(np.float64) for name, draft in drafts.items()}
    rows: list[dict[str, Any]] = [
        {
            "student": name, "its own score (oracle)": round(float(draft.gate.mean()), 3),
            "its own score (judge)": round(float(draft.quality.mean()), 3),
            "rejected at the old median": f"{float(rejected[name].mean()):.0%}",
            f"adaptive, {BUDGET:g} evaluations (judge)": round(float(routed[name].quality.mean()), 3),
            "minus before": str(mean_of(routed[name].quality - routed["before"].quality)),
        }
        for name, draft in drafts.items()
    ]  # fmt: skip
    return rows, {
        "loop_quality_gain": mean_of(routed[first].quality - routed["before"].quality),
        "loop_reject_share_change": mean_of(rejected[first] - rejected["before"]),
    }
