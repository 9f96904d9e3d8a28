"""The options of PromptKD's two stages, for their nodes and for ``apprentice distill promptkd-teacher`` and ``promptkd``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .options import option, precision_option, rate_option, seed_option
from .promptkd_runs import CLASSES, RANDOM

_SENTENCE = "Sentences with {} where a name goes, one a line"


def _rate(default: float) -> Any:
    published = f"{default:g} in the published runs. It falls as a cosine after a slow first epoch."
    return rate_option(default, f"Highest learning rate; {published}", 1e-7, 10.0)


def _epochs(most: int, remark: str) -> Any:
    return option(
        20, least=2, command={"help": "How often every picture is seen."},
        node={"most": most, "help": f"How often each is seen; {remark}."},
    )  # fmt: skip


def _batch(published: int, least: int) -> Any:
    return option(
        published, least=least, command={"help": "Pictures a step."},
        node={"name": "batch_size", "most": 4096, "help": f"Pictures a step; {published} in the published runs."},
    )  # fmt: skip


def _precision() -> Any:
    return precision_option(default="fp32", help="What the CLIPs compute in.")


def _save_every() -> Any:
    return option(500, "Steps between checkpoints.", least=1, node=None)


@dataclass(frozen=True)
class TeacherOptions:
    """Of the first stage: prompt tokens for the large CLIP from a few labelled pictures."""

    name: str = option(
        "my teacher", "Where tokens are learned: name of the file in models/promptkd_teachers, and of the run to resume.",
        command=None,
    )  # fmt: skip
    shots: int = option(16, "Pictures of every class, at most.", least=1, node={"most": 100000})
    epochs: int = _epochs(10000, "20 in the published runs")
    batch: int = _batch(4, 1)
    learning_rate: float = _rate(0.0025)
    precision: str = _precision()
    seed: int = seed_option()
    save_every: int = _save_every()
    templates: str = option(
        "", f"{_SENTENCE}. For a CLIP without tokens; empty: the CLIP's own, or sixty that suit photos.", lines=True,
        optional=True, command=None,
    )  # fmt: skip


@dataclass(frozen=True)
class CriticOptions:
    """Of the second stage: a small CLIP that follows the teacher on pictures without labels."""

    tokens: Path | None = option(None, "The teacher's prompt tokens; without them it is zero-shot.", node=None)
    templates: Path | None = option(None, "Sentences with {} for a zero-shot teacher, one a line.", node=None)
    name: str = option("my critic", "Name of the file in models/promptkd, and of the run that is resumed.", command=None)
    epochs: int = _epochs(100000, "the first warms up")
    batch: int = _batch(8, 2)
    learning_rate: float = _rate(0.005)
    weight: float = option(
        1000.0,
        node={
            "least": 0.001, "most": 1e6, "step": 10.0, "round": 0.001,
            "help": "Factor of the loss, which is a mean over classes too: with few classes it pulls hard. 1000 as published; "
            "200 there for small or fine-grained domains. Lower it if the curve jumps.",
        },
        command={"help": "Factor of the loss, a mean over classes: lower it with few of them. Published: 1000 or 200."},
    )  # fmt: skip
    temperature: float = option(
        1.0, command={"help": "Of both models' probabilities."},
        node={
            "least": 0.01, "most": 100.0, "step": 0.1, "round": 0.01,
            "help": "Of both models' probabilities; 1 as published. Higher: more say to classes that are unlikely.",
        },
    )  # fmt: skip
    augment: bool = option(
        False,
        node={
            "help": "Random crops and mirrorings, as published: better from few photos, but the teacher must look at each in "
            "every epoch. Off: it looks once, and its view is kept on disk. For folders only.",
        },
        command={
            "default": True,
            "help": "Random crops and mirrorings, as published. Without, the teacher looks at each picture once.",
        },
    )  # fmt: skip
    depth: int = option(
        9, least=1, command={"help": "Blocks with prompt tokens; the authors: 9, and 3 across data sets."},
        node={"most": 100, "help": "Blocks of the small CLIP that get prompt tokens."},
    )  # fmt: skip
    precision: str = _precision()
    seed: int = seed_option()
    save_every: int = _save_every()


@dataclass(frozen=True)
class TowerOptions:
    """Of the second stage too: what it learns beyond the published run. As they are, they change nothing."""

    blocks: int = option(
        0, "The small CLIP's last blocks that learn too; 0 as published. As many as it has: all of its picture tower. The file "
        "grows by what learned.", least=0, node={"most": 100, "optional": True},
    )  # fmt: skip
    tower_rate: float = option(
        3e-5, least=1e-7, most=0.1,
        node={
            "step": 1e-5, "round": 1e-7, "optional": True,
            "help": "AdamW's highest rate for those blocks: 0.00003 suits CLIPs of photos, 0.002 the tiny world's.",
        },
        command={"help": "AdamW's highest rate for those blocks."},
    )  # fmt: skip
    target: str = option(
        CLASSES, choices="critic_target",
        node={
            "optional": True,
            "help": "What is learned. classes: the teacher's view of all words, as published. odds: above all the log-odds of "
            "the word that the picture's prompt names, by which a gate decides; every picture needs its prompt.",
        },
        command={"help": "classes: as published; odds: of each prompt's class, from a text beside each picture (a.txt, a.png)."},
    )  # fmt: skip
    start: str = option(
        RANDOM, "How the projector begins. random: as published. words: as what both CLIPs make of the same words; better from "
        "few pictures.", choices="critic_start", node={"optional": True},
    )  # fmt: skip
    held_out: float = option(
        0.0, "The share of the pictures from which nothing is learned: the epoch that is best on them is kept, and the run ends "
        "when none gets better. 0: the last epoch, as published.", least=0.0, most=0.5,
        node={"step": 0.05, "round": 0.01, "optional": True},
    )  # fmt: skip
