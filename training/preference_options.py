"""The options of learning from clicks, for the node Taste Finetune and for ``apprentice prefer``."""

from __future__ import annotations

from dataclasses import dataclass

from ..samplers.presets import AUTO
from .options import checkpointing_option, option, precision_option, rate_option, seed_option


@dataclass(frozen=True)
class PreferenceOptions:
    """What people may choose."""

    name: str = option("my look", "Name of the LoRA, and of the run that is resumed.", command=None)
    rank: int = option(16, "Rank of the LoRA.", least=1, most=1024, command=None)
    beta: float = option(
        500.0, least=1.0, most=1e6, step=50.0, round=0.01,
        help="How close the model keeps to what it was; higher is closer. Diffusion-DPO takes 2,000 to 5,000, for a million.",
    )  # fmt: skip
    updates: int = option(200, "Steps of the optimiser.", least=1, node={"most": 1000000})
    batch: int = option(4, "Pairs a step.", least=1, node={"name": "batch_pairs", "most": 4096})
    part: int = option(
        1, least=0, command={"default": 0, "help": "Pairs in memory at a time; 0 for all."},
        node={"name": "at_once", "most": 4096, "help": "Pairs in memory at a time; 0 for the whole batch."},
    )  # fmt: skip
    width: int = option(0, "Width of the pictures; 0 as most of the clicked ones are.", least=0, most=16384, step=8, command=None)
    height: int = option(0, "Height of them; 0 likewise.", least=0, most=16384, step=8, command=None)
    steps: int = option(
        20, least=1, most=1000, command={"least": 4, "help": "Noise levels that are learned at."},
        node={"help": "Noise levels that are learned at, by scheduler. 1 for a one-step student: at the level of its preset."},
    )  # fmt: skip
    scheduler: str = option("karras", "ComfyUI's noise schedule.", choices="scheduler", command=None)
    own_noise: bool = option(
        True, node={"help": "Learn with the noise that a picture was drawn from, where its seed is known. Off: fresh noise."},
        command=None,
    )  # fmt: skip
    learning_rate: float = rate_option(0.0003, "Highest learning rate.", 1e-8, 1.0, command=1e-4)
    precision: str = precision_option()
    gradient_checkpointing: bool = checkpointing_option()
    seed: int = seed_option()
    save_every: int = option(
        25, least=1, command={"help": "Steps between checkpoints."}, node={"most": 100000, "help": "Steps between saves."}
    )  # fmt: skip
    preset: str = option(
        AUTO, optional=True, socket=True, command=None,
        help="steps 1: the name of the student's schedule (see Student Sampler), whose first noise level it draws from. Left out "
        "(auto): what the model's card says, where Apprentice made or loaded it.",
    )  # fmt: skip
