"""The LAION aesthetic predictors: how beautiful is it, from 1 to 10? No prompt is asked."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Oracle
from .preprocess import resize_and_crop
from .towers import Weights, below, build_vit, hf_vision_to_open_clip, is_hf_clip, load_exactly


class AestheticNetwork(nn.Module):
    """OpenAI's CLIP ViT-L/14 and a head on its normalised features."""

    def __init__(self, visual: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.visual, self.head = visual, head

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores [B] of normalised pictures [B, 3, 224, 224]."""
        return self.head(self.features(pixels)).float()[:, 0]

    def features(self, pixels: Tensor) -> Tensor:
        """CLIP's, of length 1: [B, D]."""
        return F.normalize(self.visual(pixels), dim=-1)


def build_head(weights: Weights, what: str) -> Any:
    """v2's MLP (``layers.{0,2,4,6,7}``: no activations, as published) or v1's linear map (``weight``, ``bias``)."""
    if "layers.0.weight" not in weights:
        if "weight" not in weights or weights["weight"].ndim != 2:
            raise ValueError(f"These are not the weights of {what}: they lack 'layers.0.weight'; choose another file or oracle.")
        return load_exactly(lambda: nn.Linear(*weights["weight"].shape[::-1]), weights, what)

    def make() -> nn.Module:
        linear = [nn.Linear(*weights[f"layers.{i}.weight"].shape[::-1]) for i in (0, 2, 4, 6, 7)]
        # Dropout does nothing here, but keeps the published numbering of the layers.
        layers = [linear[0], nn.Dropout(0.2), linear[1], nn.Dropout(0.2), linear[2], nn.Dropout(0.1), linear[3], linear[4]]
        return nn.Sequential(*layers)

    return load_exactly(make, below(weights, "layers."), what)


class Aesthetic(Oracle):
    """The head on CLIP's picture features.

    Args:
        weights: The head; or head and picture tower (``visual.*``) together.
        clip: CLIP ViT-L/14 by OpenAI, in open_clip's or transformers' layout; the text tower is not used.
        config: OpenAI's sizes of the tower, where they can't be read off the weights (test sizes).
    """

    differentiable = True
    comparable_across_prompts = True
    reads_prompts = False
    has_features = True
    batch = 16

    def __init__(
        self, weights: Weights, clip: Weights | None = None, config: dict[str, Any] | None = None, name: str = "Aesthetic v2"
    ) -> None:
        self.name = name
        tower = clip if clip is not None else weights
        if is_hf_clip(tower):
            tower = hf_vision_to_open_clip(tower)
        visual = below(tower, "visual.")
        if not visual:
            raise ValueError(f"{name} needs CLIP ViT-L/14 beside its head; choose it as clip (for instance clip_vision_l).")
        head = {key: value for key, value in weights.items() if not key.startswith(("visual.", "vision_model.", "visual_proj"))}
        self.network: Any = AestheticNetwork(build_vit(visual, f"{name}'s CLIP", config), build_head(head, name))

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``; ``prompts`` are not read."""
        return self.network(self._pixels(images))

    def features(self, images: Tensor) -> Tensor:
        """See ``Oracle.features``."""
        return self.network.features(self._pixels(images)).float()

    def _pixels(self, images: Tensor) -> Tensor:
        size = self.network.visual.image_size
        return resize_and_crop(images, size[0] if isinstance(size, (tuple, list)) else size).to(self.dtype)
