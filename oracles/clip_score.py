"""Oracles on a plain open_clip model: CLIP score, and HPSv2, whose weights are such a model tuned on preferences."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .base import TwoTowerOracle
from .preprocess import floor_offset, normalise, resize_and_crop, resize_and_pad, resize_pil, round_half_even
from .tokenizers import clip_tokens, open_clip_tokens
from .towers import Weights, build_open_clip, hf_to_open_clip, is_hf_clip


class OpenClipOracle(TwoTowerOracle):
    """What oracles on open_clip share: towers, tokenizer, preprocessing.

    Weights in transformers' layout are drawn and read as transformers does: its tokens, and its middle square, which differs by
    a pixel where an odd number of pixels is cut off.

    Args:
        weights: A CLIP's state dict, in open_clip's layout (``visual.*``) or transformers' (``vision_model.*``).
        model: open_clip's name of the architecture ("ViT-L-14"); without it, the sizes are read off the weights.
        config: open_clip's model config, in place of a name.
        quick_gelu: OpenAI's own weights need it; None takes it for transformers' layout, where most are OpenAI's.
    """

    differentiable = True
    batch = 16

    def __init__(
        self, weights: Weights, model: str | None = None, config: dict[str, Any] | None = None, quick_gelu: bool | None = None,
        name: str = "",
    ) -> None:  # fmt: skip
        self.name = name or f"{type(self).__name__} {model or ''}".strip()
        self.hf = is_hf_clip(weights)
        weights = hf_to_open_clip(weights) if self.hf else weights
        quick_gelu = self.hf if quick_gelu is None else quick_gelu
        self.network: Any = build_open_clip(weights, self.name, model, config, quick_gelu)
        size = self.network.visual.image_size
        self.size: int = size[0] if isinstance(size, (tuple, list)) else size
        # What the model says of its own preprocessing; CLIP's where it says nothing.
        preprocessing = getattr(self.network.visual, "preprocess_cfg", {}) or {}
        self.squash = preprocessing.get("resize_mode") == "squash"
        self.statistics = {key: tuple(preprocessing[key]) for key in ("mean", "std") if key in preprocessing}

    def pixels(self, images: Tensor) -> Tensor:
        """Preprocessed pictures [B, 3, S, S]: open_clip's evaluation transform."""
        if self.squash:
            return normalise(resize_pil(images, self.size, self.size), **self.statistics)
        return resize_and_crop(images, self.size, floor_offset if self.hf else round_half_even)

    def image_features(self, images: Tensor) -> Tensor:
        """See ``TwoTowerOracle``."""
        return F.normalize(self.network.encode_image(self.pixels(images).to(self.dtype)).float(), dim=-1)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """See ``TwoTowerOracle``."""
        context = getattr(self.network, "context_length", 77)
        ids = (clip_tokens(prompts) if self.hf else open_clip_tokens(prompts, context)).to(next(self.network.parameters()).device)
        return F.normalize(self.network.encode_text(ids).float(), dim=-1)


class ClipScore(OpenClipOracle):
    """max(100 cosine, 0) (arXiv 2104.08718 with the scale of torchmetrics), by any open_clip model."""

    # A long or rare prompt has lower cosines with every picture.
    comparable_across_prompts = False

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``."""
        return (100 * self.cosine(images, prompts)).clamp(min=0)


class HumanPreferenceScore(OpenClipOracle):
    """HPSv2 and HPSv2.1 (arXiv 2306.09341): the cosine of a tuned ViT-H/14, on the whole picture with black around it.

    The weights of both have one layout; only their numbers differ.
    """

    comparable_across_prompts = False

    def pixels(self, images: Tensor) -> Tensor:
        """The long side to S, black padding: nothing is cut off."""
        return resize_and_pad(images, self.size)

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``."""
        return self.cosine(images, prompts)
