"""PromptKD (arXiv 2403.02781): unsupervised prompt distillation of a large CLIP into a small one, and its teacher's own stage.

Stage 1 (optional) is PromptSRC (arXiv 2307.06948): learned tokens for the teacher from a few labelled pictures, held close to
the frozen model. Stage 2 needs no labels: the student's class probabilities follow the teacher's on pictures of the domain,
against the teacher's text features, which are computed once.

The authors' code recomputes the text features of all classes at every step, for which a thousand classes need more than 24 GB;
here they are stored (stage 2), or computed in parts and recomputed in the backward pass (stage 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..networks.prompted_clip import PromptedClip, PromptedStudent
from ..precision import autocast
from .loop import Ema, Learner, Means, Schedule, Watch, run
from .processes import Processes

CLASSES_AT_ONCE = 64  # texts in a text tower at a time


# -------------------------------------------------------------------------------------------------- mathematics


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, weight: float = 1000.0) -> Tensor:
    """PromptKD's loss: weight * sum KL(teacher || student) * T^2 / (B C) (arXiv 2403.02781, sec. 3.3; the authors' averaging).

    The mean is over pictures *and* classes, so with few classes the same weight pulls harder: lower it in proportion.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], without gradient.
    """
    divergence = F.kl_div(
        F.log_softmax(student_logits.float() / temperature, dim=1),
        F.softmax(teacher_logits.float() / temperature, dim=1),
        reduction="sum",
    )
    return weight * divergence * temperature**2 / student_logits.numel()


@dataclass(frozen=True)
class SourceLosses:
    """PromptSRC's parts of the loss (arXiv 2307.06948, eq. 2 to 5), unweighted; each a mean."""

    cross_entropy: Tensor
    text: Tensor
    picture: Tensor
    logits: Tensor

    def total(self, text_weight: float = 25.0, picture_weight: float = 10.0) -> Tensor:
        """CE + 25 L1(text) + 10 L1(picture) + KL of the logits."""
        return self.cross_entropy + text_weight * self.text + picture_weight * self.picture + self.logits


def source_losses(
    picture: Tensor, text: Tensor, frozen_picture: Tensor, frozen_text: Tensor, scale: Tensor, labels: Tensor
) -> SourceLosses:
    """PromptSRC's losses between prompted and frozen features.

    The KL is sum exp(z) (z - y) / (B C) with z the frozen and y the prompted log-probabilities, as in the authors' code.

    Args:
        picture: Prompted unit features [B, D]; ``frozen_picture`` the plain model's.
        text: Prompted unit features [C, D]; ``frozen_text`` the plain model's mean over templates, of unit length.
        scale: exp(logit_scale).
        labels: Classes [B].
    """
    logits, frozen_logits = scale * picture @ text.T, scale * frozen_picture @ frozen_text.T
    divergence = F.kl_div(
        F.log_softmax(logits, dim=1), F.log_softmax(frozen_logits, dim=1), reduction="sum", log_target=True
    ) / logits.numel()  # fmt: skip
    return SourceLosses(
        F.cross_entropy(logits, labels), F.l1_loss(text, frozen_text), F.l1_loss(picture, frozen_picture), divergence
    )


def epoch_rate(epoch: int, epochs: int, highest: float = 0.005, warmup: int = 1, warmup_rate: float = 1e-5) -> float:
    """The learning rate of a 0-based epoch: ``warmup_rate`` at first, then a cosine over ``epochs`` that starts after it."""
    if epoch < warmup:
        return warmup_rate
    return highest * (1 + math.cos(math.pi * (epoch - warmup) / epochs)) / 2


def aggregation_weights(epochs: int, mean: float = 15.0, std: float = 1.0) -> list[float]:
    """PromptSRC's Gaussian weights of the prompts after epochs 1..epochs (arXiv 2307.06948, eq. 6), with sum 1."""
    raw = [math.exp(-0.5 * ((epoch - mean) / std) ** 2) for epoch in range(1, epochs + 1)]
    if sum(raw) == 0:
        raise ValueError(f"With {epochs} epochs nothing is left of a Gaussian at epoch {mean:g}; lower its mean or widen it.")
    return [value / sum(raw) for value in raw]


# --------------------------------------------------------------------------------------------------------- steps


def distill_step(
    student: PromptedStudent,
    optimiser: torch.optim.Optimizer,
    pixels: Tensor,
    teacher_logits: Tensor,
    text_features: Tensor,
    *,
    temperature: float = 1.0,
    weight: float = 1000.0,
    loss_scale: float = 1.0,
    processes: Processes | None = None,
) -> float:
    """One step of stage 2 on a batch; returns its loss.

    Args:
        student: In training mode: batch norm uses the batch's statistics and remembers them.
        optimiser: Over ``student.learned()``.
        pixels: Preprocessed pictures [B, 3, S, S].
        teacher_logits: The teacher's [B, C] on the same pictures.
        text_features: The teacher's unit text features [C, D].
        loss_scale: Multiplies the loss for the backward pass and divides the gradients, so that they survive a float16 tower.
        processes: This process among several: pixels and teacher's logits are its own rows of the batch.
    """
    processes = processes or Processes()
    # The batch norm is to see the whole batch, so the tower's features are gathered before it.
    features = student.project(processes.gather(student.tower_features(pixels)))
    loss = kd_loss(student.logits(features, text_features), processes.gather(teacher_logits), temperature, weight)
    _descend(loss, student.learned(), optimiser, loss_scale, lambda: processes.add_gradients(list(student.tokens.parameters())))
    return loss.item()


def teacher_step(
    teacher: PromptedClip,
    optimiser: torch.optim.Optimizer,
    pixels: Tensor,
    labels: Tensor,
    class_ids: Tensor,
    frozen_text: Tensor,
    *,
    text_weight: float = 25.0,
    picture_weight: float = 10.0,
    loss_scale: float = 1.0,
    classes_at_once: int = CLASSES_AT_ONCE,
    processes: Processes | None = None,
) -> dict[str, float]:
    """One step of stage 1 on a batch; returns the losses.

    Args:
        optimiser: Over the teacher's learned tokens.
        pixels: Preprocessed pictures [B, 3, S, S].
        labels: Their classes [B].
        class_ids: Token ids [C, context] of the classes.
        frozen_text: The plain model's unit text features [C, D], see ``frozen_text_features``.
        processes: This process among several: pixels and labels are its own rows of the batch.
    """
    processes = processes or Processes()
    with teacher.frozen():
        frozen_picture = processes.gather(teacher.encode_pictures(pixels))
    text, picture = text_features_of(teacher, class_ids, classes_at_once), processes.gather(teacher.encode_pictures(pixels))
    losses = source_losses(picture, text, frozen_picture, frozen_text, teacher.scale, processes.gather(labels))
    total = losses.total(text_weight, picture_weight)
    # Text features, and so their tokens' gradients, are the same in all processes.
    shared = [] if teacher.picture_tokens is None else list(teacher.picture_tokens.parameters())
    _descend(total, _learned(teacher), optimiser, loss_scale, lambda: processes.add_gradients(shared))
    parts = {"cross_entropy": losses.cross_entropy, "text": losses.text, "picture": losses.picture, "logits": losses.logits}
    return {"loss": total.item(), **{name: value.item() for name, value in parts.items()}}


def _descend(
    loss: Tensor, parameters: Sequence[Tensor], optimiser: torch.optim.Optimizer, loss_scale: float, reduce: Callable[[], None]
) -> None:
    """Backward pass and step; the weights stay as they are where the loss is no longer finite."""
    if not torch.isfinite(loss):
        return
    optimiser.zero_grad(set_to_none=True)
    (loss * loss_scale).backward()
    reduce()
    if loss_scale != 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(loss_scale)
    optimiser.step()


def _learned(teacher: PromptedClip) -> list[nn.Parameter]:
    return [p for tokens in (teacher.picture_tokens, teacher.text_tokens) if tokens is not None for p in tokens.parameters()]


def optimiser_for(parameters: Sequence[nn.Parameter], rate: float = 0.005) -> torch.optim.SGD:
    """The published optimiser: SGD, momentum 0.9, weight decay 5e-4."""
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4)


# ------------------------------------------------------------------------------------------------- text features


def text_features_of(teacher: PromptedClip, class_ids: Tensor, at_once: int = CLASSES_AT_ONCE) -> Tensor:
    """Unit features [C, D] of token ids [C, context], computed ``at_once`` classes at a time.

    With gradients every part is recomputed in the backward pass, so memory doesn't grow with the number of classes.
    """
    parts = []
    for ids in class_ids.split(at_once):
        if torch.is_grad_enabled() and teacher.text_tokens is not None:
            parts.append(checkpoint(teacher.encode_classes, ids, use_reentrant=False))
        else:
            parts.append(teacher.encode_classes(ids))
    return torch.cat(parts)


def frozen_text_features(
    teacher: PromptedClip, names: Sequence[str], templates: Sequence[str], at_once: int = CLASSES_AT_ONCE
) -> Tensor:
    """The plain model's unit features [C, D] of class names: its features averaged over templates, then normalised.

    Args:
        templates: Sentences with ``{}`` for the name.

    Raises:
        ValueError: There is no name or no template, or a template has no place for the name.
    """
    if not names or not templates or any("{}" not in template for template in templates):
        raise ValueError("Class names and templates are needed, and every template needs '{}' where the name goes.")
    total: Tensor | None = None
    with teacher.frozen():
        for template in templates:
            ids = teacher.tokenizer([template.replace("{}", name.replace("_", " ")) for name in names]).to(teacher.device)
            features = torch.cat([teacher.clip.encode_text(part).float() for part in ids.split(at_once)])
            total = features if total is None else total + features
    assert total is not None  # there is a template
    return F.normalize(total / len(templates), dim=-1)


def class_features(teacher: PromptedClip, names: Sequence[str], placeholder: str, templates: Sequence[str]) -> Tensor:
    """The text features [C, D] that a student is distilled against and uses ever after.

    A teacher with learned text tokens has its own; a plain one uses ``templates``.
    """
    if teacher.text_tokens is None:
        return frozen_text_features(teacher, names, templates)
    with torch.no_grad():
        ids = teacher.tokenizer(teacher.class_texts(names, placeholder)).to(teacher.device)
        return text_features_of(teacher, ids)


# --------------------------------------------------------------------------------------------------------- runs


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


@dataclass(frozen=True)
class Settings:
    """The published settings of stage 2; ``precision`` is fp32, bf16 or fp16."""

    epochs: int = 20
    batch: int = 8
    learning_rate: float = 0.005
    temperature: float = 1.0
    weight: float = 1000.0
    warmup_epochs: int = 1
    precision: str = "fp32"
    seed: int = 0

    @property
    def loss_scale(self) -> float:
        """What gradients are multiplied by on their way through a float16 tower."""
        return 1024.0 if self.precision == "fp16" else 1.0

    def schedule(self, pictures: int) -> EpochSchedule:
        """For a domain of so many pictures.

        Raises:
            ValueError: There are none.
        """
        if pictures < 1:
            raise ValueError("There are no pictures to learn from; give a folder with pictures of the domain.")
        return EpochSchedule(
            batch=min(self.batch, pictures), learning_rate=self.learning_rate, in_an_epoch=pictures, epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
        )  # fmt: skip


def epoch_order(count: int, epoch: int, seed: int) -> list[int]:
    """The order of ``count`` pictures in an epoch; a function of the seed and the epoch alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tolist()


class _State(nn.Module):
    """What a run saves: what is learned, and how many steps were taken."""

    taken: Tensor

    def __init__(self, **learned: nn.Module) -> None:
        super().__init__()
        self.learned = nn.ModuleDict(learned)
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))

    def next_batch(self, schedule: EpochSchedule, seed: int, rows: slice) -> tuple[int, list[int]]:
        """The epoch of the step that comes, and the indices of the pictures in some rows of its batch."""
        epoch, place = divmod(int(self.taken), schedule.steps_an_epoch)
        order = epoch_order(schedule.in_an_epoch, epoch, seed)
        return epoch, order[place * schedule.batch : (place + 1) * schedule.batch][rows]


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


def teacher_logits_of(teacher: PromptedClip, pixels: Tensor, text_features: Tensor) -> Tensor:
    """The teacher's logits [B, C] on preprocessed pictures, without gradient."""
    with torch.no_grad():
        return teacher.scale * teacher.encode_pictures(pixels) @ text_features.T


def distil(
    student: PromptedStudent,
    teacher_logits: Callable[[Tensor, Sequence[int], int], Tensor],
    text_features: Tensor,
    pictures: Pictures,
    settings: Settings,
    checkpoint_file: Path,
    *,
    save_every: int = 500,
    watch: Watch | None = None,
    processes: Processes | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> PromptedStudent:
    """Stage 2: train ``student`` to its last epoch; resumes to the bit. No label is ever looked at.

    Args:
        teacher_logits: (pixels, indices, epoch) -> the teacher's logits [B, C]: computed, or looked up where pictures are not
            augmented.
        checkpoint_file: Where the run is saved, and resumed from.
        processes: This process among several; to rounding their number changes nothing but the time.
        after_epoch: Called with the number of epochs done; the student is in evaluation mode meanwhile.

    Raises:
        KeyboardInterrupt: It was stopped, and saved.
        FloatingPointError: The loss is no longer finite; lower the weight or the rate.
        ValueError: There are no pictures, or the batch can't be shared out evenly.
    """
    schedule, processes = settings.schedule(len(pictures)), processes or Processes()
    mine = processes.rows(schedule.batch)
    state, device = _State(tokens=student.tokens, projector=student.projector), next(student.visual.parameters()).device
    optimiser = optimiser_for(student.learned(), settings.learning_rate)

    def step(_generator: torch.Generator) -> Means:
        epoch, indices = state.next_batch(schedule, settings.seed, mine)
        pixels = pictures.batch(indices, epoch).to(device)
        with autocast(settings.precision == "bf16", device.type):
            loss = distill_step(
                student, optimiser, pixels, teacher_logits(pixels, indices, epoch), text_features,
                temperature=settings.temperature, weight=settings.weight, loss_scale=settings.loss_scale, processes=processes,
            )  # fmt: skip
        state.taken += 1
        if after_epoch and int(state.taken) % schedule.steps_an_epoch == 0:
            student.eval()
            after_epoch(epoch + 1)
            student.train()
        return {"loss": loss}

    student.train()
    _run(state, optimiser, step, schedule, settings, checkpoint_file, save_every, watch, processes)
    return student.eval()


@dataclass(frozen=True)
class SourceSettings(Settings):
    """The published settings of stage 1 on ViT-L/14: PromptSRC's weights and its Gaussian over epochs."""

    text_weight: float = 25.0
    picture_weight: float = 10.0
    gaussian_mean: float = 15.0
    gaussian_std: float = 1.0


def train_teacher(
    teacher: PromptedClip,
    class_ids: Tensor,
    frozen_text: Tensor,
    pictures: Pictures,
    labels: Sequence[int],
    settings: SourceSettings,
    checkpoint_file: Path,
    *,
    save_every: int = 500,
    watch: Watch | None = None,
    processes: Processes | None = None,
) -> PromptedClip:
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
    if not (learned := _learned(teacher)):
        raise ValueError("This teacher has no prompt tokens to learn; give it some for one tower at least.")
    schedule, processes = settings.schedule(len(pictures)), processes or Processes()
    mine = processes.rows(schedule.batch)
    weights = aggregation_weights(settings.epochs, settings.gaussian_mean, settings.gaussian_std)
    aggregate = _Aggregate(learned)
    tokens = {"picture": teacher.picture_tokens, "text": teacher.text_tokens}
    state = _State(**{name: part for name, part in tokens.items() if part is not None}, aggregate=aggregate)
    optimiser = optimiser_for(learned, settings.learning_rate)

    def step(_generator: torch.Generator) -> Means:
        epoch, indices = state.next_batch(schedule, settings.seed, mine)
        pixels = pictures.batch(indices, epoch).to(teacher.device)
        target = torch.tensor([labels[i] for i in indices], device=teacher.device)
        with autocast(settings.precision == "bf16", teacher.device.type):
            losses = teacher_step(
                teacher, optimiser, pixels, target, class_ids, frozen_text, text_weight=settings.text_weight,
                picture_weight=settings.picture_weight, loss_scale=settings.loss_scale, processes=processes,
            )  # fmt: skip
        state.taken += 1
        if int(state.taken) % schedule.steps_an_epoch == 0:
            aggregate.add(learned, weights[epoch])
        return losses

    _run(state, optimiser, step, schedule, settings, checkpoint_file, save_every, watch, processes)
    with torch.no_grad():
        for parameter, mean in zip(learned, aggregate.sums, strict=True):
            parameter.copy_(mean)
    return teacher


def _run(
    state: _State, optimiser: torch.optim.Optimizer, step: Callable[[torch.Generator], Means], schedule: EpochSchedule,
    settings: Settings, checkpoint_file: Path, save_every: int, watch: Watch | None, processes: Processes,
) -> None:  # fmt: skip
    """The shared loop. Nothing is averaged: the published student is that of the last step."""
    told = watch or Watch()
    watched = replace(told, interrupted=lambda: processes.any(told.interrupted()))
    run(
        {"promptkd": Learner(state, optimiser, settings.learning_rate)}, step, schedule, checkpoint_file,
        ema=Ema(state, half_life=1e-8), ema_of=state, seed=settings.seed, save_every=save_every, watch=watched,
        main_process=processes.main,
    )  # fmt: skip
