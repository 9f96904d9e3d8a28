"""A look that the tiny world's teacher has never seen, and a LoRA of it: what ``benchmarks.style`` makes fast.

The look is OpenMoji's: flat colours within black lines (npm's @iconify-json/openmoji, CC BY-SA 4.0; fetched, rendered, and not
shipped). Neither teacher nor judge has seen one of its icons. Three in four of the tiny world's subjects teach the LoRA, by
ordinary denoising; the others are only ever asked for, by their names.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..files import save_safetensors_atomically
from ..networks.preconditioning import karras_sigmas
from ..networks.tiny_unet import TinyUNet
from ..precision import autocast
from ..training.distill import Settings as SidSettings
from ..training.distill import distil
from ..training.loop import Schedule, Watch, train
from ..training.lora import Adapters, Lora, adaptable
from ..training.run_folder import RunFolder
from ..training.sid import edm_weight
from ..training.warm_start import begin_at
from ..world.recipe.concepts import BACKGROUNDS, CONCEPTS, ICONS
from ..world.recipe.data import BACKGROUND_COLOURS, SIZE, fetch_package, on_background, pose_of, render
from ..world.recipe.sampling import World
from ..world.recipe.student import LEVELS, consistency_loss
from ..world.recipe.teacher import P_MEAN, P_STD
from ..world.weights import GUIDANCE, SIGMA_MAX, SIGMA_MIN, load_unet
from .control_world import SHAPE, kept_run
from .sid_world import as_loras, prompted, with_lora

VENDOR, PACKAGE, POSES = "openmoji", ("@iconify-json/openmoji", "1.2.29"), 8
STYLE, RANK = "style", 16
STUDENT_RANK, STUDENT_BATCH, STEPS = 64, 16, 2  # of the fast students
HELD_OUT = 4  # every so manieth subject
BATCH = 32
EMPTY_CAPTIONS = 0.1  # for guidance, as the teacher was trained
Say = Callable[[str], None]


def subjects(held_out: bool) -> list[int]:
    """Numbers of the concepts that the LoRA learns from, or of those that it never sees."""
    return [i for i in range(len(CONCEPTS)) if (i % HELD_OUT == 1) == held_out]


def prompts_of(numbers: list[int], backgrounds: int) -> list[str]:
    """Every subject on so many backgrounds, each on others; no style is named, as a look without a trigger word has none."""
    colours = list(BACKGROUNDS)
    return [
        f"{CONCEPTS[number]} on {colours[(3 * number + 7 * k) % len(colours)]}" for number in numbers for k in range(backgrounds)
    ]  # fmt: skip


def fetch_icons(folder: Path) -> Tensor:
    """The vendor's icons, RGBA [concepts, POSES, 64, 64, 4] in 0..255; rendered once, then read from ``folder``.

    Raises:
        RuntimeError: npm is missing, or the registry has no such version.
    """
    kept = folder / f"{VENDOR}.safetensors"
    if not kept.exists():
        icons = json.loads((fetch_package(*PACKAGE, folder / "npm") / "icons.json").read_text(encoding="utf-8"))
        pictures = np.zeros((len(ICONS), POSES, SIZE, SIZE, 4), np.uint8)
        for i, icon in enumerate(ICONS):
            source = icons["icons"][icons.get("aliases", {}).get(icon, {}).get("parent", icon)]
            size = (float(source.get(side, icons[side])) for side in ("width", "height"))
            body, (width, height) = source["body"], size
            for pose in range(POSES):
                placed = pose_of(icon, pose, random.Random(f"{VENDOR}|{icon}|{pose}"))
                pictures[i, pose] = render(body, width, height, placed)
        save_safetensors_atomically({"rgba": torch.from_numpy(pictures)}, kept)
    with safe_open(kept, "pt") as file:
        return file.get_tensor("rgba")


class StyledPictures:
    """Latents of the subjects that teach, in every pose on every background, with the word vectors of their captions."""

    def __init__(self, world: World, icons: Tensor) -> None:
        numbers = subjects(held_out=False)
        rgba, parts = icons[numbers].transpose(0, 1), list[Tensor]()  # [poses, concepts, 64, 64, 4]
        with torch.inference_mode():
            for colour in BACKGROUND_COLOURS:
                flat = on_background(rgba.flatten(0, 1), colour[None]) * 2 - 1
                parts.append(torch.cat([world.decoder.encode(part) for part in flat.split(64)]).half())
        self.latents = torch.stack(parts).clone().view(len(parts), POSES, len(numbers), *SHAPE)
        names = [f"{CONCEPTS[number]} on {colour}" for colour in BACKGROUNDS for number in numbers]
        self.ids = world.words.encode(names).view(len(parts), len(numbers), -1)
        with torch.no_grad():
            self.empty = world.context([""])
            self.contexts = world.context(names).view(len(parts), len(numbers), *self.empty.shape[1:])

    def batch(self, rng: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Random latents [size, 32, 8, 8] and the word vectors of their captions, of which some are empty."""
        c, p, i = self._draw(rng, size)
        without = torch.rand(size, generator=rng) < EMPTY_CAPTIONS
        words = torch.where(without[:, None, None], self.empty, self.contexts[c, i])
        return self.latents[c, p, i].float(), words

    def with_ids(self, rng: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Likewise with the token ids [size, 16] of their captions, none of them empty."""
        c, p, i = self._draw(rng, size)
        return self.latents[c, p, i].float(), self.ids[c, i]

    def _draw(self, rng: torch.Generator, size: int) -> list[Tensor]:
        return [torch.randint(n, (size,), generator=rng) for n in self.latents.shape[:3]]


def teach_style(world: World, icons: StyledPictures, pictures: int, folder: Path, say: Say) -> Lora:
    """The LoRA of the look, learned by the teacher's own denoising loss (EDM eq. 2).

    Args:
        world: Its teacher is changed for good: the LoRA hangs on it, off.

    Raises:
        ValueError: ``folder`` holds another run.
    """
    adapters = Adapters(world.teacher.network, (STYLE,), RANK, seed=3)
    around = world.teacher

    def loss(rng: torch.Generator, size: int) -> Tensor:
        latents, words = icons.batch(rng, size)
        sigma = (torch.randn(size, generator=rng) * P_STD + P_MEAN).exp()
        noisy = latents + torch.randn(latents.shape, generator=rng) * sigma.view(-1, 1, 1, 1)
        with autocast(), adapters.on(STYLE):
            denoised = around(noisy, sigma, words)
        return (edm_weight(sigma) * (denoised.float() - latents).square().mean((1, 2, 3))).mean()

    schedule = Schedule(pictures=pictures, batch=BATCH, learning_rate=1e-3, decay=0.6)
    watch = Watch(lambda step, _p, means: say(f"style LoRA {step}: {means['loss']:.4g}"), 50)
    lora = adapters.of[STYLE]
    ema = train(
        lora, loss, schedule, kept_run(folder / "style", schedule, rank=RANK), seed=3, ema_half_life=1000, weight_decay=0.0,
        save_every=100, watch=watch,
    )  # fmt: skip
    lora.load_state_dict(ema.shadow)
    return lora


# --------------------------------------------------------------------------------------------------- its fast student


@dataclass(frozen=True)
class Way:
    """How a fast student of the styled teacher is made.

    Attributes:
        start: The published student whose change the generator's LoRA begins at; "" for the teacher itself.
        pictures: How many it draws while it learns.
        seed: Of the LoRAs' random start and of the run.
    """

    start: str
    pictures: int
    seed: int = 0


def sid_settings(way: Way) -> SidSettings:
    """The same for every start."""
    return SidSettings(
        pictures=way.pictures, batch=STUDENT_BATCH, generator_rate=3e-4, fake_rate=1e-3, alpha=1.0, kappa4=GUIDANCE, steps=STEPS,
        generator_scale=1.0, ema_half_life=500, ema_rampup=0.3, seed=way.seed,
    )  # fmt: skip


Look = Callable[[TinyUNet, int], None]
"""Told a student and after how many pictures."""


def distil_styled(world: World, styled: TinyUNet, way: Way, folder: Path, look: Look, every: int, say: Say) -> TinyUNet:
    """A student of ``styled`` in one step or two, as a LoRA on it by SiD; merged.

    Args:
        look: Shown the average every ``every`` iterations, the start too; what a resumed run has shown before is not shown again.

    Raises:
        ValueError: ``folder`` holds another run.
    """
    players, generator, fake = as_loras(styled, STUDENT_RANK, way.seed)
    if way.start:
        begin_at(generator, change_of(way.start))

    def show(tensors: Mapping[str, Tensor], pictures: int) -> None:
        look(with_lora(styled, generator, tensors), pictures)

    settings = sid_settings(way)
    task = prompted(world, players, generator, fake, prompts_of(subjects(held_out=False), len(BACKGROUNDS)))
    facts = {key: value for key, value in asdict(settings).items() if key != "pictures"}  # rates are constant: it may go on
    run = RunFolder(folder / f"{way.start or 'cold'} {way.seed}", "give another --work")
    run.claim({**facts, "start": way.start, "rank": STUDENT_RANK})
    if not run.checkpoint.exists():
        show(generator.state_dict(), 0)
    watch = Watch(
        lambda step, _p, means: say(f"{way.start or 'cold'} {way.seed}, {step}: {means['generator']:.4g}"), every,
        on_save=lambda ema, pictures: show(ema.shadow, pictures),
    )  # fmt: skip
    ema = distil(task, settings, run, watch=watch, save_every=every)
    return with_lora(styled, generator, ema.shadow)


def change_of(student: str) -> Callable[[str], Tensor]:
    """What made a student of the plain teacher, by the layer's name."""
    after, before = (adaptable(load_unet(name)) for name in (f"student_{student}", "teacher"))
    return lambda name: after[name].weight.detach() - before[name].weight.detach()


def consistency(world: World, styled: TinyUNet, icons: StyledPictures, pictures: int, folder: Path, say: Say) -> TinyUNet:
    """LCM's way (``world.recipe.student``): a consistency student of the styled teacher, on the pictures in the look.

    Raises:
        ValueError: ``folder`` holds another run.
    """
    guided = _Styled(world, styled)
    student = copy.deepcopy(styled).train().requires_grad_(True)
    schedule = Schedule(pictures=pictures, batch=BATCH, learning_rate=3e-4, warmup=0.03, decay=0.7)
    sigmas = karras_sigmas(LEVELS, SIGMA_MIN, SIGMA_MAX)

    def loss(rng: torch.Generator, size: int) -> Tensor:
        latents, ids = icons.with_ids(rng, size)
        return consistency_loss(student, guided, latents, ids, world.words.encode([""] * size), sigmas, rng)  # type: ignore[arg-type]

    watch = Watch(lambda step, _p, means: say(f"consistency {step}: {means['loss']:.4g}"), 10)
    run = kept_run(folder / "consistency", schedule)
    ema = train(student, loss, schedule, run, seed=61, ema_half_life=500, weight_decay=0.0, save_every=50, watch=watch)
    student.load_state_dict(ema.shadow)
    return student.eval().requires_grad_(False)


class _Styled:
    """The styled teacher as the recipe's consistency loss takes one."""

    def __init__(self, world: World, styled: TinyUNet) -> None:
        self.text, self.unet = world.text, styled
