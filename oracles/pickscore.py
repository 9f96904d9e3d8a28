"""PickScore v1 (arXiv 2305.01569): CLIP ViT-H/14 tuned on people's picks between two pictures of one prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .base import TwoTowerOracle
from .preprocess import floor_offset, resize_and_crop
from .tokenizers import clip_tokens
from .towers import Weights, build_hf_clip


class PickScore(TwoTowerOracle):
    """exp(logit_scale) times the cosine; a softmax over pictures of one prompt gives the chance that each is picked.

    Args:
        weights: A transformers CLIP's state dict.
        config: Its ``config.json``, where sizes can't be read off the weights (test sizes).
    """

    differentiable = True
    # Only differences between pictures of one prompt were ever trained.
    comparable_across_prompts = False
    batch = 16

    def __init__(self, weights: Weights, config: dict[str, Any] | None = None, name: str = "PickScore v1") -> None:
        self.name = name
        self.network: Any = build_hf_clip(weights, name, config)
        # In full precision, also when the network is halved.
        self.scale = float(self.network.logit_scale.exp())
        self.size: int = self.network.config.vision_config.image_size

    def image_features(self, images: Tensor) -> Tensor:
        """See ``TwoTowerOracle``."""
        pixels = resize_and_crop(images, self.size, floor_offset).to(self.dtype)
        pooled = self.network.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.network.visual_projection(pooled).float(), dim=-1)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """See ``TwoTowerOracle``."""
        ids = clip_tokens(prompts).to(next(self.network.parameters()).device)
        pooled = self.network.text_model(input_ids=ids).pooler_output
        return F.normalize(self.network.text_projection(pooled).float(), dim=-1)

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``."""
        return self.scale * self.cosine(images, prompts)
