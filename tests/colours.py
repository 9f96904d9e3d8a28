"""Pictures of one colour each, and CLIPs at random that know their words: what critics are quickly made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfyui_apprentice.networks.tiny_text import Vocabulary, WordTokenizer
from comfyui_apprentice.oracles.clip_files import ClipFile
from comfyui_apprentice.world.weights import make_clip
from torch import Tensor

WORDS = WordTokenizer(Vocabulary(["a", "blue", "green", "of", "picture", "red"]))
CLASSES = ["red", "green", "blue"]


class Colours:
    """Pictures of one colour each with some noise; counts how often each was drawn."""

    def __init__(self, count: int) -> None:
        noise = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(count) % 3
        self.pixels = torch.nn.functional.one_hot(self.labels, 3).float()[:, :, None, None] * 3 + noise
        self.drawn = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Sequence[int], epoch: int) -> Tensor:
        self.drawn += len(indices)
        return self.pixels[list(indices)]


def clip(size: str) -> ClipFile:
    torch.manual_seed(len(size) + ord(size[0]))
    network = make_clip(size, len(WORDS)).eval().requires_grad_(False)
    return ClipFile(f"the {size} one", network, WORDS, ("a picture of a {}",))
