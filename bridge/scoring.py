"""Oracles on ComfyUI's pictures: placed by its memory management, and asked once about the same pictures."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..oracles.base import Oracle as OracleBase
from ..oracles.cascade import Cascade
from .memory import on_device
from .pixels import as_pictures

_MEMORY: OrderedDict[str, list[float]] = OrderedDict()
_REMEMBERED = 64
_HEAVY: OrderedDict[str, float] = OrderedDict()
_HEAVY_REMEMBERED = 4096
_REPORTS = 8
Report = Callable[[int, list[float]], None]
"""Told of each part of a batch: the place of its first picture, and its scores."""
Thresholds = Callable[[Sequence[float]], list[float]]
"""Of the scores as far as they are known, what each picture must reach; infinite where no score could change the verdict."""


def fresh_scores(oracle: OracleBase, images: Tensor, prompts: list[str], report: Report | None = None) -> list[float]:
    """Scores of ``images`` [B, H, W, C], with the oracle's network on its device.

    In at most ``_REPORTS`` parts, so that a large batch can be watched, and cancelled, while it is judged.
    """
    if isinstance(oracle, Cascade):
        return cascaded(oracle, [images], prompts, report=report).scores
    scores: list[float] = []
    size = max(1, -(-len(images) // _REPORTS))
    with on_device(oracle.network):
        for start in range(0, len(images), size):
            comfy.model_management.throw_exception_if_processing_interrupted()
            part = slice(start, start + size)
            scores += oracle.score(as_pictures(images[part]), prompts[part]).tolist()
            if report is not None:
                report(start, scores[part])
    return scores


def score(oracle: OracleBase, images: Tensor, prompts: list[str], report: Report | None = None) -> list[float]:
    """Scores of ``images`` [B, H, W, C], remembered: another threshold does not run the network again."""
    key = content_name(images, prompts, oracle.fingerprint())
    if key not in _MEMORY:
        _MEMORY[key] = fresh_scores(oracle, images, prompts, report)
        while len(_MEMORY) > _REMEMBERED:
            _MEMORY.popitem(last=False)
    elif report is not None:
        report(0, _MEMORY[key])
    _MEMORY.move_to_end(key)
    return _MEMORY[key]


def score_list(oracle: OracleBase, batches: list[Tensor], prompts: list[str], report: Report | None = None) -> list[float]:
    """Scores of all pictures of a list of batches [B, H, W, C], each of its own size; ``prompts`` has one a picture."""
    if len({batch.shape[1:] for batch in batches}) == 1:
        return score(oracle, torch.cat(batches), prompts, report)
    scores: list[float] = []
    for batch in batches:
        first = len(scores)
        later = None if report is None else lambda start, part, first=first: report(first + start, part)
        scores += score(oracle, batch, prompts[first : first + len(batch)], later)
    return scores


def seen_of(oracle: OracleBase, batches: list[Tensor], latents: list[dict[str, Any]] | None = None) -> Tensor:
    """What pictures are told apart by: unit features [N, D] of the oracle, or of their latents where it shows none.

    Raises:
        ValueError: It shows none, and there are no latents of one size.
    """
    oracle = oracle.light if isinstance(oracle, Cascade) else oracle  # who sees all pictures
    if oracle.has_features:
        with on_device(oracle.network) as device, torch.no_grad():
            parts = [oracle.features(as_pictures(part).to(device)).float().cpu() for batch in batches for part in batch.split(32)]
    else:
        parts = [latent["samples"].flatten(1).float().cpu() for latent in latents or []]
        if len({part.shape[1] for part in parts}) != 1 or sum(map(len, parts)) != sum(map(len, batches)):
            raise ValueError(
                f"{oracle.name} shows no features to tell pictures apart by, and there isn't a latent of one size for each: "
                "connect the latents, set variety to 0, or take a CLIP, PickScore, HPSv2 or an aesthetic predictor."
            )
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


@dataclass(frozen=True)
class Cascaded:
    """Scores of a cascade.

    Attributes:
        scores: One a picture.
        asked: Places of the pictures that the heavy oracle has scored.
        note: What to say of it.
    """

    scores: list[float]
    asked: tuple[int, ...]
    note: str


def cascaded(
    oracle: Cascade, batches: list[Tensor], prompts: list[str], thresholds: Thresholds | None = None,
    report: Report | None = None, rows: Collection[int] | None = None,
) -> Cascaded:  # fmt: skip
    """A cascade's scores of all pictures of a list of batches [B, H, W, C].

    The heavy oracle is asked about the pictures within the band around their thresholds; since a threshold may depend on the
    scores (a share of the batch, a baseline), again until nobody new is within. So it is read, and loaded, where one is within.

    Args:
        thresholds: Without it, the cascade's own threshold holds.
        rows: Ask about these, instead.
    """
    light = score_list(oracle.light, batches, prompts)
    scores, asked = oracle.scale.heavy_of(light), set[int]()
    pictures = [picture for batch in batches for picture in batch]
    thresholds = thresholds or (lambda known: [oracle.threshold] * len(known))
    limits: list[float] = []
    while True:
        if report is not None:
            report(0, scores)
        if rows is None:
            limits = thresholds(scores)
        wanted = oracle.doubtful(light, limits) if rows is None else rows
        new = [row for row in wanted if row not in asked and bool(pictures[row].isfinite().all())]
        if not new:
            return Cascaded(scores, tuple(sorted(asked)), oracle.words(len(asked), len(scores), limits))
        for row, score in zip(new, _heavy(oracle, [pictures[row] for row in new], [prompts[row] for row in new]), strict=True):
            scores[row] = score
        asked.update(new)


def _heavy(oracle: Cascade, pictures: list[Tensor], prompts: list[str]) -> list[float]:
    """The heavy oracle's scores of pictures [H, W, C], each remembered: another threshold asks about the new ones alone."""
    keys = picture_keys(pictures, prompts, oracle.heavy_fingerprint)
    new = [i for i, key in enumerate(keys) if key not in _HEAVY]
    for _, same in groupby(new, key=lambda i: pictures[i].shape):
        rows = list(same)
        found = fresh_scores(oracle.heavy, torch.stack([pictures[i] for i in rows]), [prompts[i] for i in rows])
        _HEAVY.update(zip((keys[i] for i in rows), found, strict=True))
    scores = [_HEAVY[key] for key in keys]
    while len(_HEAVY) > _HEAVY_REMEMBERED:
        _HEAVY.popitem(last=False)
    return scores


def content_name(pixels: Tensor, asked: Any, fingerprint: str) -> str:
    """64 hex digits: the same pixels, prompts and oracle have the same ones."""
    digest = hashlib.sha256(repr((fingerprint, tuple(pixels.shape), asked)).encode())
    digest.update(pixels.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()


def picture_keys(images: Iterable[Tensor], prompts: list[str], fingerprint: str) -> list[str]:
    """A name for each picture [H, W, C] of a batch: the same picture, prompt and oracle have the same one."""
    return [content_name(image, prompt, fingerprint)[:16] for image, prompt in zip(images, prompts, strict=True)]


def uncertainty(oracle: OracleBase, images: Tensor, prompts: list[str]) -> list[float]:
    """What the oracle says of its own doubt about ``images`` [B, H, W, C]; 0 where it says nothing."""
    tell = getattr(oracle, "uncertainty", None)
    if tell is None:
        return [0.0] * len(images)
    with on_device(oracle.network):
        return [float(value) for value in tell(as_pictures(images), prompts)]
