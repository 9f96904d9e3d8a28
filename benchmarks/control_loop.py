"""The loop closed: the student distilled again from the tuned teacher, and adaptive collaboration with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..networks.tiny_unet import Denoiser, TinyUNet
from ..training.distill import distil
from ..training.loop import Watch
from ..world.recipe.concepts import held_out_prompts
from ..world.recipe.sampling import World, unit_noise
from ..world.weights import DEFAULT_STUDENT
from .adaptive import TEACHER_STEPS, Pool, mean_of, route, share_for
from .control_world import kept_run
from .figures import Array, Claim
from .sid_world import SETTINGS, student_task

Say = Callable[[str], None]
BUDGET = 12.0  # evaluations a picture of the loop


def redistil(world: World, teacher: TinyUNet, pictures: int, folder: Path, say: Say) -> TinyUNet:
    """The one-step student against the tuned teacher, by SiD at all noise levels, from the old student on.

    Raises:
        ValueError: ``folder`` holds another run of it.
    """
    task, settings = student_task(world, teacher, DEFAULT_STUDENT), replace(SETTINGS, pictures=pictures)
    watch = Watch(lambda step, _p, means: say(f"SiD {step}: {means['generator']:.4g}"), 25)
    run = kept_run(folder / "distilled again", settings)
    ema = distil(task, settings, run, watch=watch, save_every=50)
    generator = task.generator
    assert isinstance(generator, TinyUNet)
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
