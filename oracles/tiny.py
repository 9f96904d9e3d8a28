"""The embedded world's oracle: a small CLIP that reads pictures and words."""

from __future__ import annotations

from torch import Tensor

from ..networks.tiny_clip import TinyClip
from ..networks.tiny_text import Vocabulary
from .base import Oracle


class TinyWorldOracle(Oracle):
    """exp(logit_scale) times the cosine between picture and prompt, as CLIP scores are given.

    Args:
        network: The trained towers.
        words: The vocabulary they were trained with.
        name: For people.
    """

    differentiable = True
    comparable_across_prompts = True

    def __init__(self, network: TinyClip, words: Vocabulary, name: str = "tiny world CLIP") -> None:
        self.network: TinyClip = network
        self.words, self.name = words, name

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``."""
        unique = list(dict.fromkeys(prompts))
        ids = self.words.encode(unique).to(images.device)
        text = self.network.encode_text(ids)[[unique.index(p) for p in prompts]]
        image = self.network.encode_image(images.movedim(-1, 1) * 2 - 1)
        return self.network.logit_scale.exp().clamp(max=100) * (image * text).sum(-1)
