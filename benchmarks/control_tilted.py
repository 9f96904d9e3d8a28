"""One loss that distils and pleases: the tiny world's student by SiD towards the tilted teacher, beside plain SiD.

All arms start from the shipped student, with one fake score network that has learned that student's pictures before, and draw
as many pictures. Tuned by the gate's oracle; measured by the judge on prompts that no training showed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..networks.tiny_unet import Denoiser, TinyUNet
from ..samplers.schedules import tiny_world_sigmas
from ..training.distill import Settings, Task, distil, draw_steps, draws
from ..training.loop import Schedule, Watch, train
from ..training.sid import EdmLevels
from ..training.sid_iteration import Players, fake_score_objective
from ..training.tilted import Tilt
from ..world.recipe.concepts import training_prompts
from ..world.recipe.sampling import World
from ..world.recipe.sid import denoiser
from ..world.weights import DEFAULT_STUDENT, load_unet
from .control_world import SHAPE, Measured, against, kept_run, mean_by_prompt, measure, row_of
from .figures import Claim

Say = Callable[[str], None]
GUIDANCE = 1.5  # of the teacher, as the shipped student was distilled with
FAKE_RATE = 3e-4
STEPS, TEACHER_STEPS = 2, 12
PLAIN, FAKE = "plain SiD", "fake score"


@dataclass(frozen=True)
class Plan:
    """How much is trained."""

    pictures: int  # that a student draws while it learns
    before: int  # that the fake score network learns from before
    batch: int
    trained: int  # prompts

    @classmethod
    def of(cls, quick: bool) -> Plan:
        """The whole plan, or a minute of it."""
        return cls(16, 16, 4, 16) if quick else cls(1280, 2400, 16, 512)

    @property
    def settings(self) -> Settings:
        """Of every arm."""
        return Settings(
            pictures=self.pictures, batch=self.batch, generator_rate=1e-4, fake_rate=FAKE_RATE, alpha=1.0, kappa4=GUIDANCE,
            steps=STEPS, generator_scale=1.0, ema_half_life=500, ema_rampup=0.3, warmup=0.05, decay=0.3,
        )  # fmt: skip


def task_of(world: World, generator: TinyUNet, fake: TinyUNet, trained: int, price: float | None) -> Task:
    """SiD on ``trained`` training prompts, whose numbers are the labels; with the oracle at a price, or without."""
    prompts = [p.text() for p in training_prompts(trained, seed=4)]
    with torch.no_grad():
        contexts = world.context([*prompts, ""])

    def numbered(network: TinyUNet) -> Callable[[Tensor, Tensor, Any], Tensor]:
        around = denoiser(network)
        return lambda x, sigma, rows: around(x, sigma, contexts[rows])

    def reward(latents: Tensor, rows: Tensor) -> Tensor:
        pictures = ((world.decoder.decode(latents) + 1) / 2).movedim(1, -1)
        return world.oracle.reward(pictures, [prompts[int(row)] for row in rows])

    def labels(rng: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        return torch.randint(trained, (batch,), generator=rng), torch.full((batch,), trained)

    for network in (generator, fake):
        network.requires_grad_(True)
    learned = list(fake.parameters()), list(generator.parameters())
    players = Players(numbered(load_unet("teacher")), numbered(fake), numbered(generator), *learned)
    return Task(
        players, generator, fake, SHAPE, labels, lambda steps: tuple(tiny_world_sigmas(steps)),
        EdmLevels(p_mean=-0.4, p_std=1.2), tilt=None if price is None else Tilt(reward, price),
    )  # fmt: skip


def fitted_fake(world: World, plan: Plan, folder: Path, say: Say) -> TinyUNet:
    """The teacher, taught to be the shipped student's score; in all arms the start, so that they soon have a true gradient."""
    fake, settings = load_unet("teacher"), plan.settings
    task = task_of(world, load_unet(f"student_{DEFAULT_STUDENT}"), fake, plan.trained, None)
    task.generator.requires_grad_(False)
    schedule = Schedule(plan.before, plan.batch, FAKE_RATE, 0.05, 0.5)
    run = kept_run(folder / FAKE, schedule, trained=plan.trained)

    def loss(rng: torch.Generator, batch: int) -> Tensor:
        objective = task.objective(settings, draw_steps(rng, STEPS))
        return fake_score_objective(task.players, objective, draws(task, objective, rng, batch, True)).total / batch

    watch = Watch(lambda step, _pictures, means: say(f"{FAKE} {step}: {means['loss']:.4g}"), 25)
    fake.load_state_dict(train(fake, loss, schedule, run, ema_half_life=200, watch=watch, save_every=50).shadow)
    return fake


def student(world: World, plan: Plan, name: str, price: float | None, folder: Path, say: Say, seed: int = 0) -> TinyUNet:
    """One arm; a run that is in ``folder`` goes on.

    Raises:
        ValueError: ``folder`` holds a run of this name with other settings.
    """
    generator, fake = load_unet(f"student_{DEFAULT_STUDENT}"), fitted_fake(world, plan, folder, say)
    settings = replace(plan.settings, seed=seed)
    task = task_of(world, generator, fake, plan.trained, price)
    watch = Watch(lambda step, _pictures, means: say(f"{name} {step}: {means['generator']:.4g}"), 10)
    run = kept_run(folder / name, settings, before=plan.before, trained=plan.trained, price=price)
    generator.load_state_dict(distil(task, settings, run, watch=watch, save_every=25).shadow)
    return generator.eval().requires_grad_(False)
