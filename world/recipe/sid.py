"""Stage ``sid``: Score identity Distillation of the teacher into a generator of one step or two (arXiv 2404.04057, 2406.01561).

As an artist would do it with *SiD Distill*, and with prompts alone: generator and fake score are LoRAs on the shipped teacher
(``world/weights``, so ``export`` comes first), the generator begins as the teacher itself, and an iteration draws the number of
its steps. What it learned is merged into a whole student, as the pack ships one. All in float32, so that machines agree.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...files import write_atomically
from ...networks.preconditioning import karras_sigmas
from ...networks.tiny_unet import Denoiser, TinyUNet
from ...precision import autocast
from ...samplers.schedules import tiny_world_sigmas
from ...training.distill import Settings, Task, distil
from ...training.loop import Ema, Watch
from ...training.lora import Adapters, Lora, merge, switched, untrained
from ...training.run_folder import RunFolder, read_lines
from ...training.sid import EdmLevels, generate
from ...training.sid_iteration import Players
from ..weights import load_unet
from .concepts import held_out_prompts, training_prompts
from .data import sheet
from .frechet import frechet, reference
from .log import log_to
from .sampling import World
from .teacher import P_MEAN, P_STD, sample_prompts

RANK = 64
SETTINGS = Settings(
    pictures=4_000, batch=16, generator_rate=3e-4, fake_rate=1e-3, alpha=1.0, kappa4=1.05, steps=2, generator_scale=1.0,
    ema_half_life=800, ema_rampup=0.3, decay=0.4, seed=81,
)  # fmt: skip
PROMPTS = 2048  # of training
SHAPE = (32, 8, 8)
LEVELS = EdmLevels(p_mean=P_MEAN, p_std=P_STD)
LOWEST = 0.03  # where the teacher's way ends, before the last step to 0


def about() -> dict[str, str]:
    """The student's card, as SiD Distill writes one, so that Load Student knows what it is."""
    from ... import __version__

    settings = SETTINGS
    return {
        "apprentice": __version__,
        "method": "SiD with guidance (arXiv 2406.01561), as LoRAs",
        "teacher": "TinyWorldModel",
        "preset": "tiny-world",
        "kappas": json.dumps([settings.kappa1, settings.kappa2, settings.kappa2, settings.kappa4]),
        "images_seen": str(settings.schedule.steps * settings.batch),
        "steps": str(settings.steps),
        "settings": json.dumps(asdict(settings) | {"rank": RANK}),
    }


def denoiser(network: TinyUNet, half: bool = True) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """``network`` as D(x, sigma [B, 1, 1, 1], words), computed in bfloat16 where the machine has it, unless not ``half``."""
    around = Denoiser(network)

    def denoise(x: Tensor, sigma: Tensor, words: Any) -> Tensor:
        with autocast(None if half else False):
            return around(x, sigma.flatten(), words).float()

    return denoise


def as_loras(teacher: TinyUNet, rank: int, seed: int, half: bool = True) -> tuple[Players, Lora, Lora]:
    """SiD's three networks on one copy of ``teacher``, and the LoRAs of the generator and of the fake score."""
    base = copy.deepcopy(teacher)
    adapters, denoise = Adapters(base, ("generator", "fake"), rank, seed), denoiser(base, half)
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


def run(work: Path) -> None:
    """Train ``work/sid`` and write ``work/sid/student.pt``; sheets of one step, and their distances in ``sid_curve.jsonl``."""
    world, teacher = World(), load_unet("teacher")
    players, generator, fake = as_loras(teacher, RANK, SETTINGS.seed, half=False)
    task = prompted(world, players, generator, fake, [p.text() for p in training_prompts(PROMPTS, seed=4)])
    measure, folder = Measure(work, world), RunFolder(work / "sid")

    def look(lora: Mapping[str, Tensor], pictures: int) -> None:
        measure(with_lora(teacher, generator, lora), pictures)

    if not folder.checkpoint.exists():
        look(generator.state_dict(), 0)
    watch = Watch(log_to(work / "sid.log"), 25, on_save=lambda ema, pictures: look(ema.shadow, pictures))
    ema: Ema = distil(task, SETTINGS, folder, watch=watch, save_every=50)
    student = with_lora(teacher, generator, ema.shadow).state_dict()
    write_atomically(folder.path / "student.pt", lambda part: torch.save(student, part))


class Measure:
    """Distance and judge's score of a student's pictures in one step, for the curve over pictures seen."""

    def __init__(self, work: Path, world: World) -> None:
        self.work, self.world, self.reference = work, world, reference()
        self.prompts = [p.text() for p in held_out_prompts()][:256]
        with torch.no_grad():
            self.words, self.shown = world.context(self.prompts), world.context(sample_prompts())

    @torch.no_grad()
    def __call__(self, network: TinyUNet, pictures: int) -> None:
        """Measure ``network`` after so many ``pictures``, and draw a sheet; what a stopped run wrote beyond them goes."""
        z = torch.randn(len(self.prompts), *SHAPE, generator=torch.Generator().manual_seed(5))
        images = self._drawn(network, z, self.words)
        entry = {
            "pictures": pictures,
            "frechet": frechet(self.world.features(images).double().numpy(), *self.reference),
            "judge": float(self.world.judge.score(images, self.prompts).mean()),
        }
        print(entry, flush=True)
        path = self.work / "sid_curve.jsonl"
        before = [each for each in read_lines(path, "pictures") if each["pictures"] < pictures]
        lines = "".join(json.dumps(each) + "\n" for each in [*before, entry])
        write_atomically(path, lambda part: part.write_text(lines, encoding="utf-8"))
        z = torch.randn(len(self.shown), *SHAPE, generator=torch.Generator().manual_seed(0))
        sheet(self._drawn(network, z, self.shown).movedim(-1, 1), 12, 2).save(self.work / f"sid_{pictures:07d}.png")

    def _drawn(self, network: TinyUNet, z: Tensor, words: Tensor) -> Tensor:
        """Pictures [B, 64, 64, 3] in one step."""
        rows, levels = range(0, len(z), 64), tiny_world_sigmas(1)
        parts = [generate(denoiser(network, half=False), z[i : i + 64], words[i : i + 64], levels) for i in rows]
        return self.world.pictures(torch.cat(parts))
