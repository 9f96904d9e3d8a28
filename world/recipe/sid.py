"""Stage ``sid``: Score identity Distillation of the guided teacher into a one-step generator (arXiv 2404.04057, 2406.01561).

The generator starts from the consistency student, which draws in one step already, and not from the teacher: on two cores
that saves most of the way. It is trained to draw from the highest noise level, in one step or two, as the ``tiny-world``
preset calls it. The first round is SiD with prompts alone; the second adds SiDA's adversarial loss (arXiv 2410.14919) on the
pictures that the teacher was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...networks.tiny_unet import Denoiser, TinyUNet
from ...precision import autocast
from ...samplers.schedules import tiny_world_sigmas
from ...training.loop import Ema, Learner, Schedule, Watch
from ...training.loop import run as run_steps
from ...training.run_folder import RunFolder
from ...training.sid import EdmLevels, generate
from ...training.sid_iteration import Draws, Objective, Players, iterate
from ...training.variety import OFF, karras_path, variety_of
from ..weights import SIGMA_MIN
from .concepts import held_out_prompts
from .data import sheet
from .frechet import frechet, reference
from .latents import Latents, load_autoencoder
from .log import log_to
from .sampling import World
from .student import load_teacher
from .teacher import P_MEAN, P_STD, TextToImage, sample_prompts


@dataclass(frozen=True)
class Round:
    """A part of the training, with a fake score that goes on.

    Attributes:
        name: Of its checkpoint.
        schedule: Of its pictures.
        rate: The generator's learning rate.
        delay: The part of the round in which the fake score learns alone.
        adversarial: Factor of SiDA's loss, on the pictures that the teacher was trained on; 0 for none.
        guidance: Of the teacher, the paper's kappa4: less than samplers use, for the distance falls with it (SiD-LSG, Table 1).
        variety: See ``training.variety``.
    """

    name: str
    schedule: Schedule
    rate: float
    delay: float
    adversarial: float = 0.0
    guidance: float = 1.5
    variety: str = OFF


ROUNDS = (
    Round("sid_first", Schedule(16_000, 32, 1.0, warmup=0.035, decay=0.0), 5e-5, 0.14),
    Round("sid", Schedule(28_000, 32, 1.0, warmup=0.01, decay=0.6), 1e-4, 0.03, 0.01),
)
FAKE_RATE = 3e-4
TWO_STEPS = 0.3  # share of iterations in which the generator takes two steps
SHAPE = (32, 8, 8)


def about() -> dict[str, str]:
    """The student's card, as SiD Distill writes one, so that Load Student knows what it is."""
    from ... import __version__

    return {
        "apprentice": __version__,
        "method": "SiD with guidance (arXiv 2406.01561), then SiDA (2410.14919)",
        "teacher": "TinyWorldModel",
        "preset": "tiny-world",
        "kappas": json.dumps([1.0, 1.0, 1.0, ROUNDS[-1].guidance]),
        "images_seen": str(sum(each.schedule.steps * each.schedule.batch for each in ROUNDS)),
        "steps": "2",
    }


def denoiser(network: TinyUNet) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """``network`` as D(x, sigma [B, 1, 1, 1], words), computed in bfloat16."""
    around = Denoiser(network)

    def denoise(x: Tensor, sigma: Tensor, words: Any) -> Tensor:
        with autocast():
            return around(x, sigma.flatten(), words).float()

    return denoise


def with_features(network: TinyUNet) -> Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]]:
    """Likewise, with what comes out of the network's middle [B, 128, 4, 4], where the discriminator looks."""
    seen: list[Tensor] = []
    network.middle[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    denoise = denoiser(network)

    def both(x: Tensor, sigma: Tensor, words: Any) -> tuple[Tensor, Tensor]:
        seen.clear()
        return denoise(x, sigma, words), seen.pop().float()

    return both


def run(work: Path) -> None:
    """Train ``work/sid``; sheets of one step, and their distances in ``work/sid_curve.jsonl``."""
    latents = Latents.load(work)
    teacher = load_teacher(work, len(latents.words))
    generator, fake = TinyUNet(), TinyUNet()
    before = torch.load(RunFolder(work / "student").checkpoint, map_location="cpu", weights_only=True)
    generator.load_state_dict(before["ema"])
    fake.load_state_dict(teacher.unet.state_dict())
    players = Players(
        denoiser(teacher.unet), denoiser(fake), denoiser(generator), list(fake.parameters()), list(generator.parameters()),
        with_features(fake),
    )  # fmt: skip
    measure, seen = Measure(work, latents, teacher), 0
    for number, each in enumerate(ROUNDS):
        learners = {
            "generator": Learner(generator, _adam(generator), each.rate, each.delay),
            "fake": Learner(fake, _adam(fake), FAKE_RATE),
        }
        step = _step(players, learners, latents, teacher, each)
        ema, folder = Ema(generator, 6_000, rampup=0.3), RunFolder(work / each.name)
        if not seen and not folder.checkpoint.exists():
            measure(ema, 0)
        run_steps(
            learners, step, each.schedule, folder, ema=ema, ema_of=generator, seed=81 + number, save_every=125,
            watch=Watch(log_to(work / "sid.log"), 25, on_save=partial(measure, before=seen)),
        )  # fmt: skip
        generator.load_state_dict(ema.shadow)
        seen += each.schedule.steps * each.schedule.batch


def _adam(network: TinyUNet) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), betas=(0.0, 0.999), eps=1e-8)


def _step(
    players: Players, learners: dict[str, Learner], latents: Latents, teacher: TextToImage, part: Round
) -> Callable[[int, torch.Generator], dict[str, float]]:
    levels, batch = EdmLevels(p_mean=P_MEAN, p_std=P_STD), part.schedule.batch

    def objective_of(steps: int) -> Objective:
        sigmas = tuple(tiny_world_sigmas(steps))
        variety = None if part.variety == OFF else variety_of(part.variety, sigmas, partial(karras_path, least=SIGMA_MIN))
        return Objective(1.0, sigmas, levels, kappa4=part.guidance, adversarial=part.adversarial, variety=variety)

    objectives = [objective_of(steps) for steps in (1, 2)]

    def draws(rng: torch.Generator, fake_score: bool) -> Draws:
        real, ids = latents.batch(rng, batch)
        with torch.no_grad(), autocast():
            words, empty = teacher.text(torch.cat([ids, latents.words.encode([""]).expand(batch, -1)])).float().chunk(2)
        z, noise, between = (torch.randn(batch, *SHAPE, generator=rng) for _ in range(3))
        level = (torch.randn if fake_score else torch.rand)(batch, 1, 1, 1, generator=rng)
        return Draws(z, noise, level, words, empty, [between], real if part.adversarial else None)

    def step(_number: int, rng: torch.Generator) -> dict[str, float]:
        objective = objectives[int(torch.rand((), generator=rng) < TWO_STEPS)]
        result = iterate(
            players, learners["fake"].optimiser, learners["generator"].optimiser, objective, draws(rng, True), draws(rng, False)
        )
        return {"fake": result.fake_loss, "generator": result.generator_loss}

    return step


class Measure:
    """Distance and judge's score of the moving average's pictures, for the curve over pictures seen."""

    def __init__(self, work: Path, latents: Latents, teacher: TextToImage) -> None:
        self.work, self.world, self.reference = work, World(), reference()
        self.decoder = load_autoencoder(work / "autoencoder.safetensors")
        self.prompts = [p.text() for p in held_out_prompts()][:256]
        with torch.no_grad():
            self.shown = teacher.text(latents.words.encode(sample_prompts()))
            self.words = teacher.text(latents.words.encode(self.prompts))

    @torch.no_grad()
    def __call__(self, ema: Ema, pictures: int, before: int = 0) -> None:
        """Measure after ``before`` + ``pictures``, and now and then draw a sheet."""
        pictures += before
        network = TinyUNet().eval()
        network.load_state_dict(ema.shadow)
        z = torch.randn(len(self.prompts), *SHAPE, generator=torch.Generator().manual_seed(5))
        parts = [
            generate(denoiser(network), z[i : i + 64], self.words[i : i + 64], tiny_world_sigmas(1))
            for i in range(0, len(z), 64)
        ]
        images = self.world.pictures(torch.cat(parts))
        entry = {
            "pictures": pictures,
            "frechet": frechet(self.world.features(images).double().numpy(), *self.reference),
            "judge": float(self.world.judge.score(images, self.prompts).mean()),
        }
        print(entry, flush=True)
        with (self.work / "sid_curve.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if pictures % 8000 == 0:
            z = torch.randn(len(self.shown), *SHAPE, generator=torch.Generator().manual_seed(0))
            drawn = generate(denoiser(network), z, self.shown, tiny_world_sigmas(1))
            sheet((self.decoder.decode(drawn) + 1) / 2, 12, 2).save(self.work / f"sid_{pictures:07d}.png")
