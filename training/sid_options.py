"""The options of SiD, for the node SiD Distill and for ``apprentice distill sid``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..samplers.schedules import INIT_SIGMA, INIT_TIMESTEP
from .options import checkpointing_option, optimiser_option, option, precision_option, seed_option, side_option
from .variety import OFF

LORA, FULL = "LoRA", "full copy"
TEACHER, BASE, STUDENT = MADE_FOR = "teacher", "base", "student"

_PRESETS = (
    "A published run's settings; options given beside it win. The paper's FIDs, not measured here: cifar10-uncond 1.923, "
    "cifar10-cond 1.710, imagenet64-cond 1.524, ffhq64 1.550, afhqv2-64 1.628."
)


def _kappa(who: str, least: float = 0.0) -> Any:
    return option(1.5, f"Guidance of {who}. 1 is none, and cheaper.", least=least, most=20.0, step=0.1, round=0.01, command=None)


def _rate(who: str, name: str, whose: str) -> Any:
    return option(
        1e-5, command={"default": None, "name": name, "help": f"Learning rate of the {whose}; 1e-5."},
        node={
            "least": 1e-9, "most": 0.1, "step": 1e-6, "round": 1e-9,
            "help": f"Learning rate of the {who}. A LoRA takes about 1e-5 to 1e-4, a full copy 1e-6.",
        },
    )  # fmt: skip


def _command(help: str, **more: Any) -> Any:
    return option(None, help, node=None, **more)


@dataclass(frozen=True)
class SidOptions:
    """What people may choose; a command leaves open (None) what its preset says."""

    preset: str | None = _command(_PRESETS)
    name: str = option("my student", "Name of the file that is made, and of the run that is resumed.", command=None)
    method: str = option(
        LORA, choices="method", command=None,
        help="LoRA: one copy of the teacher in memory, small file, for models/loras. full copy: three copies, for "
        "models/diffusion_models.",
    )  # fmt: skip
    rank: int = option(64, "Rank of the LoRA; without effect on a full copy.", least=1, most=1024, command=None)
    pictures: int = option(
        20000, least=1, command={"default": None, "help": "Pictures that the generator draws in all; 20,000."},
        node={
            "most": 1000000000,
            "help": "How many the student draws while it learns. The official runs on SD1.5 took 10 million; tens of thousands "
            "already give a usable student.",
        },
    )  # fmt: skip
    batch: int = option(
        16, least=1, command={"default": None, "help": "Pictures an iteration, over all processes; 32."},
        node={"name": "batch_size", "most": 8192, "help": "Pictures an iteration; the official runs: 512."},
    )  # fmt: skip
    part: int = option(
        0, command={"default": None, "least": 1, "help": "Pictures at a time: less memory, the same result."},
        node={
            "name": "at_once", "least": 0, "most": 8192,
            "help": "Pictures in memory at a time; 0 for the whole batch. Changes memory, not the student.",
        },
    )  # fmt: skip
    width: int = side_option("Width of the pictures that are drawn.")
    height: int = side_option("Height of them.")
    steps: int = option(
        1, least=1, command={"default": None, "most": 16, "help": "Steps of the student; 1."},
        node={"most": 4, "help": "Steps the student shall draw in; above 1 it learns 1 to so many."},
    )  # fmt: skip
    alpha: float = option(
        1.0, command={"default": None, "help": "SiD's alpha; 1.2. Try 1.0 where training is unstable."},
        node={
            "least": 0.1, "most": 2.0, "step": 0.05, "round": 0.001,
            "help": "The loss's alpha: 1.0 in the official runs on Stable Diffusion, 1.2 in most on EDM networks.",
        },
    )  # fmt: skip
    kappa1: float = _kappa("the fake score network in its own training", -4.0)
    kappa2: float = _kappa("the fake score network where the student is judged (the paper's kappa2 = kappa3)", -4.0)
    kappa4: float = _kappa("the teacher. 1.5 gave the best FID, 2 to 4.5 follow the prompt more closely")
    generator_rate: float = _rate("student", "glr", "generator")
    fake_rate: float = _rate("fake score network; as high as the student's or higher", "lr", "fake score network")
    ema_half_life: float = option(
        5000.0, least=0.0, most=1e9, step=100.0, command=None,
        help="The student is averaged over about so many pictures, at most a twentieth of those seen.",
    )  # fmt: skip
    augment: float | None = _command("Probability of EDM's augmentations; 0.12 where the teacher knows them.", least=0, most=1)
    dropout: float | None = _command("Of the networks that learn, while they do; the teacher's own.", least=0, most=0.99)
    student: Path | None = _command("An EDM network to begin with instead of the teacher, of its kind: it saves most of the way.")
    real: Path | None = _command("A folder of real pictures (PNG, JPEG): adds SiDA's adversarial loss. Without classes.")
    adversarial: float | None = _command("Factor of that loss; 0.01 with --real.", least=0)
    precision: str = precision_option(default=None, help="fp32; fp16 on an NVIDIA GPU for the presets that were trained so.")
    gradient_checkpointing: bool = checkpointing_option()
    seed: int = seed_option(default=None, help="Of all randomness; 0.")
    save_every: int = option(
        50, least=1, command={"default": 250, "help": "Iterations between checkpoints."},
        node={"most": 100000, "help": "Iterations between saves and previews; what a crash can cost at most."},
    )  # fmt: skip
    samples_every: int = option(1000, "Iterations between grids of samples; 0 for none.", least=0, node=None)
    init_timestep: int = option(
        INIT_TIMESTEP, "Stable Diffusion: the timestep that the student draws from.", least=1, most=999, optional=True,
        command=None,
    )  # fmt: skip
    init_sigma: float = option(
        INIT_SIGMA, "EDM models (the tiny world's): the noise level that the student draws from.", least=0.01, most=1000.0,
        step=0.1, round=0.001, optional=True, command=None,
    )  # fmt: skip


@dataclass(frozen=True)
class SidExtras:
    """What came later, behind all other inputs. As they are, they change nothing."""

    made_for: str = option(
        TEACHER, choices="made_for", optional=True, command=None,
        help="What the saved LoRA must be loaded onto. teacher: your checkpoint with the very LoRAs that are on model here. "
        "base: the bare checkpoint of model; the file holds your look and the speed. student: the connected "
        "student as it is here; it gets your look. base and student are compressed to rank: take 64 or more.",
    )  # fmt: skip
    variety: str = option(
        OFF, choices="variety",
        node={
            "optional": True,
            "help": "Keeps the student's pictures as various as the teacher's; SiD alone narrows them. anchor: its first step is "
            "drawn towards what the teacher makes of the same noise (two to three times as long). consistency: it is kept on the "
            "teacher's way from noise to picture (a third longer).",
        },
        command={"help": "Beside SiD's loss, against its narrowing: off, anchor (two to three times as long), consistency."},
    )  # fmt: skip
    price: float = option(
        1.0, least=1e-6, most=1e6, command=None,
        node={
            "step": 0.1, "round": 1e-6, "optional": True,
            "help": "With an oracle: how much score a nat of change must earn. High: the student draws as the teacher does; low: "
            "as the oracle likes, with less variety. Begin with the spread of the teacher's scores for one prompt.",
        },
    )  # fmt: skip
    optimiser: str = optimiser_option("its steps about as large and its average longer.")
