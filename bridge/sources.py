"""SOURCE: who can be asked for drafts, again and again, each draft by a seed of its own."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..gate.calibration import Calibration
from ..samplers.explore import Try
from .drafts import Plan, plan_drafts
from .drawing import Drawing
from .guiders import draws_whole, sampler_of
from .noise import batch_noise
from .pixels import as_pictures
from .rows import Conditioning, Latent
from .sampling import conditionings_of


@dataclass(frozen=True, eq=False)
class ModelSource:
    """A student, or a teacher, with what it draws and how.

    Attributes:
        calibration: Of its scores; None where they are learned as it draws.
        name: For people; "" for what its preset says.
    """

    model: Any
    positive: Conditioning
    negative: Conditioning
    preset: str
    drawing: Drawing
    calibration: Calibration | None = None
    name: str = ""

    def plan(self, latent: Latent, seed: int, denoise: float) -> Plan:
        """How it draws over ``latent``.

        Raises:
            ValueError: See ``drafts.plan_drafts``.
        """
        return plan_drafts(self.model, latent, self.preset, replace(self.drawing, seed=seed, denoise=denoise))


@dataclass(frozen=True, eq=False)
class PictureSource:
    """Finished pictures [N, H, W, C] of anybody's making, at a price in evaluations that the artist names."""

    images: Tensor
    cost: float
    name: str = ""

    def drafts(self, total: int) -> int:
        """How many there are for each picture of a batch.

        Raises:
            ValueError: They don't come out even.
        """
        if len(self.images) == 0 or len(self.images) % total:
            raise ValueError(
                f"There are {len(self.images)} finished pictures for a batch of {total}: give one or several for each picture, "
                "all first ones before all second ones."
            )
        return len(self.images) // total

    def pictures(self, tries: Sequence[Try], total: int, size: tuple[int, int]) -> Tensor:
        """Those of ``tries``, as large as the batch's pictures: scaled, and cropped about the middle."""
        chosen = as_pictures(self.images[[t.number * total + t.row for t in tries]])
        if tuple(chosen.shape[1:3]) == size:
            return chosen
        return comfy.utils.common_upscale(chosen.movedim(-1, 1), size[1], size[0], "lanczos", "center").movedim(1, -1)


Source = ModelSource | PictureSource


def draft_seed(seed: int, source: int, number: int) -> int:
    """The seed of the ``number``-th draft (from 0) of the source on socket ``source`` (from 0).

    The first of the first is the artist's own seed. The rest follow from it by SHA-256, so that neighbouring seeds share no
    draft; with the picture's place a seed names its noise, as in every sampler. It has 48 bits, which a browser keeps whole.
    """
    if source == number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {source} {number}".encode()).digest()[:6], "big")


@dataclass(frozen=True)
class Draft:
    """One drawn draft: its latent [1, C, ...] on the CPU, and its evaluations."""

    latent: Tensor
    nfe: float


class Easel:
    """Draws one source's drafts for a batch; what it drew for the same batch and seed before, it doesn't draw again.

    Args:
        place: The source's socket, from 0.

    Attributes:
        words: All that the pictures are told: positive and negative, or the guider's own conditionings.
    """

    def __init__(self, source: ModelSource, place: int, latent: Latent, seed: int, denoise: float) -> None:
        self.source, self.place, self.seed = source, place, seed
        self.plan = source.plan(latent, seed, denoise)
        self.memory = _memory(source, latent, (place, seed, denoise))
        told = isinstance(getattr(self.plan.guider, "original_conds", None), dict)
        self.words = [*conditionings_of(self.plan.guider).values()] if told else [source.positive, source.negative]

    def draw(self, tries: Sequence[Try], callback: Any) -> list[Draft]:
        """The drafts of ``tries``, in their order."""
        new = sorted((t for t in tries if (t.row, t.number) not in self.memory), key=lambda t: t.row)
        for part in [new] if self._by_start_alone() else _by_number(new):
            if part:
                self._draw(part, callback)
        return [self.memory[t.row, t.number] for t in tries]

    def _draw(self, tries: Sequence[Try], callback: Any) -> None:
        latent, rows = self.plan.latent, [t.row for t in tries]
        if self._whole:  # what is drawn for the sake of these is kept for later
            rows = list(range(len(latent["samples"])))
        noise: dict[int, Tensor] = {}
        for number in dict.fromkeys(t.number for t in tries):
            comfy.model_management.throw_exception_if_processing_interrupted()
            noise[number] = batch_noise(latent, draft_seed(self.seed, self.place, number))
        whole = noise[tries[0].number]
        if len(noise) > 1:
            whole = whole.clone()
            for t in tries:
                whole[t.row] = noise[t.number][t.row]
        seed = draft_seed(self.seed, self.place, tries[0].number)
        samples, nfe = self.plan.draw(rows, whole, seed, self.source.positive, self.source.negative, callback)
        numbers = {t.row: t.number for t in tries}
        for row, sample, cost in zip(rows, samples, nfe, strict=True):
            self.memory[row, numbers.get(row, tries[0].number)] = Draft(sample[None].cpu(), cost)

    @property
    def _whole(self) -> bool:
        return bool(draws_whole(self.plan.model, self.plan.sampler, self.plan.guider))

    def _by_start_alone(self) -> bool:
        """Whether the first noise alone decides a draft, so that drafts of different seeds can be one batch."""
        sampler = sampler_of(self.plan.sampler)
        function = getattr(sampler, "sampler_function", None)
        noisy = function is None or "noise_sampler" in inspect.signature(function).parameters
        painted = self.plan.latent.get("noise_mask") is not None and getattr(sampler, "inpaint_options", {}).get("random")
        return not noisy and not painted and not self._whole


def _by_number(tries: Sequence[Try]) -> list[list[Try]]:
    return [[t for t in tries if t.number == number] for number in dict.fromkeys(t.number for t in tries)]


# What each source drew last: for which latent (held, so that another can't take its place in memory) and how, and the drafts. It
# goes with the source, which ComfyUI keeps as long as nothing before it changes.
_Drafts = dict[tuple[int, int], Draft]
_DRAWN: WeakKeyDictionary[ModelSource, tuple[Latent, tuple[Any, ...], _Drafts]] = WeakKeyDictionary()


def _memory(source: ModelSource, latent: Latent, how: tuple[Any, ...]) -> _Drafts:
    held = _DRAWN.get(source)
    if held is None or held[0] is not latent or held[1] != how:
        held = _DRAWN[source] = (latent, how, {})
    return held[2]


def joined(drafts: Sequence[Draft]) -> Tensor:
    """Their latents [B, C, ...] where ComfyUI keeps results."""
    return torch.cat([draft.latent for draft in drafts]).to(comfy.model_management.intermediate_device())
