"""A whole SiD run: from a teacher to a file with a one-step student. Torch alone; who the teacher is, is handed in."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .augment import AugmentDraws
from .loop import Ema, Learner, Means, Schedule, Watch, run
from .optimisers import ADAM, make_optimiser
from .processes import Processes
from .run_folder import RunFolder
from .sid import EdmLevels, Labels, TimestepLevels, add_noise, edm_weight, generate
from .sid_iteration import Draws, Objective, Players, iterate
from .tilted import Tilt
from .variety import ANCHOR, OFF, VARIETIES, Variety, karras_path, variety_of


@dataclass(frozen=True)
class Settings:
    """What a run is told, networks aside; it goes into the card of what the run makes.

    Attributes:
        pictures: How many the generator shall draw in all ("images seen").
        batch: Pictures an iteration.
        part: Pictures at a time; 0 for the whole batch. Gradients are accumulated: less memory, the same result.
        generator_rate: Learning rate of the generator.
        fake_rate: Learning rate of the fake score network.
        alpha: See ``generator_loss``.
        kappa1: Guidance of the fake score in its own training (SiD-LSG).
        kappa2: Guidance of the fake score where the generator is judged (kappa2 = kappa3).
        kappa4: Guidance of the teacher.
        steps: Steps of the student; above 1, each iteration draws the number from 1..steps.
        generator_scale: Factor of the generator's loss (``lsg``).
        fake_scale: Factor of the fake score's (``ls``).
        adversarial: Factor of SiDA's adversarial loss (``lsg_gan``, 0.01 there); 0 for none.
        ema_half_life: Of the student's moving average, in pictures.
        ema_rampup: The half-life is never more than this part of the pictures seen.
        generator_beta1: Adam's first beta of the generator; the fake score's is 0.
        eps: Adam's: 1e-8, 1e-6 in half precision.
        warmup: Part of the run in which the learning rates rise.
        decay: Part of the run, at its end, in which they fall; 0 keeps them, as the official runs do.
        delay: Part of the run in which the fake score learns alone. For a generator that does not start as the teacher.
        augment: Probability of EDM's augmentations in the fake score's half; pixel networks only.
        seed: Of all randomness.
        variety: What keeps it beside SiD's loss: "off", "anchor" or "consistency" (see ``variety``).
        optimiser: Of both networks, one of ``OPTIMISERS``.
    """

    pictures: int = 20_000
    batch: int = 32
    part: int = 0
    generator_rate: float = 1e-5
    fake_rate: float = 1e-5
    alpha: float = 1.2
    kappa1: float = 1.0
    kappa2: float = 1.0
    kappa4: float = 1.0
    steps: int = 1
    generator_scale: float = 100.0
    fake_scale: float = 1.0
    adversarial: float = 0.0
    ema_half_life: float = 500_000
    ema_rampup: float = 0.05
    generator_beta1: float = 0.0
    eps: float = 1e-8
    warmup: float = 0.0
    decay: float = 0.0
    delay: float = 0.0
    augment: float = 0.0
    seed: int = 0
    variety: str = OFF
    optimiser: str = ADAM

    def __post_init__(self) -> None:
        for name in ("pictures", "batch", "steps", "generator_rate", "fake_rate", "alpha"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}.")
        if self.variety not in VARIETIES:
            raise ValueError(f"variety is '{self.variety}', not one of: {', '.join(VARIETIES)}.")

    @property
    def schedule(self) -> Schedule:
        """Steps and learning rates over the run."""
        return Schedule(self.pictures, self.batch, 1.0, self.warmup, self.decay)


@dataclass(frozen=True)
class Preset:
    """A published run: its settings, and the Frechet inception distance that its authors report."""

    settings: Settings
    fid: float
    note: str


_EDM = Settings(pictures=500_000_000, batch=256, augment=0.12)
_HALF = 1e-6  # Adam's eps in half precision
_STABLE_DIFFUSION = Settings(
    pictures=10_000_000, batch=512, generator_rate=1e-6, fake_rate=1e-6, alpha=1.0, kappa1=1.5, kappa2=1.5, kappa4=1.5,
    generator_scale=1.0, ema_half_life=50_000,
)  # fmt: skip
PRESETS: dict[str, Preset] = {
    "cifar10-uncond": Preset(_EDM, 1.923, "CIFAR-10, unconditional"),
    "cifar10-cond": Preset(replace(_EDM, pictures=800_000_000), 1.710, "CIFAR-10, by class"),
    "imagenet64-cond": Preset(
        replace(_EDM, pictures=1_000_000_000, batch=8192, generator_rate=4e-6, fake_rate=4e-6, ema_half_life=2_000_000,
                augment=0.0, eps=_HALF), 1.524, "ImageNet 64x64",
    ),
    "ffhq64": Preset(replace(_EDM, batch=512, augment=0.15, generator_beta1=0.9, eps=_HALF), 1.550, "FFHQ 64x64"),
    "afhqv2-64": Preset(
        replace(_EDM, batch=512, generator_rate=5e-6, fake_rate=5e-6, alpha=1.0, augment=0.15, eps=_HALF), 1.628, "AFHQv2 64x64"
    ),
    "sd15": Preset(_STABLE_DIFFUSION, 8.15, "Stable Diffusion 1.5, 512x512, all kappas 1.5; zero-shot on COCO"),
    "sd21": Preset(_STABLE_DIFFUSION, 9.52, "Stable Diffusion 2.1 base, 512x512, all kappas 1.5; zero-shot on COCO"),
}  # fmt: skip
"""The official runs (mingyuanzhou/SiD ``run_sid.sh``, mingyuanzhou/SiD-LSG); FIDs are the papers', not measured here."""


@dataclass
class Task:
    """What is distilled: the networks, and where their inputs come from.

    Attributes:
        players: The three networks as denoisers.
        generator: What learns of the generator: the network, or its LoRA alone. This is averaged and saved.
        fake: Likewise of the fake score network.
        shape: Of one picture or latent, (C, H, W).
        labels: (random source, batch) -> conditions of that many pictures, and the empty condition where there is guidance.
        sigmas: (steps) -> the noise levels at which a student of that many steps is called.
        path: (first level, steps) -> the levels from there to 0 along which the teacher goes in that many steps.
        levels: The noise levels at which both networks are judged.
        weight: Of the fake score's loss.
        noising: How pictures and noise are mixed.
        device: Where the networks are.
        real: (random source, batch) -> real pictures, for the adversarial loss.
        tilt: What the student shall please, and at what price; see ``tilted``.
    """

    players: Players
    generator: nn.Module
    fake: nn.Module
    shape: tuple[int, ...]
    labels: Callable[[torch.Generator, int], tuple[Labels, Labels]]
    sigmas: Callable[[int], tuple[float, ...]]
    levels: EdmLevels | TimestepLevels = field(default_factory=EdmLevels)
    weight: Callable[[Tensor], Tensor] = edm_weight
    noising: Callable[[Tensor, Tensor, Tensor], Tensor] = add_noise
    device: torch.device | str = "cpu"
    real: Callable[[torch.Generator, int], Tensor] | None = None
    path: Callable[[float, int], tuple[float, ...]] = karras_path
    tilt: Tilt | None = None

    def objective(self, settings: Settings, steps: int) -> Objective:
        """What is minimised when the student takes ``steps`` steps."""
        return Objective(
            settings.alpha, self.sigmas(steps), self.levels, settings.kappa1, settings.kappa2, settings.kappa4, self.weight,
            self.noising, settings.fake_scale, settings.generator_scale, settings.adversarial,
            augment=settings.augment, variety=self._variety(settings.variety, self.sigmas(steps)), tilt=self.tilt,
        )  # fmt: skip

    def _variety(self, kind: str, sigmas: tuple[float, ...]) -> Variety | None:
        return None if kind == OFF else variety_of(kind, sigmas, self.path)

    def draw(self, z: Tensor, labels: Labels, steps: int = 1, between: tuple[Tensor, ...] = ()) -> Tensor:
        """The student's pictures, with the generator's present weights and without gradient."""
        with torch.no_grad():
            return generate(self.players.generator, z, labels, self.sigmas(steps), between, self.noising)


def distil(
    task: Task, settings: Settings, folder: RunFolder, *, watch: Watch | None = None, save_every: int = 250,
    processes: Processes | None = None,
) -> Ema:  # fmt: skip
    """Run SiD from ``task`` to its end and return the moving average of ``task.generator``.

    Args:
        folder: Where the run is saved, and resumed from if it is there.
        watch: Who is told, and who may interrupt.
        save_every: Iterations between saves.
        processes: This process among several.

    Raises:
        KeyboardInterrupt: The run was interrupted; the checkpoint is up to date, and the same call resumes.
        FloatingPointError: A loss is no longer finite.
        ValueError: The settings do not fit the task.
    """
    processes, watch = processes or Processes(), watch or Watch()
    if settings.adversarial and (task.real is None or task.players.fake_features is None):
        raise ValueError("The adversarial loss needs real pictures and a pixel network; set adversarial to 0.")
    learners = {
        "fake": Learner(task.fake, _optimiser(task.players.fake_parameters, 0.0, settings), settings.fake_rate),
        "generator": Learner(
            task.generator, _optimiser(task.players.generator_parameters, settings.generator_beta1, settings),
            settings.generator_rate, settings.delay,
        ),
    }  # fmt: skip
    ema = Ema(task.generator, settings.ema_half_life, settings.ema_rampup)
    rows, cancelled, lost, told = processes.rows(settings.batch), False, 0, False

    def step(number: int, rng: torch.Generator) -> Means:
        # What an anchored student's first step says is no picture yet, so it is drawn in all its steps.
        steps = settings.steps if settings.variety == ANCHOR else draw_steps(rng, settings.steps)
        objective = task.objective(settings, steps)
        for_fake, for_generator = (draws(task, objective, rng, settings.batch, fake).rows(rows).to(task.device)
                                   for fake in (True, False))  # fmt: skip
        # Dropout takes from torch's own source: seeded, so that a resumed run goes on as it would have.
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)) + processes.rank)
        result = iterate(
            task.players, learners["fake"].optimiser, learners["generator"].optimiser, objective, for_fake, for_generator,
            part=settings.part, reduce=processes.add_gradients, batch=settings.batch,
            interrupted=watch.interrupted if processes.count == 1 else None, cancelled_by=watch.cancelled_by,
        )  # fmt: skip
        nonlocal cancelled, lost, told
        cancelled = cancelled or result.cancelled
        halves = {"dropped": result.fake_dropped, "of generator's": result.generator_dropped}
        means = processes.total({"fake": result.fake_loss, "generator": result.generator_loss, **halves})
        lost = lost + 1 if max(means[half] for half in halves) >= settings.batch else 0  # some may be, as in the official loop
        if lost and (settings.batch > 1 or lost > 1):
            raise FloatingPointError(_nothing_learned(number, task))
        means["dropped"] += means.pop("of generator's")
        if means["dropped"] and not told:
            told = True
            watch.say("Pictures whose loss isn't finite (NaN) are left out; 'dropped' says how many, of both halves of a step.")
        return means

    watched = replace(watch, interrupted=lambda: processes.any(cancelled or watch.interrupted()))
    run(
        learners, step, settings.schedule, folder, ema=ema, ema_of=task.generator, seed=settings.seed, save_every=save_every,
        watch=watched, main_process=processes.main,
    )  # fmt: skip
    return ema


def _nothing_learned(number: int, task: Task) -> str:
    """Why a run stops whose pictures all lack a finite loss, in the iteration ``number``."""
    remedy = "lower the learning rates" + (
        "." if number else ", or compute in another precision, bf16 or fp32, since it is so from the start."
    )  # fmt: skip
    scores = "" if task.tilt is None else (
        " Or the oracle scores none of the pictures, or none with a gradient (NaN): try it on such pictures."
    )  # fmt: skip
    return f"Nothing can be learned: the loss is no longer finite; {remedy}{scores}"


def left_out(losses: Sequence[Mapping[str, Any]]) -> str:
    """How many pictures of a run, by its log, had no finite loss; nothing where none."""
    steps = [0, *(int(entry["step"]) for entry in losses)]
    count = round(sum(float(losses[i].get("dropped", 0)) * (steps[i + 1] - steps[i]) for i in range(len(losses))))
    return f"{count:,} pictures had no finite loss (NaN) and were left out. " if count else ""


def draw_steps(rng: torch.Generator, most: int) -> int:
    """How many steps the student takes in this iteration: 1..``most``, each as likely."""
    return most - int(torch.rand((), generator=rng).item() * most)


def draws(task: Task, objective: Objective, rng: torch.Generator, batch: int, fake: bool) -> Draws:
    """The randomness of half an iteration, drawn on the CPU so that it is the same on every device."""
    labels, empty = task.labels(rng, batch)
    if fake and objective.caption_dropout and empty is not None:
        labels = drop_captions(labels, empty, torch.rand(batch, generator=rng) < objective.caption_dropout)
    z, noise, *between = (torch.randn(batch, *task.shape, generator=rng) for _ in range(1 + len(objective.sigmas)))
    shape = (batch, *(1 for _ in task.shape))
    level = objective.levels.draw_fake(shape, rng) if fake else torch.rand(shape, generator=rng)
    real = task.real(rng, batch) if fake and objective.adversarial and task.real is not None else None
    augmented = AugmentDraws.draw(batch, rng) if fake and objective.augment else None
    return Draws(z, noise, level, labels, empty, between, real, augmented)


def drop_captions(labels: Labels, empty: Labels, dropped: Tensor) -> Labels:
    """``labels`` with those of the ``dropped`` [B] rows replaced by the empty condition."""
    if isinstance(labels, Tensor) and isinstance(empty, Tensor):
        return drop_rows(labels, empty, dropped)
    if isinstance(labels, Mapping) and isinstance(empty, Mapping):
        return {key: drop_rows(value, empty[key], dropped) for key, value in labels.items()}
    return labels


def drop_rows(values: Tensor, empty: Tensor, dropped: Tensor) -> Tensor:
    """``values`` [B, ...] with the ``dropped`` [B] rows from ``empty``."""
    return torch.where(dropped.view(-1, *[1] * (values.ndim - 1)), empty, values)


def _optimiser(parameters: Any, beta1: float, settings: Settings) -> torch.optim.Optimizer:
    return make_optimiser(settings.optimiser, parameters, 0.0, (beta1, 0.999), settings.eps)


def card(settings: Settings, teacher: str, teacher_fingerprint: str, **more: Any) -> dict[str, str]:
    """What a student's file says about its making, as safetensors metadata (text by name).

    Args:
        teacher: The teacher's name.
        teacher_fingerprint: Of its weights.
        **more: ``preset`` (how to draw with it), ``base`` (the model family), ``method`` and the like.
    """
    from .. import __version__

    facts = {
        "format": "pt",
        "apprentice": __version__,
        "method": "SiD (arXiv 2404.04057)" if settings.kappa4 == 1 else "SiD with guidance (arXiv 2406.01561)",
        "teacher": teacher,
        "teacher_fingerprint": teacher_fingerprint,
        "images_seen": str(settings.schedule.steps * settings.batch),
        "steps": str(settings.steps),
        "kappas": json.dumps([settings.kappa1, settings.kappa2, settings.kappa2, settings.kappa4]),
        "settings": json.dumps(asdict(settings)),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
    }
    return facts | {key: str(value) for key, value in more.items()}
