"""PromptKD's two stages (arXiv 2403.02781) as runs that can be stopped and resumed to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..networks.prompted_clip import PromptedClip, PromptedStudent
from ..precision import autocast
from . import promptkd
from .held_out import BestWeights, split
from .loop import Learner, Means, Schedule, Watch, run
from .processes import Processes
from .promptkd import Own, aggregation_weights, distill_step, epoch_rate, learned_tokens, optimiser_for, teacher_step
from .run_folder import RunFolder


class Pictures(Protocol):
    """Pictures of a domain, preprocessed: what a run draws its batches from."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], epoch: int) -> Tensor:
        """[B, 3, S, S]; the augmentation of a picture depends on the epoch and its index alone."""
        ...


@dataclass(frozen=True)
class EpochSchedule(Schedule):
    """Steps counted in whole epochs, a batch that isn't full left out; the rate changes between epochs (see ``epoch_rate``)."""

    pictures: int = 0  # follows from the others
    batch: int = 8
    learning_rate: float = 0.005
    in_an_epoch: int = 1
    epochs: int = 20
    warmup_epochs: int = 1
    warmup_rate: float = 1e-5

    @property
    def steps_an_epoch(self) -> int:
        """Full batches in an epoch, at least one."""
        return max(self.in_an_epoch // self.batch, 1)

    @property
    def steps(self) -> int:
        """Optimiser steps in the whole run."""
        return self.epochs * self.steps_an_epoch

    def factor(self, step: int) -> float:
        """The learning rate of ``step`` as a part of the highest."""
        epoch = step // self.steps_an_epoch
        return epoch_rate(epoch, self.epochs, self.learning_rate, self.warmup_epochs, self.warmup_rate) / self.learning_rate


CLASSES, ODDS = TARGETS = ("classes", "odds")
RANDOM, WORDS = STARTS = ("random", "words")
SINCE = ("blocks", "tower_rate", "target", "start", "held_out")
"""Settings of versions after 0.5: a run that leaves them as they are is the run that it was before them."""


@dataclass(frozen=True)
class Settings:
    """The published settings of stage 2; ``precision`` is fp32, bf16 or fp16.

    Attributes:
        blocks: The tower's last blocks that learn too, by AdamW with ``tower_rate``; see ``last_blocks``.
        target: ``classes``: the published loss; ``odds`` of the prompt's class: ``odds_loss``.
        start: How the projector begins: ``random``, as published, or from the ``words``; see ``word_start``.
        held_out: The share of the pictures that decides which epoch is kept; 0: the last.
    """

    epochs: int = 20
    batch: int = 8
    learning_rate: float = 0.005
    temperature: float = 1.0
    weight: float = 1000.0
    warmup_epochs: int = 1
    precision: str = "fp32"
    seed: int = 0
    blocks: int = 0
    tower_rate: float = 3e-5
    target: str = CLASSES
    start: str = RANDOM
    held_out: float = 0.0

    @property
    def loss_scale(self) -> float:
        """What gradients are multiplied by on their way through a float16 tower."""
        return 1024.0 if self.precision == "fp16" else 1.0

    @property
    def patience(self) -> int:
        """Epochs without a lower loss on what is held out, after which a run stops: a fifth of them, at least three."""
        return max(3, self.epochs // 5)

    def schedule(self, pictures: int) -> EpochSchedule:
        """For a domain of so many pictures, those held out among them.

        Raises:
            ValueError: There are none.
        """
        if pictures < 1:
            raise ValueError("There are no pictures to learn from; give a folder with pictures of the domain.")
        pictures = len(split(pictures, self.held_out, self.seed)[0])
        return EpochSchedule(
            batch=min(self.batch, pictures), learning_rate=self.learning_rate, in_an_epoch=pictures, epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
        )  # fmt: skip


def batch_of(number: int, schedule: EpochSchedule, seed: int, rows: slice) -> tuple[int, list[int]]:
    """The epoch of a step, by its number, and the indices of the pictures in some rows of its batch."""
    epoch, place = divmod(number, schedule.steps_an_epoch)
    order = epoch_order(schedule.in_an_epoch, epoch, seed)
    return epoch, order[place * schedule.batch : (place + 1) * schedule.batch][rows]


def epoch_order(count: int, epoch: int, seed: int) -> list[int]:
    """The order of ``count`` pictures in an epoch; a function of the seed and the epoch alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tolist()


class _Aggregate(nn.Module):
    """The Gaussian-weighted sum of learned tokens over epochs, saved with the run (PromptSRC's GPA)."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.sums = nn.ParameterList(nn.Parameter(torch.zeros_like(p), requires_grad=False) for p in parameters)

    @torch.no_grad()
    def add(self, parameters: Sequence[Tensor], weight: float) -> None:
        """Fold in the tokens after an epoch."""
        for total, parameter in zip(self.sums, parameters, strict=True):
            total.add_(parameter, alpha=weight)


def distil(
    student: PromptedStudent, teacher_logits: Callable[[Tensor, Sequence[int], int], Tensor], text_features: Tensor,
    pictures: Pictures, settings: Settings, folder: RunFolder, *, save_every: int = 500, watch: Watch | None = None,
    processes: Processes | None = None, after_epoch: Callable[[int], None] | None = None, own: Own | None = None,
) -> PromptedStudent:  # fmt: skip
    """Stage 2: train ``student`` to its last epoch; resumes to the bit. No label is ever looked at.

    Where pictures are held out, the epoch that is best on them is kept, and the run stops after ``Settings.patience`` without a
    better one.

    Args:
        teacher_logits: (pixels, indices, epoch) -> the teacher's logits [B, C]: computed, or looked up where pictures are not
            augmented.
        folder: Where the run is saved, and resumed from.
        processes: This process among several; to rounding their number changes nothing but the time.
        after_epoch: Called with the number of epochs done; the student is in evaluation mode meanwhile.
        own: What each picture's own prompt names, all N of them; needed by the target ``odds``.

    Raises:
        KeyboardInterrupt: It was stopped, and saved.
        FloatingPointError: The loss is no longer finite; lower the weight or the rate.
        ValueError: There are no pictures, or the batch can't be shared out evenly.
    """
    processes = processes or Processes()
    run_of = _Distillation(student, teacher_logits, text_features, pictures, settings, processes, own, after_epoch)
    schedule, best = settings.schedule(len(pictures)), run_of.best
    student.train()
    _run(run_of.learners, run_of.step, schedule, settings, folder, save_every, watch, processes, lambda: bool(best and best.over))
    if best is not None:
        best.restore()
    return student.train(False)


class _Distillation:
    """Stage 2's step on batches of ``pictures``, and what it changes; see ``distil``."""

    def __init__(
        self, student: PromptedStudent, teacher_logits: Callable[[Tensor, Sequence[int], int], Tensor], text_features: Tensor,
        pictures: Pictures, settings: Settings, processes: Processes, own: Own | None, after_epoch: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self.student, self.teacher_logits, self.text_features, self.pictures = student, teacher_logits, text_features, pictures
        self.settings, self.processes, self.after_epoch = settings, processes, after_epoch
        self.own = own if settings.target == ODDS else None
        self.schedule, self.device = settings.schedule(len(pictures)), next(student.visual.parameters()).device
        self.rows = processes.rows(self.schedule.batch)
        self.learning, self.held = split(len(pictures), settings.held_out, settings.seed)
        tower = nn.ParameterList(student.tower().values())
        parts: dict[str, nn.Module | None] = {"tokens": student.tokens, "projector": student.projector}
        self.best = BestWeights([*parts.values(), tower], settings.patience) if self.held else None  # type: ignore[list-item]
        rate = settings.learning_rate
        self.learners = {"promptkd": _learner({**parts, "best": self.best}, optimiser_for(student.learned(), rate), rate)}
        self.tower: torch.optim.Optimizer | None = None
        if len(tower):
            self.tower = promptkd.tower_optimiser(list(tower), settings.tower_rate)
            self.learners["tower"] = Learner(tower, self.tower, settings.tower_rate)

    def step(self, number: int, _generator: torch.Generator) -> Means:
        """See ``training.loop.run``."""
        settings = self.settings
        epoch, places = batch_of(number, self.schedule, settings.seed, self.rows)
        if self.best is not None and number == 0:
            self.best.look(self.held_out_loss(), 0)
        with autocast(settings.precision == "bf16", self.device.type):
            pixels, theirs, own = self.taught([self.learning[place] for place in places], epoch)
            loss = distill_step(
                self.student, self.learners["promptkd"].optimiser, pixels, theirs, self.text_features,
                temperature=settings.temperature, weight=settings.weight, loss_scale=settings.loss_scale,
                processes=self.processes, own=own, tower=self.tower,
            )  # fmt: skip
        if (number + 1) % self.schedule.steps_an_epoch == 0:
            self.end_epoch(epoch + 1)
        return {"loss": loss} if self.best is None else {"loss": loss, "held_out": float(self.best.last)}

    def taught(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor, Own | None]:
        """Pictures, and what their teacher says of them."""
        pixels = self.pictures.batch(indices, epoch).to(self.device)
        own = None if self.own is None else self.own.of(indices, self.device)
        return pixels, self.teacher_logits(pixels, indices, epoch), own

    def end_epoch(self, done: int) -> None:
        """After ``done`` epochs."""
        if self.best is not None:
            self.best.look(self.held_out_loss(), done)
        if self.after_epoch:
            self.student.train(False)
            self.after_epoch(done)
            self.student.train()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Stage 2's loss on what is held out, augmented as in the first epoch; every process computes all of it."""
        self.student.train(False)
        total = 0.0
        for start in range(0, len(self.held), 64):
            part = self.held[start : start + 64]
            with autocast(self.settings.precision == "bf16", self.device.type):
                pixels, theirs, own = self.taught(part, 0)
                ours = self.student.logits(self.student(pixels), self.text_features)
                loss = promptkd.stage_loss(ours, theirs, own, self.settings.temperature, self.settings.weight)
            total += len(part) * float(loss)
        self.student.train()
        return total / len(self.held)


@dataclass(frozen=True)
class SourceSettings(Settings):
    """The published settings of stage 1 on ViT-L/14: PromptSRC's weights and its Gaussian over epochs."""

    text_weight: float = 25.0
    picture_weight: float = 10.0
    gaussian_mean: float = 15.0
    gaussian_std: float = 1.0


def train_teacher(
    teacher: PromptedClip, class_ids: Tensor, frozen_text: Tensor, pictures: Pictures, labels: Sequence[int],
    settings: SourceSettings, folder: RunFolder, *, save_every: int = 500, watch: Watch | None = None,
    processes: Processes | None = None,
) -> PromptedClip:  # fmt: skip
    """Stage 1: train the teacher's tokens on a few labelled pictures; it ends with their Gaussian-weighted mean over epochs.

    Args:
        class_ids: Token ids [C, context] of the classes.
        frozen_text: See ``frozen_text_features``.
        labels: The class of each of ``pictures``.

    Raises:
        KeyboardInterrupt: It was stopped, and saved.
        FloatingPointError: A loss is no longer finite; lower the rate.
        ValueError: There are no pictures or no learned tokens, or labels are missing.
    """
    if len(labels) != len(pictures):
        raise ValueError(f"There are {len(labels)} labels for {len(pictures)} pictures; every picture needs its class.")
    if not (learned := learned_tokens(teacher)):
        raise ValueError("This teacher has no prompt tokens to learn; give it some for one tower at least.")
    schedule, processes = settings.schedule(len(pictures)), processes or Processes()
    rows = processes.rows(schedule.batch)
    weights = aggregation_weights(settings.epochs, settings.gaussian_mean, settings.gaussian_std)
    aggregate = _Aggregate(learned)
    tokens = {"picture": teacher.picture_tokens, "text": teacher.text_tokens, "aggregate": aggregate}
    optimiser = optimiser_for(learned, settings.learning_rate)

    def step(number: int, _generator: torch.Generator) -> Means:
        epoch, indices = batch_of(number, schedule, settings.seed, rows)
        pixels = pictures.batch(indices, epoch).to(teacher.device)
        target = torch.tensor([labels[i] for i in indices], device=teacher.device)
        with autocast(settings.precision == "bf16", teacher.device.type):
            losses = teacher_step(
                teacher, optimiser, pixels, target, class_ids, frozen_text, text_weight=settings.text_weight,
                picture_weight=settings.picture_weight, loss_scale=settings.loss_scale, processes=processes,
            )  # fmt: skip
        if (number + 1) % schedule.steps_an_epoch == 0:
            aggregate.add(learned, weights[epoch])
        return losses

    learners = {"promptkd": _learner(tokens, optimiser, settings.learning_rate)}
    _run(learners, step, schedule, settings, folder, save_every, watch, processes)
    with torch.no_grad():
        for parameter, mean in zip(learned, aggregate.sums, strict=True):
            parameter.copy_(mean)
    return teacher


def _learner(parts: Mapping[str, nn.Module | None], optimiser: torch.optim.Optimizer, rate: float) -> Learner:
    state = nn.ModuleDict({"learned": nn.ModuleDict({name: part for name, part in parts.items() if part is not None})})
    return Learner(state, optimiser, rate)


def _run(
    learners: Mapping[str, Learner], step: Callable[[int, torch.Generator], Means], schedule: EpochSchedule, settings: Settings,
    folder: RunFolder, save_every: int, watch: Watch | None, processes: Processes, over: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """The shared loop. Nothing is averaged: the published student is that of the last step."""
    watch = watch or Watch()
    run(
        learners, step, schedule, folder, seed=settings.seed, save_every=save_every, watch=processes.watch(watch),
        main_process=processes.main, over=over,
    )  # fmt: skip
