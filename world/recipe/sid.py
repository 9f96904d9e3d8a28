"""Stage ``sid``: SiD with guidance (arXiv 2404.04057, 2406.01561) of the teacher into a one-step generator.

The generator starts from the consistency student, which draws in one step already, and not from the teacher: on two cores
that saves most of the way. It is trained to draw from the highest noise level, in one step or two, as the ``tiny-world``
preset calls it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...networks.tiny_unet import Denoiser, TinyUNet
from ...samplers.schedules import tiny_world_sigmas
from ...training.loop import Ema, Learner, Schedule, Watch, autocast, run as run_steps
from ...training.sid import Draws, EdmLevels, Objective, Players, generate, iterate
from .concepts import held_out_prompts
from .data import sheet
from .latents import Latents, load_autoencoder
from .log import log_to
from .student import load_teacher
from .teacher import P_MEAN, P_STD, sample_prompts

SCHEDULE = Schedule(pictures=56_000, batch=32, learning_rate=1.0, decay=0.6, warmup=0.01)
GENERATOR_RATE, FAKE_RATE = 5e-5, 3e-4
TEACHER_GUIDANCE = 1.5  # the paper's kappa4: less than samplers use, for the distance falls with it (SiD-LSG, Table 1)
TWO_STEPS = 0.3  # share of iterations in which the generator takes two steps
SHAPE = (32, 8, 8)


def denoiser(network: TinyUNet) -> Any:
    """``network`` as D(x, sigma [B, 1, 1, 1], words), computed in bfloat16."""
    around = Denoiser(network)

    def denoise(x: Tensor, sigma: Tensor, words: Tensor) -> Tensor:
        with autocast():
            return around(x, sigma.flatten(), words).float()

    return denoise


def run(work: Path) -> None:
    """Train ``work/sid.ckpt``; sheets of one step, and their distances in ``work/sid_curve.jsonl``."""
    latents = Latents.load(work)
    teacher = load_teacher(work, len(latents.words))
    generator, fake = TinyUNet(), TinyUNet()
    generator.load_state_dict(torch.load(work / "student.ckpt", map_location="cpu", weights_only=True)["ema"])
    fake.load_state_dict(teacher.unet.state_dict())
    adam = {"betas": (0.0, 0.999), "eps": 1e-8}
    learners = {
        "generator": Learner(generator, torch.optim.Adam(generator.parameters(), **adam), GENERATOR_RATE, delay=0.04),
        "fake": Learner(fake, torch.optim.Adam(fake.parameters(), **adam), FAKE_RATE),
    }
    players = Players(
        denoiser(teacher.unet), denoiser(fake), denoiser(generator), list(fake.parameters()), list(generator.parameters())
    )
    objectives = [
        Objective(alpha=1.0, sigmas=tuple(tiny_world_sigmas(steps)), levels=EdmLevels(p_mean=P_MEAN, p_std=P_STD), kappa4=TEACHER_GUIDANCE)
        for steps in (1, 2)
    ]

    def draws(rng: torch.Generator, size: int, fake_score: bool) -> Draws:
        _, ids = latents.batch(rng, size)
        with torch.no_grad(), autocast():
            words, empty = teacher.text(torch.cat([ids, latents.words.encode([""]).expand(size, -1)])).float().chunk(2)
        z, noise, between = (torch.randn(size, *SHAPE, generator=rng) for _ in range(3))
        level = (torch.randn if fake_score else torch.rand)(size, 1, 1, 1, generator=rng)
        return Draws(z, noise, level, words, empty, [between])

    def step(rng: torch.Generator) -> dict[str, float]:
        objective = objectives[int(torch.rand((), generator=rng) < TWO_STEPS)]
        result = iterate(
            players, learners["fake"].optimiser, learners["generator"].optimiser, objective,
            draws(rng, SCHEDULE.batch, True), draws(rng, SCHEDULE.batch, False),
        )  # fmt: skip
        return {"fake": result.fake_loss, "generator": result.generator_loss}

    measure = Measure(work, latents, teacher)
    ema = Ema(generator, 6_000, rampup=0.3)
    if not (work / "sid.ckpt").exists():
        measure(ema, 0)
    run_steps(
        learners, step, SCHEDULE, work / "sid.ckpt", ema=ema, ema_of=generator, seed=81, save_every=125,
        watch=Watch(log_to(work / "sid.log"), log=work / "sid_loss.jsonl", report_every=25, on_save=measure),
    )  # fmt: skip


class Measure:
    """Distance and judge's score of the moving average's pictures, for the curve over pictures seen."""

    def __init__(self, work: Path, latents: Latents, teacher: Any) -> None:
        from ...benchmarks.adaptive import reference
        from ...benchmarks.world import World

        self.work, self.decoder, self.world, self.reference = work, load_autoencoder(work / "autoencoder.safetensors"), World(), reference()
        self.prompts = [p.text() for p in held_out_prompts()][:256]
        with torch.no_grad():
            self.shown = teacher.text(latents.words.encode(sample_prompts()))
            self.words = teacher.text(latents.words.encode(self.prompts))

    @torch.no_grad()
    def __call__(self, ema: Ema, pictures: int) -> None:
        from ...benchmarks.figures import frechet

        network = TinyUNet().eval()
        network.load_state_dict(ema.shadow)
        rng = torch.Generator().manual_seed(5)
        z = torch.randn(len(self.prompts), *SHAPE, generator=rng)
        drawn = torch.cat([
            generate(denoiser(network), z[i : i + 64], self.words[i : i + 64], tiny_world_sigmas(1)) for i in range(0, len(z), 64)
        ])
        images = self.world.pictures(drawn)
        features = self.world.features(images).double().numpy()
        entry = {"pictures": pictures, "frechet": frechet(features, *self.reference),
                 "judge": float(self.world.judge.score(images, self.prompts).mean())}
        print(entry, flush=True)
        with (self.work / "sid_curve.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if pictures % 8000 == 0:
            context = self.shown
            z = torch.randn(len(context), *SHAPE, generator=torch.Generator().manual_seed(0))
            latents = generate(denoiser(network), z, context, tiny_world_sigmas(1))
            sheet((self.decoder.decode(latents) + 1) / 2, 12, 2).save(self.work / f"sid_{pictures:07d}.png")
