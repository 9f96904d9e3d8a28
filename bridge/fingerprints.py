"""Sixteen hex digits that name a model by what it draws: weights, patches, kind of sampling."""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_patcher
from torch import Tensor, nn

_DIGESTS: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()
_SAMPLED = 64  # values of each weight that go into a fingerprint


def model_name(model: comfy.model_patcher.ModelPatcher) -> str:
    """What kind of model it is, for people: "SDXL", "TinyWorldModel"."""
    return type(model.model).__name__


def model_fingerprint(model: comfy.model_patcher.ModelPatcher) -> str:
    """Sixteen hex digits that change with the weights, the LoRAs on them and their strengths, and the kind of sampling.

    Of each weight 64 values in even distances are looked at, which takes a fraction of a second for the largest models and
    tells any two that were trained apart. A model in another precision is another model: it draws other pictures.
    """
    digests = _DIGESTS.setdefault(model.model, {})
    if model.patches_uuid not in digests:
        digest = hashlib.sha256(model_name(model).encode())
        for key, (weight, *patches) in sorted(_patched(model).items()):
            digest.update(key.encode())
            _digest(digest, weight[0])
            for patch in patches:
                _digest(digest, patch)
        digests[model.patches_uuid] = digest.hexdigest()
    objects = {key: type(value).__name__ for key, value in sorted(model.object_patches.items())}
    return hashlib.sha256(f"{digests[model.patches_uuid]}|{objects}".encode()).hexdigest()[:16]


def _patched(model: comfy.model_patcher.ModelPatcher) -> dict[str, Any]:
    """By its name each weight as it was loaded, and the patches on it, as ComfyUI has them."""
    try:
        return model.get_key_patches()  # type: ignore[no-any-return]
    except AttributeError:  # ComfyUI-GGUF's networks name a weight in their state that they don't have: room for the largest
        there = [*model.model.named_parameters(), *model.model.named_buffers()]
        loaded = {key: kept.weight for key, kept in model.backup.items()}
        return {key: [(loaded.get(key, value),), *model.patches.get(key, [])] for key, value in there}


def part_fingerprint(part: Any) -> str:
    """The same of a CLIP or a VAE; "" of what isn't in ComfyUI's memory management."""
    patcher = getattr(part, "patcher", None)
    return "" if patcher is None else model_fingerprint(patcher)


def _digest(digest: Any, value: Any) -> None:
    """Add a weight, or a patch made of numbers, texts, weights and objects that hold weights."""
    if isinstance(value, Tensor):
        digest.update(repr(tuple(value.shape)).encode())
        try:
            flat = value.detach().reshape(-1)
            digest.update(flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].float().cpu().numpy().tobytes())
        except (RuntimeError, NotImplementedError, TypeError):
            digest.update(b"?")  # a packed format that can't be sampled: its shape must do
    elif isinstance(value, (list, tuple)):
        for item in value:
            _digest(digest, item)
    elif isinstance(value, (int, float, str)) or value is None:
        digest.update(repr(value).encode())
    elif hasattr(value, "weights"):
        _digest(digest, value.weights)
