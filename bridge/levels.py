"""The noise levels at which a model is tuned: its own by a stock scheduler, or the one that a one-step student draws from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Protocol

import comfy.samplers
import torch
from torch import Tensor

from ..samplers.presets import AUTO, initial_scale
from ..training.control import Process
from . import training as bridge
from .drafts import known_preset, student_schedule
from .drawing import Drawing
from .info import CARD

LEAST = 0.1  # noise to picture, below which the last step goes to the clean picture


class LevelOptions(Protocol):
    """What of a method's options says where it is tuned."""

    @property
    def steps(self) -> int:
        """Of a draw."""

    @property
    def scheduler(self) -> str:
        """ComfyUI's noise schedule."""

    @property
    def preset(self) -> str:
        """Of a one-step student."""


@dataclass(frozen=True)
class Level:
    """Where a one-step student draws from.

    Attributes:
        model: As it is drawn with.
        sigma: The noise level.
        scale: Of the first noise, over ComfyUI's own.
        preset: With which preset it draws; "" where that is not known.
    """

    model: Any
    sigma: float = 0.0
    scale: float = 1.0
    preset: str = ""


def student_level(model: Any, options: LevelOptions) -> Level:
    """The first level of the student's schedule: as its card says, or by the preset.

    Raises:
        ValueError: The preset is "auto" and there is no card, or it does not fit the model.
    """
    card_of_model, preset = model.attachments.get(CARD, {}), options.preset
    if preset == AUTO and (first := _first_level(card_of_model)):
        return Level(model, first, preset=str(card_of_model.get("preset", "")))
    preset = known_preset(model, preset)
    drawn, _sampler, sigmas = student_schedule(model, preset, Drawing(1, 1.0, "euler", options.scheduler, 0))
    first = float(sigmas[0])
    return Level(drawn, first, initial_scale(preset, first), preset)


def _first_level(card_of_model: dict[str, str]) -> float:
    """The first of the levels in a card; 0 where it names none."""
    try:
        first = float(json.loads(card_of_model.get("sigmas", "[]"))[0])
    except (ValueError, TypeError, LookupError):
        return 0.0
    return first if math.isfinite(first) and first > 0 else 0.0


def one_step(model: Any, sigma: float) -> Process:
    """From ``sigma`` to the picture at once."""
    return _process(model, torch.tensor([sigma, 0.0], dtype=torch.float64))


def levels_of(model: Any, options: LevelOptions) -> Process:
    """The model's own noise levels by a stock scheduler, drawn through with fresh noise."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), options.scheduler, options.steps)
    return _process(model, sigmas).ending_at(LEAST)


def _process(model: Any, sigmas: Tensor) -> Process:
    kind, _levels = bridge.noise_levels(model)
    return Process.flow(sigmas.double()) if kind == "flow" else Process.edm(sigmas.double())
