"""The 1-D mixture as a task with two prompts, for tests of fine-tuning runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfyui_apprentice.benchmarks import control_toy as toy
from comfyui_apprentice.training.finetune_task import Task
from torch import Tensor


def task(differentiable: bool = True, seed: int = 0) -> Task:
    """The 1-D mixture with two prompts: the bump on the right, and its mirror image."""
    network = toy.Control(seed)

    def reward(x: Tensor, rows: Tensor) -> Tensor:
        signs = 1.0 - 2.0 * rows.to(x)[:, None]
        value = toy.reward(x * signs)
        return value if differentiable else value.detach()

    def labelled(denoise: Any) -> Any:
        # The second prompt's world is the first's mirrored, so that one network serves both.
        def network(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
            signs = 1.0 - 2.0 * rows.to(x)[:, None]
            return denoise(x * signs, sigma) * signs

        return network

    return Task(
        labelled(toy.denoise), labelled(network), network, reward, lambda rows: rows, 2, toy.levels(20), (1,),
        differentiable=differentiable,
    )  # fmt: skip


def right(made: Task, count: int = 1000) -> float:
    """The share of the tuned network's pictures that lie where the reward is, for either prompt."""
    rows = torch.arange(2).repeat_interleave(count)
    x = replace(made, drawn_at_once=2 * count).draw(rows, torch.Generator().manual_seed(9))[:, 0]
    return float((x * (1.0 - 2.0 * rows) > 0).float().mean())
