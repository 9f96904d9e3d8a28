"""How long and how much is learned, in one word: what "quick", "good" and the others set among a training method's options.

Good is what the options' own defaults say, but for what stands here. What no word names stays as the artist set it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .finetune_options import FinetuneOptions
from .promptkd_options import CriticOptions, TeacherOptions
from .sid_options import FULL, LORA, SidOptions

AS_SET, QUICK, GOOD, PAPER = "as set", "quick", "good", "paper"
QUALITIES = (AS_SET, QUICK, GOOD, PAPER)
KEEP = "keep my look"
SID_QUALITIES = (*QUALITIES, KEEP)

_TABLE: dict[type, dict[str, dict[str, Any]]] = {
    # SiD-LSG's published runs on Stable Diffusion 1.5: 10 million pictures in batches of 512, guidance 1.5, rate 1e-6.
    SidOptions: {
        QUICK: {"pictures": 2000, "batch": 8, "rank": 32},
        GOOD: {},
        PAPER: {
            "method": FULL, "pictures": 10_000_000, "batch": 512, "part": 1, "alpha": 1.0, "kappa1": 1.5, "kappa2": 1.5,
            "kappa4": 1.5, "generator_rate": 1e-6, "fake_rate": 1e-6, "ema_half_life": 50_000.0,
        },
        # From a published student on: hundreds of iterations instead of thousands (DP-DMD, arXiv 2602.03139: 750).
        KEEP: {
            "method": LORA, "pictures": 6000, "batch": 8, "part": 1, "rank": 64, "steps": 4, "alpha": 1.0, "kappa1": 1.0,
            "kappa2": 1.0, "kappa4": 1.5, "generator_rate": 2e-5, "fake_rate": 1e-4, "ema_half_life": 500.0,
        },
    },
    # Adjoint Matching's published run: 1,000 updates on 40 pictures of 40 steps, half of which are regressed on.
    FinetuneOptions: {
        QUICK: {"updates": 60, "batch": 4, "base_draws": 8, "steps": 10, "count": 4},
        GOOD: {"base_draws": 64},
        PAPER: {"updates": 1000, "batch": 40, "base_draws": 64, "steps": 40, "count": 20},
    },
    # PromptSRC's and PromptKD's published runs; their other numbers are the options' defaults.
    TeacherOptions: {
        QUICK: {"shots": 4, "epochs": 5},
        GOOD: {},
        PAPER: {"batch": 4, "learning_rate": 0.0025},
    },
    CriticOptions: {
        QUICK: {"epochs": 5},
        GOOD: {},
        PAPER: {"batch": 8, "learning_rate": 0.005, "weight": 1000.0, "temperature": 1.0, "depth": 9, "augment": True},
    },
}  # fmt: skip


def settings_of(options: type, quality: Any) -> dict[str, Any]:
    """Field -> value that the word sets; nothing for "as set", nor for what is no such word.

    Front ends save what a node once showed behind its widgets, where a newer widget takes it for its value.
    """
    table = _TABLE.get(options, {})
    if not isinstance(quality, str) or quality not in table:
        return {}
    defaults = {each.name: each.default for each in fields(options)}
    touched = {name for word in (QUICK, GOOD, PAPER) for name in table[word] if name not in _KEPT}
    base: Mapping[str, Any] = {name: defaults[name] for name in touched}
    return {**base, **table[quality]}


_KEPT = ("part", "method", "augment")  # set only by the words that name them: memory, and what the artist makes
