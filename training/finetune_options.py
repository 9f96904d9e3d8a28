"""The options of fine-tuning by an oracle, for the node Reward Finetune and for ``apprentice finetune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..samplers.presets import AUTO
from .options import checkpointing_option, optimiser_option, option, precision_option, rate_option, seed_option, side_option


@dataclass(frozen=True)
class FinetuneOptions:
    """What people may choose."""

    small_clip: Path | None = option(
        None, "A critic's small CLIP, or an aesthetic predictor's.", node=None, command={"name": "clip"}
    )
    max_prompts: int = option(24, "How many prompts are used, at most.", least=1, most=100000, command=None)
    name: str = option("my tuned model", "Name of the LoRA, and of the run that is resumed.", command=None)
    algorithm: str = option(
        "adjoint_matching",
        node={
            "choices": "algorithm",
            "help": "adjoint_matching: reaches the optimal law, memory of one picture's step. path_kl: the same law, straight "
            "through the sampler. diffusion_nft: for oracles that only score; also for one-step students. weighted_regression: "
            "for them, too; slow. preview: last step only, a quick look that "
            "leads to no law. direct: for one-step students; each picture moves to a better one near.",
        },
        command={
            "help": "adjoint_matching, path_kl, diffusion_nft (for oracles that only score), weighted_regression (likewise, "
            "slow), preview (leads to no law)."
        },
    )  # fmt: skip
    divergence: str = option(
        "kl", command={"help": "kl, half_chi2, half_chi2_kl, forward_kl, js2, jeffreys, alpha:0.5."},
        node={
            "choices": "divergence",
            "help": "How a change is priced. kl is the usual; half_chi2 forbids large changes of few pictures, forward_kl keeps "
            "every kind of picture alive. Others lie between.",
        },
    )  # fmt: skip
    strength: str = option(
        "target KL", command={"help": "What --value is: 'target KL', 'target reward gain' or 'alpha'."},
        node={
            "choices": "strength",
            "help": "What value means. target KL: how far the law may move, in nats a picture. target reward gain: by how much "
            "the mean score shall rise. alpha: the price itself, in units of the score; lower is stronger.",
        },
    )  # fmt: skip
    value: float = option(
        1.0, command={"default": 0.5, "help": "Nats a picture, a gain of the mean score, or the price itself."},
        node={"least": 1e-6, "most": 1e9, "step": 0.1, "round": 1e-6, "help": "The number for the chosen strength."},
    )  # fmt: skip
    rank: int = option(16, "Rank of the LoRA.", least=1, most=1024, command=None)
    updates: int = option(300, "Steps of the optimiser.", least=1, node={"most": 1000000})
    batch: int = option(8, "Pictures a step.", least=1, node={"name": "batch_size", "most": 4096}, command={"default": 16})
    part: int = option(
        1, least=0, command={"default": 0, "help": "Pictures in memory at a time; 0 for all."},
        node={"name": "at_once", "most": 4096, "help": "Pictures in memory at a time; 0 for the whole batch."},
    )  # fmt: skip
    width: int = side_option("Width of the pictures.")
    height: int = side_option("Height of them.")
    steps: int = option(
        20, least=4, command={"help": "Steps of a draw while it learns."},
        node={
            "least": 1, "most": 1000,
            "help": "Steps of a draw while it learns, always with fresh noise (eta 1), so that the start is forgotten. 1, with "
            "diffusion_nft, for a one-step student.",
        },
    )  # fmt: skip
    scheduler: str = option("karras", "ComfyUI's noise schedule.", choices="scheduler", command=None)
    count: int = option(
        8, least=0, most=1000, command=None, node={"name": "regressed_steps"},
        help="adjoint_matching: steps of each draw that it learns from, a third of them the last. diffusion_nft: noise levels "
        "at which it learns from each picture. 0 for all.",
    )  # fmt: skip
    learning_rate: float = rate_option(0.0003, "Highest learning rate.", 1e-8, 1.0, command=1e-4)
    base_draws: int = option(
        16, least=8, command={"default": 64, "help": "Pictures of the network as it was, for each prompt."},
        node={
            "most": 100000,
            "help": "Pictures of the model as it was, for each prompt, from which strength and divergence follow. 16 are a "
            "matter of minutes; 64 or more meet a target closely. With strength alpha and kl nothing follows from them, and 8 "
            "are drawn.",
        },
    )  # fmt: skip
    rounds: int = option(
        4, least=1, command={"help": "Of weighted regression."},
        node={"most": 1000, "help": "weighted_regression: how often fresh pictures are drawn."},
    )  # fmt: skip
    precision: str = precision_option()
    gradient_checkpointing: bool = checkpointing_option()
    seed: int = seed_option()
    save_every: int = option(
        25, least=1, command={"help": "Steps between checkpoints."},
        node={"most": 100000, "help": "Steps between saves and pictures."},
    )  # fmt: skip
    # A socket alone: ComfyUI saves the text that a node shows behind its widgets, where a new one would take it.
    preset: str = option(
        AUTO, optional=True, socket=True, command=None,
        help="direct: the name of the student's schedule (see Student Sampler), whose first noise level it draws from and is "
        "tuned at. Left out (auto): what the model's card says, where Apprentice made or loaded it. custom: the scheduler's "
        "highest level.",
    )  # fmt: skip


@dataclass(frozen=True)
class FinetuneExtras:
    """What came later: a node's inputs behind its ``quality``."""

    optimiser: str = optimiser_option("without Adam's momentum, so the curve is rougher.")
