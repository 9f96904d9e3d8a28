"""Oracles by name: which there are, which one a file of weights is for, and ``load``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..files import reading
from .base import Oracle
from .towers import Weights


@dataclass(frozen=True)
class Kind:
    """One oracle: its title for people, and its class, imported only when it is wanted since what it needs is heavy."""

    title: str
    module: str
    name: str

    def load_class(self) -> type[Oracle]:
        """Its class."""
        found: type[Oracle] = getattr(import_module(f".{self.module}", __package__), self.name)
        return found

    def make(self, weights: Weights, **options: Any) -> Oracle:
        """The oracle with these weights."""
        make: Any = self.load_class()  # each has its own options
        oracle: Oracle = make(weights, name=self.title, **options)
        return oracle


KINDS: dict[str, Kind] = {
    "imagereward": Kind("ImageReward v1.0", "image_reward", "ImageReward"),
    "pickscore": Kind("PickScore v1", "pickscore", "PickScore"),
    "hpsv2": Kind("HPSv2", "clip_score", "HumanPreferenceScore"),
    "hpsv2.1": Kind("HPSv2.1", "clip_score", "HumanPreferenceScore"),
    "hpsv3": Kind("HPSv3", "hpsv3", "HumanPreferenceScore3"),
    "aesthetic-v1": Kind("Aesthetic v1", "aesthetic", "Aesthetic"),
    "aesthetic-v2": Kind("Aesthetic v2", "aesthetic", "Aesthetic"),
    "clip-score": Kind("CLIP score", "clip_score", "ClipScore"),
    "clip-iqa": Kind("CLIP-IQA", "clip_iqa", "ClipIqa"),
}

_OTHER_NAMES = {
    "imagerewardv1": "imagereward", "imagerewardv10": "imagereward", "pickscorev1": "pickscore", "hps": "hpsv2",
    "hpsv20": "hpsv2", "hps21": "hpsv2.1", "aesthetic": "aesthetic-v2", "clip": "clip-score",
}  # fmt: skip


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_kind(name: str) -> str:
    """The key in ``KINDS`` of an oracle's name, however it is written ("ImageReward v1.0", "clip_score").

    Raises:
        ValueError: There is no such oracle.
    """
    keys = {_plain(key): key for key in KINDS} | _OTHER_NAMES
    if (key := keys.get(_plain(name))) is None:
        raise ValueError(f"There is no oracle '{name}'; choose one of: {', '.join(KINDS)}.")
    return key


def load(name: str, weights: Weights | str | os.PathLike[str], **options: Any) -> Oracle:
    """An oracle with given weights, on the CPU in float32; nothing is downloaded.

    Args:
        name: A key of ``KINDS``, or its title.
        weights: A state dict in the authors' layout, or a file of one (``.safetensors``, or ``.pt``/``.bin`` read as data only).
        options: ``clip`` (aesthetic: the CLIP beside the head), ``model``, ``config``, ``quick_gelu`` (open_clip models),
            ``config`` (PickScore, aesthetic: sizes that can't be read off the weights), ``vocabulary`` (ImageReward),
            ``tokenizer``, ``config`` (HPSv3).

    Raises:
        ValueError: Unknown name, or a library that is not installed.
        UnreadableFile: The weights can't be read, or don't fit.
        FileNotFoundError: There is no such file.
    """
    kind = KINDS[find_kind(name)]
    if options.get("clip") is not None:
        options["clip"] = _as_weights(options["clip"])
    name = Path(weights).name if isinstance(weights, (str, os.PathLike)) else kind.title
    try:
        with reading(name, "choose another file or oracle"):
            return kind.make(_as_weights(weights), **options)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{kind.title} needs the library '{error.name}', which is not installed; run 'pip install -r requirements.txt' "
            f"of Apprentice in ComfyUI's environment, and restart."
        ) from error


def _as_weights(weights: Weights | str | os.PathLike[str]) -> Weights:
    if isinstance(weights, (str, os.PathLike)):
        from ..weights.checkpoints import read_weights

        return read_weights(weights)
    return weights


def detect(keys: Iterable[str], file_name: str = "") -> str:
    """Which oracle a file is for, by the names of its weights and, between twins, its own name.

    Raises:
        ValueError: It is none that is known.
    """
    names, stem = set(keys), _plain(Path(file_name).stem)
    if any(name.startswith("rm_head.") for name in names):
        return "hpsv3"
    if any(name.startswith("blip.") for name in names):
        return "imagereward"
    if "vision_model.embeddings.class_embedding" in names:
        return "pickscore" if "pick" in stem or not stem else "clip-score"
    if "layers.7.weight" in names:
        return "aesthetic-v2"
    if {"weight", "bias"} >= names and names:
        return "aesthetic-v1"
    if "text_projection" in names and any(name.startswith("visual.") for name in names):
        if "hps" in stem:
            return "hpsv2.1" if "v21" in stem else "hpsv2"
        return "clip-score"
    raise ValueError(f"'{file_name}' is not the weights of an oracle that Apprentice knows; choose what it is by hand.")
