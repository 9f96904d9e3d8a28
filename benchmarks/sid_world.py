"""SiD on the tiny world, as the benchmarks distil: from a student that is there, by prompts alone."""

from __future__ import annotations

from ..networks.tiny_unet import TinyUNet
from ..training.distill import Settings, Task
from ..training.sid_iteration import Players
from ..world.recipe.concepts import training_prompts
from ..world.recipe.sampling import World
from ..world.recipe.sid import denoiser, prompted
from ..world.weights import load_unet

GUIDANCE = 1.5  # of the teacher in SiD
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
