"""Oracles on ComfyUI's pictures: placed by its memory management, and asked once about the same pictures."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..oracles.base import Oracle as OracleBase
from .memory import on_device
from .pixels import as_pictures

_MEMORY: OrderedDict[str, list[float]] = OrderedDict()
_REMEMBERED = 64


def fresh_scores(oracle: OracleBase, images: Tensor, prompts: list[str]) -> list[float]:
    """Scores of ``images`` [B, H, W, C], with the oracle's network on its device."""
    with on_device(oracle.network):
        scores: list[float] = oracle.score(as_pictures(images), prompts).tolist()
    return scores


def score(oracle: OracleBase, images: Tensor, prompts: list[str]) -> list[float]:
    """Scores of ``images`` [B, H, W, C], remembered: another threshold does not run the network again."""
    key = content_name(images, prompts, oracle.fingerprint())
    if key not in _MEMORY:
        _MEMORY[key] = fresh_scores(oracle, images, prompts)
        while len(_MEMORY) > _REMEMBERED:
            _MEMORY.popitem(last=False)
    _MEMORY.move_to_end(key)
    return _MEMORY[key]


def score_list(oracle: OracleBase, batches: list[Tensor], prompts: list[str]) -> list[float]:
    """Scores of all pictures of a list of batches [B, H, W, C], each of its own size; ``prompts`` has one a picture."""
    if len({batch.shape[1:] for batch in batches}) == 1:
        return score(oracle, torch.cat(batches), prompts)
    rest = iter(prompts)
    return [value for batch in batches for value in score(oracle, batch, [next(rest) for _ in batch])]


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
