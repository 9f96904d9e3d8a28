"""SiD on the tiny world, as the benchmarks distil: by prompts alone, from a student that is there, or as LoRAs on a teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.preconditioning import karras_sigmas
from ..networks.tiny_unet import TinyUNet
from ..samplers.schedules import tiny_world_sigmas
from ..training.distill import Settings, Task
from ..training.lora import Adapters, Lora, merge, switched, untrained
from ..training.sid import EdmLevels
from ..training.sid_iteration import Players
from ..world.recipe.concepts import training_prompts
from ..world.recipe.sampling import World
from ..world.recipe.sid import denoiser
from ..world.weights import load_unet
from .control_world import SHAPE

GUIDANCE = 1.5  # of the teacher in SiD
LOWEST = 0.03  # where the teacher's way ends, before the last step to 0
LEVELS = EdmLevels(p_mean=-0.4, p_std=1.2)
SETTINGS = Settings(
    batch=32, generator_rate=3e-5, fake_rate=3e-4, alpha=1.0, kappa4=GUIDANCE, steps=2, generator_scale=1.0, ema_half_life=1500,
    ema_rampup=0.3, warmup=0.05, delay=0.12,
)  # fmt: skip


def student_task(world: World, teacher: TinyUNet, start: str, prompts: int = 512) -> Task:
    """Distil ``teacher`` into the student called ``start``, at all noise levels, on some of the training prompts."""
    generator, fake = load_unet(f"student_{start}"), load_unet("teacher")
    for network in (generator, fake):
        network.requires_grad_(True)
    players = Players(
        denoiser(teacher), denoiser(fake), denoiser(generator), list(fake.parameters()), list(generator.parameters())
    )
    return prompted(world, players, generator, fake, [p.text() for p in training_prompts(prompts, seed=4)])


def prompted(world: World, players: Players, generator: nn.Module, fake: nn.Module, prompts: list[str]) -> Task:
    """SiD of any ``players`` on ``prompts``; their labels are word vectors."""
    with torch.no_grad():
        contexts, empty = world.context(prompts), world.context([""])

    def labels(rng: torch.Generator, batch: int) -> tuple[Any, Any]:
        return contexts[torch.randint(len(prompts), (batch,), generator=rng)], empty.expand(batch, -1, -1)

    return Task(
        players, generator, fake, SHAPE, labels, lambda steps: tuple(tiny_world_sigmas(steps)), LEVELS,
        path=lambda first, steps: tuple(karras_sigmas(steps, LOWEST, first).tolist()),
    )  # fmt: skip


def as_loras(teacher: TinyUNet, rank: int, seed: int) -> tuple[Players, Lora, Lora]:
    """SiD's three networks on one copy of ``teacher``, and the LoRAs of the generator and of the fake score."""
    base = copy.deepcopy(teacher)
    adapters, denoise = Adapters(base, ("generator", "fake"), rank, seed), denoiser(base)
    generator, fake = adapters.of["generator"], adapters.of["fake"]
    of_teacher, of_fake, of_generator = (switched(denoise, adapters, name) for name in (None, "fake", "generator"))
    return Players(of_teacher, of_fake, of_generator, list(fake.parameters()), list(generator.parameters())), generator, fake


def with_lora(network: TinyUNet, lora: Lora, tensors: Mapping[str, Tensor] | None = None) -> TinyUNet:
    """A copy of ``network`` with a LoRA in its weights: with these ``tensors``, or its own."""
    merged, filled = copy.deepcopy(network), copy.deepcopy(lora)
    if tensors is not None:
        filled.load_state_dict(dict(tensors))
    merge(untrained(merged), filled)
    return merged.eval().requires_grad_(False)
