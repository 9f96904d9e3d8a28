"""An oracle that needs no weights: what a test has painted, it gets as a score."""

from __future__ import annotations

import torch
from comfyui_apprentice.oracles.base import Oracle


class Brightness(Oracle):
    """The mean of the picture."""

    name, network = "brightness", torch.nn.Linear(1, 1)

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return images.mean((1, 2, 3))

    def fingerprint(self) -> str:
        return "brightness"
