"""What every oracle is: a judge that gives each picture a score."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Oracle(ABC):
    """A judge of pictures. Subclasses say how; callers put ``network`` on a device (ComfyUI's memory management).

    Attributes:
        name: For people.
        network: Everything that holds weights.
        differentiable: Whether ``reward`` passes gradients to the pictures.
        comparable_across_prompts: Whether one threshold means the same for every prompt.
    """

    name: str
    network: nn.Module
    differentiable: bool = False
    comparable_across_prompts: bool = True
    batch: int = 32

    @abstractmethod
    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of ``images`` [B, H, W, 3] in 0..1 on the network's device, with gradients where differentiable.

        ``prompts`` has one entry a picture.
        """

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B], float32 on the CPU, of ``images`` [B, H, W, 3] in 0..1.

        Runs in batches of at most ``batch`` pictures, so that memory stays bounded; a picture's score doesn't depend on
        the others. A picture that holds NaN scores NaN.

        Raises:
            ValueError: The number of prompts is neither 1 nor the number of pictures.
        """
        prompts = one_prompt_each(prompts, len(images))
        device = next(self.network.parameters()).device
        scores = [torch.zeros(0)]
        with torch.no_grad():
            for start, part in _batches(images, self.batch):
                scores.append(self.reward(part.to(device), prompts[start : start + len(part)]).float().cpu())
        result = torch.cat(scores)
        broken = ~images.flatten(1).isfinite().all(dim=1).cpu() if len(images) else torch.zeros(0, dtype=torch.bool)
        return result.masked_fill(broken, float("nan"))

    def fingerprint(self) -> str:
        """Sixteen hex digits that change whenever the scores could: name and all weights."""
        digest = hashlib.sha256(f"{type(self).__name__}|{self.name}".encode())
        for key, value in sorted(self.network.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def one_prompt_each(prompts: list[str], pictures: int) -> list[str]:
    """``prompts`` with one entry a picture; a single prompt holds for all.

    Raises:
        ValueError: There are several prompts, but not one a picture.
    """
    if len(prompts) == 1:
        return prompts * pictures
    if len(prompts) != pictures:
        raise ValueError(
            f"There are {len(prompts)} prompts for {pictures} pictures; give one prompt for all, or one for each picture."
        )
    return prompts


def _batches(images: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(images), size):
        yield start, images[start : start + size]
