"""What the network earns before it is tuned, from which follow the strength of a run and lambda for each prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..files import write_atomically
from .fdivergence import DualSolution, alpha_for_kl, alpha_for_reward, divergence, kl_to_base, solve_dual, surrogate_reward
from .finetune_task import Settings, Task
from .loop import step_generator


@dataclass(frozen=True)
class Baseline:
    """The base's rewards [prompts, draws], and what follows: the strength, and lambda for each prompt."""

    rewards: Tensor
    alpha: float
    solutions: list[DualSolution]
    name: str

    @property
    def lam(self) -> Tensor:
        """lambda of each prompt."""
        return torch.tensor([solution.lam for solution in self.solutions], dtype=torch.float32)

    def surrogate(self, values: Tensor, rows: Tensor) -> Tensor:
        """The reward whose KL optimum is the divergence's; rewards as they are for KL."""
        if self.name == "kl":
            return values
        return surrogate_reward(values, self.lam.to(values)[rows.to(values.device)], self.alpha, self.name)

    def weights(self, rewards: Tensor, rows: Tensor, rounds: int) -> Tensor:
        """w^(1 / rounds) of rewards [N], of mean 1 for each prompt, as one round of weighted regression counts them."""
        y = (rewards.double() - self.lam.double()[rows]) / self.alpha
        raw = (divergence(self.name).log_weight(y) / rounds).exp()
        sums = torch.zeros(len(self.solutions), dtype=raw.dtype).index_add_(0, rows, raw)
        means = sums / rows.bincount(minlength=len(sums)).clamp(min=1)
        return (raw / means.clamp(min=1e-12)[rows]).float()

    def summary(self) -> dict[str, float]:
        """For people: the strength in all its units, means over prompts."""
        kl = sum(kl_to_base(s) for s in self.solutions) / len(self.solutions)
        gained = sum(float((r * s.weights).mean()) for r, s in zip(self.rewards.double(), self.solutions, strict=True))
        return {
            "alpha": self.alpha, "alpha_as_kl": self.alpha * divergence(self.name).stiffness, "target_kl": kl,
            "target_reward": gained / len(self.solutions), "base_reward": float(self.rewards.mean()),
            "ess": min(s.ess for s in self.solutions),
        }  # fmt: skip


Drawing = Callable[[int, int, Tensor], None]
"""Told of the base's pictures while they are drawn: evaluations done, evaluations in all, some pictures as they look now. It may
raise KeyboardInterrupt."""


def base_rewards(
    task: Task, settings: Settings, file: Path, interrupted: Callable[[], bool], drawing: Drawing | None = None
) -> Tensor:
    """Rewards [prompts, draws] of the base's pictures; drawn once, kept in ``file``, and drawn anew if that is another run's.

    Raises:
        KeyboardInterrupt: ``interrupted`` said so; what was drawn is kept.
    """
    key = task.key(draws=settings.draws, seed=settings.seed)
    rewards = _read_rewards(file, key, settings.draws)[: task.prompts]
    done, total = (count * settings.draws * task.process.steps for count in (len(rewards), task.prompts))

    def step(pictures: Tensor) -> None:
        nonlocal done
        done += len(pictures)
        if drawing is not None:
            drawing(done, total, pictures)

    for prompt in range(len(rewards), task.prompts):
        if interrupted():
            raise KeyboardInterrupt
        rows, rng = torch.full((settings.draws,), prompt), step_generator(settings.seed + 7_919, prompt)
        pictures = task.draw(rows, rng, tuned=False, step=step)
        rewards.append(task.judge(pictures, rows).double().tolist())
        text = json.dumps({"key": key, "rewards": rewards})
        write_atomically(file, lambda part, text=text: part.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    return torch.tensor(rewards)


def _read_rewards(file: Path, key: str, draws: int) -> list[list[float]]:
    """What ``file`` holds of a run with this key; nothing if it is another's, or damaged."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        rows = [[float(value) for value in row] for row in kept["rewards"]] if kept["key"] == key else []
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return rows if all(len(row) == draws for row in rows) else []


def baseline(rewards: Tensor, settings: Settings) -> Baseline:
    """Strength and lambdas from the base's rewards [prompts, draws].

    Raises:
        ValueError: The target can't be reached, or no density is optimal, or the oracle has no score.
    """
    if broken := int((~rewards.isfinite()).sum()):
        raise ValueError(
            f"The oracle has no score for {broken} of {rewards.numel()} pictures of the model as it was; choose another "
            "precision, oracle or VAE, and another name for the run."
        )
    try:
        return _priced(rewards, settings, settings.priced)
    except ValueError:
        if settings.algorithm != "diffusion_nft":
            raise
        # Few pictures can hold no law of forward KL's where the model has one. Targets are met, and told, in KL then.
        return _priced(rewards, settings, "kl")


def _priced(rewards: Tensor, settings: Settings, name: str) -> Baseline:
    """``baseline`` where a change is paid for in this divergence."""
    alpha = settings.value
    if settings.strength == "target KL":
        alpha = alpha_for_kl(rewards, settings.value, name)
    elif settings.strength == "target reward gain":
        alpha = alpha_for_reward(rewards, float(rewards.double().mean()) + settings.value, name)
    return Baseline(rewards, alpha, [solve_dual(row, alpha, name) for row in rewards], name)
