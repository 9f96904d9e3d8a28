"""ImageReward v1.0 (arXiv 2304.05977): BLIP reads picture and prompt together, an MLP gives the score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import Oracle
from .preprocess import resize_and_crop
from .tokenizers import BERT_VOCABULARY, bert_tokens
from .towers import Weights, below, count_layers, load_exactly

TOKENS = 35
# The scores' mean and deviation over the authors' data: ImageReward.py, ``self.mean`` and ``self.std``.
MEAN, STD = 0.16717362830052426, 1.0333394966054072

# BLIP's names of the picture tower -> transformers' names.
_VISION_NAMES = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


class ImageRewardNetwork(nn.Module):
    """BLIP's picture tower, its text encoder with cross-attention, and the MLP, sized to fit ``weights``."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        vision, text = below(weights, "blip.visual_encoder."), below(weights, "blip.text_encoder.")
        width, words = vision["cls_token"].shape[-1], text["embeddings.word_embeddings.weight"]
        patch, side = vision["patch_embed.proj.weight"].shape[-1], round((vision["pos_embed"].shape[1] - 1) ** 0.5)
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=width, intermediate_size=vision["blocks.0.mlp.fc1.weight"].shape[0], image_size=side * patch,
                num_hidden_layers=count_layers(vision, r"^blocks\.(\d+)\."), num_attention_heads=max(width // 64, 1),
                patch_size=patch, layer_norm_eps=1e-6, hidden_act="gelu",
            )
        )  # fmt: skip
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=words.shape[0], hidden_size=words.shape[1], encoder_hidden_size=width,
                intermediate_size=text["encoder.layer.0.intermediate.dense.weight"].shape[0],
                num_hidden_layers=count_layers(text, r"^encoder\.layer\.(\d+)\."),
                num_attention_heads=max(words.shape[1] // 64, 1), layer_norm_eps=1e-12, hidden_act="gelu", is_decoder=True,
                max_position_embeddings=text["embeddings.position_embeddings.weight"].shape[0],
            ),
            add_pooling_layer=False,
        )  # fmt: skip
        sizes = [weights[f"mlp.layers.{i}.weight"].shape for i in (0, 2, 4, 6, 7)]
        # No activations, as published; the dropouts between keep the published numbering of the layers.
        self.mlp = nn.Sequential(
            nn.Linear(*sizes[0][::-1]), nn.Dropout(0.2), nn.Linear(*sizes[1][::-1]), nn.Dropout(0.2),
            nn.Linear(*sizes[2][::-1]), nn.Dropout(0.1), nn.Linear(*sizes[3][::-1]), nn.Linear(*sizes[4][::-1]),
        )  # fmt: skip

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores [B] of normalised ``pixels`` [B, 3, 224, 224] under token ids and attention mask [B, 35]."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device),
        ).last_hidden_state  # fmt: skip
        return (self.mlp(read[:, 0]).float()[:, 0] - MEAN) / STD


def to_transformers(weights: Weights) -> dict[str, Tensor]:
    """The authors' state dict under the names of ``ImageRewardNetwork``."""
    converted = {}
    for key, value in below(weights, "blip.visual_encoder.").items():
        for theirs, ours in _VISION_NAMES:
            key = key.replace(theirs, ours)
        converted["vision." + ("post_layernorm." + key.removeprefix("norm.") if key.startswith("norm.") else key)] = value
    converted |= {f"text.{key}": value for key, value in below(weights, "blip.text_encoder.").items()}
    return converted | {f"mlp.{key}": value for key, value in below(weights, "mlp.layers.").items()}


class ImageReward(Oracle):
    """(MLP(BLIP(picture, prompt)) - 0.16717) / 1.03334; above 0 is better than most of what people were shown.

    Args:
        weights: ``ImageReward.pt``'s state dict.
        vocabulary: bert-base-uncased's ``vocab.txt``; the shipped one unless told.
    """

    differentiable = True
    comparable_across_prompts = True
    batch = 8

    def __init__(self, weights: Weights, vocabulary: str | Path | None = None, name: str = "ImageReward v1.0") -> None:
        self.name, self.vocabulary = name, Path(vocabulary or BERT_VOCABULARY)
        needed = "blip.visual_encoder.cls_token", "mlp.layers.7.weight"
        if any(key not in weights for key in needed):
            raise ValueError(f"These are not the weights of ImageReward: they lack '{needed[0]}'; choose another file or oracle.")
        self.network: Any = load_exactly(lambda: ImageRewardNetwork(weights), to_transformers(weights), name)

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``."""
        ids, mask = (t.to(images.device) for t in bert_tokens(prompts, TOKENS, self.vocabulary))
        return self.network(resize_and_crop(images).to(self.dtype), ids, mask)

