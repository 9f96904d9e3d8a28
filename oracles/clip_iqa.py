"""CLIP-IQA (arXiv 2207.12396): is this a good photo or a bad one? No prompt is asked."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.func import functional_call

from .clip_score import OpenClipOracle
from .preprocess import normalise
from .towers import Weights

ANCHORS = ("Good photo.", "Bad photo.")


class ClipIqa(OpenClipOracle):
    """softmax(logit_scale cosine) over "Good photo." and "Bad photo.": 0 is bad, 1 is good (eq. 2).

    A ResNet sees the picture in its own size, without positions, as the authors have it (section 3.1); a ViT, which needs its
    positions, sees CLIP's middle square.
    """

    comparable_across_prompts = True
    reads_prompts = False

    def __init__(self, weights: Weights, name: str = "CLIP-IQA", quick_gelu: bool = True, **options: Any) -> None:
        # OpenAI's weights, which the authors took, need OpenAI's activation.
        super().__init__(weights, name=name, quick_gelu=quick_gelu, **options)
        self.scale = float(self.network.logit_scale.exp())
        self.any_size = hasattr(self.network.visual, "attnpool")

    def pixels(self, images: Tensor) -> Tensor:
        """The picture in its own size for a ResNet."""
        return normalise(images.movedim(-1, 1).float()) if self.any_size else super().pixels(images)

    def image_features(self, images: Tensor) -> Tensor:
        """See ``TwoTowerOracle``."""
        if not self.any_size:
            return super().image_features(images)
        visual, x = self.network.visual, self.pixels(images).to(self.dtype)
        trunk = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(x)))))
        cells = trunk.shape[-2] * trunk.shape[-1] + 1
        nowhere = {"positional_embedding": trunk.new_zeros(cells, trunk.shape[1])}
        features = functional_call(visual.attnpool, nowhere, (trunk,)).float()
        return features / features.norm(dim=-1, keepdim=True)

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``; ``prompts`` are not read."""
        logits = self.scale * self.image_features(images) @ self.text_features(list(ANCHORS)).T
        return logits.softmax(-1)[:, 0]
