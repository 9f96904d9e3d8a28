"""PromptKD's equations (arXiv 2403.02781): unsupervised distillation of a large CLIP into a small one; and its teacher's stage.

Stage 1 (optional) is PromptSRC (arXiv 2307.06948): learned tokens for the teacher from a few labelled pictures, held close to
the frozen model. Stage 2 needs no labels: the student's class probabilities follow the teacher's on pictures of the domain,
against the teacher's text features, which are computed once.

The authors' code recomputes the text features of all classes at every step, for which a thousand classes need more than 24 GB;
here they are stored (stage 2), or computed in parts and recomputed in the backward pass (stage 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..networks.prompted_clip import PromptedClip, PromptedStudent
from ..oracles.promptkd import find_class, log_odds
from .processes import Processes

CLASSES_AT_ONCE = 64  # texts in a text tower at a time


# -------------------------------------------------------------------------------------------------- mathematics


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, weight: float = 1000.0) -> Tensor:
    """PromptKD's loss, weight * L_kd(q_t, q_s, T), L_kd = T^2 KL(softmax(q_t / T), softmax(q_s / T)) (arXiv 2403.02781, sec 3.3).

    The authors' code averages the KL over pictures *and* classes, so with few classes the same weight pulls harder: lower it in
    proportion.

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


ODDS_SPREAD = 5.0  # in log-odds: about what a CLIP's spread over drafts; the loss of a prompt's class is quadratic below
VIEW_SHARE = 0.3  # of the view of all classes beside it


def odds_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, numbers: Tensor | None = None, weight: float = 1000.0
) -> Tensor:
    """The loss on the number that a gate uses, the log-odds o of the class that each picture's prompt names.

    weight / C (H((o_s - o_t) / 5) + 0.3 KL(q_t, q_s)), a mean over pictures, with H(d) = d^2 / 2 for |d| < 1, else |d| - 1/2
    (Huber's). Logits are regressed on as in arXiv 1312.6184; the KL is ``kd_loss``'s, which keeps the other classes' meaning.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], without gradient.
        labels: The classes [B] that the prompts name.
        numbers: What stands for o_t where another judge teaches them, [B]; see ``as_odds``.
    """
    wanted = log_odds(teacher_logits.float(), labels) if numbers is None else numbers
    missed = F.smooth_l1_loss(log_odds(student_logits.float(), labels) / ODDS_SPREAD, wanted / ODDS_SPREAD)
    classes = student_logits.shape[1]
    return weight / classes * missed + kd_loss(student_logits, teacher_logits, weight=VIEW_SHARE * weight)


def as_odds(scores: Tensor) -> Tensor:
    """Another judge's scores [N] as log-odds, for a critic to learn: of mean 0 and the spread of a CLIP's own.

    Raises:
        ValueError: They are all alike, or one is no number.
    """
    spread = scores.float().std(correction=0)
    if not bool(scores.isfinite().all()) or not float(spread) > 0:
        raise ValueError("The judge gives all pictures the same score, or one none; choose other pictures, or another judge.")
    return (scores.float() - scores.float().mean()) / spread * ODDS_SPREAD


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
    student: PromptedStudent, optimiser: torch.optim.Optimizer, pixels: Tensor, teacher_logits: Tensor, text_features: Tensor,
    *, temperature: float = 1.0, weight: float = 1000.0, loss_scale: float = 1.0, processes: Processes | None = None,
    own: Own | None = None, tower: torch.optim.Optimizer | None = None,
) -> float:  # fmt: skip
    """One step of stage 2 on a batch; returns its loss.

    Args:
        student: In training mode: batch norm uses the batch's statistics and remembers them.
        optimiser: Over ``student.learned()``.
        pixels: Preprocessed pictures [B, 3, S, S].
        teacher_logits: The teacher's [B, C] on the same pictures.
        text_features: The teacher's unit text features [C, D].
        loss_scale: Multiplies the loss for the backward pass and divides the gradients, so that they survive a float16 tower.
        processes: This process among several: pixels, teacher's logits and ``own`` are its own rows of the batch.
        own: Given where the loss is ``odds_loss``.
        tower: Over ``student.tower()``, where some of it learns.
    """
    processes = processes or Processes()
    # The batch norm is to see the whole batch, so the tower's features are gathered before it.
    features = student.project(processes.gather(student.tower_features(pixels)))
    theirs = processes.gather(teacher_logits)
    loss = stage_loss(student.logits(features, text_features), theirs, own and own.gathered(processes), temperature, weight)
    below = [*student.tokens.parameters(), *student.tower().values()]
    optimisers = [optimiser] if tower is None else [optimiser, tower]
    _descend(
        loss, [*student.learned(), *student.tower().values()], optimisers, loss_scale, lambda: processes.add_gradients(below)
    )
    return loss.item()


@dataclass(frozen=True)
class Own:
    """Of each picture the class that its prompt names, [B]; and what another judge says of it, if one teaches (``as_odds``)."""

    labels: Tensor
    numbers: Tensor | None = None

    def gathered(self, processes: Processes) -> Own:
        """The rows of all processes."""
        return Own(processes.gather(self.labels), None if self.numbers is None else processes.gather(self.numbers))

    def of(self, indices: Sequence[int], device: torch.device) -> Own:
        """Some of the pictures'."""
        rows = list(indices)
        return Own(self.labels[rows].to(device), None if self.numbers is None else self.numbers[rows].to(device))


def own_of(prompts: Sequence[str], classes: Sequence[str], scores: Sequence[float] | None = None) -> Own:
    """What the ``prompts`` of all pictures name, and how another judge ``scores`` them.

    Raises:
        ValueError: A prompt names no class, or the scores tell nothing apart.
    """
    labels = torch.tensor([find_class(prompt, classes) for prompt in prompts])
    return Own(labels, None if scores is None else as_odds(torch.tensor(scores)))


def stage_loss(
    student_logits: Tensor, teacher_logits: Tensor, own: Own | None, temperature: float = 1.0, weight: float = 1000.0
) -> Tensor:
    """Stage 2's loss: the published one, or ``odds_loss`` where pictures have a class of their own."""
    if own is None:
        return kd_loss(student_logits, teacher_logits, temperature, weight)
    return odds_loss(student_logits, teacher_logits, own.labels, own.numbers, weight)


def teacher_step(
    teacher: PromptedClip, optimiser: torch.optim.Optimizer, pixels: Tensor, labels: Tensor, class_ids: Tensor,
    frozen_text: Tensor, *, text_weight: float = 25.0, picture_weight: float = 10.0, loss_scale: float = 1.0,
    classes_at_once: int = CLASSES_AT_ONCE, processes: Processes | None = None,
) -> dict[str, float]:  # fmt: skip
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
    _descend(total, learned_tokens(teacher), [optimiser], loss_scale, lambda: processes.add_gradients(shared))
    parts = {"cross_entropy": losses.cross_entropy, "text": losses.text, "picture": losses.picture, "logits": losses.logits}
    return {"loss": total.item(), **{name: value.item() for name, value in parts.items()}}


def _descend(
    loss: Tensor, parameters: Sequence[Tensor], optimisers: Sequence[torch.optim.Optimizer], loss_scale: float,
    reduce: Callable[[], None],
) -> None:  # fmt: skip
    """Backward pass and step; the weights stay as they are where the loss is no longer finite."""
    if not torch.isfinite(loss):
        return
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    (loss * loss_scale).backward()
    reduce()
    if loss_scale != 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(loss_scale)
    for optimiser in optimisers:
        optimiser.step()


def learned_tokens(teacher: PromptedClip) -> list[nn.Parameter]:
    """What of a teacher learns."""
    return [p for tokens in (teacher.picture_tokens, teacher.text_tokens) if tokens is not None for p in tokens.parameters()]


def optimiser_for(parameters: Sequence[nn.Parameter], rate: float = 0.005) -> torch.optim.SGD:
    """The published optimiser: SGD, momentum 0.9, weight decay 5e-4."""
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4)


def tower_optimiser(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """For blocks of a tower, which SGD at the tokens' rate would hardly move: AdamW, weight decay 0.01."""
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)


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


def teacher_logits_of(teacher: PromptedClip, pixels: Tensor, text_features: Tensor) -> Tensor:
    """The teacher's logits [B, C] on preprocessed pictures, without gradient."""
    with torch.no_grad():
        return teacher.scale * teacher.encode_pictures(pixels) @ text_features.T
