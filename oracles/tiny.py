"""The embedded world's oracle: a small CLIP that reads pictures and words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..networks.tiny_clip import TinyClip
from ..networks.tiny_text import Vocabulary
from .base import Oracle

SIDE = 64  # of the pictures that it sees
_ALIKE, _SHARE = 0.1, 0.5  # what counts as one colour, and how much of an icon's edge has the background's

class TinyWorldOracle(Oracle):
    """exp(logit_scale) times the cosine between picture and prompt, as CLIP scores are given.

    Args:
        network: The trained towers.
        words: The vocabulary they were trained with.
        name: For people.
    """

    differentiable = True
    comparable_across_prompts = True
    has_features = True

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

    def features(self, images: Tensor) -> Tensor:
        """See ``Oracle.features``."""
        return self.network.look(images.movedim(-1, 1) * 2 - 1)

    def doubts(self, pictures: Sequence[Tensor]) -> str:
        """See ``Oracle.doubts``."""
        strange = sum(not is_icon(picture) for picture in pictures)
        if not strange:
            return ""
        which = "The picture is" if len(pictures) == 1 else f"{strange} of {len(pictures)} pictures are"
        return (
            f"{which} no icon on a plain background, and {self.name} knows nothing else: its scores mean nothing there; for "
            "pictures of your own take another oracle (Load Oracle)."
        )


def is_icon(picture: Tensor) -> bool:
    """Whether a picture [H, W, 3] in 0..1 shows something on a plain background, as the tiny world's all do.

    Of all icons that it was tried on, drafts of one step included, at least 66 % of the edge has one colour; of noise, gradients
    and what looks like a photograph at most 25 %. A picture of nothing but background shows nothing.
    """
    small = picture.float().cpu().movedim(-1, 0)[None]
    if small.shape[-2:] != (SIDE, SIDE):
        small = F.interpolate(small, (SIDE, SIDE), mode="bilinear", antialias=True)
    small = small[0].flatten(1)
    places = torch.arange(SIDE * SIDE).view(SIDE, SIDE)
    edge = small[:, torch.cat([places[0], places[-1], places[:, 0], places[:, -1]])]
    background = edge.median(dim=1, keepdim=True).values
    plain = ((edge - background).abs().amax(0) < _ALIKE).float().mean()
    return bool(plain >= _SHARE and (small - background).abs().max() > 1 / 255)
