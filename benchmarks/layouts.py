"""Keys and shapes of published networks, so that tests and benchmarks can make one of any size with random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def random_weights(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """Matrices and kernels uniform with variance 1 / fan-in; vectors called ``weight`` near 1, other vectors near 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in shapes.items():
        v = torch.rand(*shape, generator=generator) * 2 - 1
        weights[key] = v * (3 / math.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.2 * v + float(key.endswith("weight"))
    return weights


def image_reward_shapes(width: int, blocks: int, words: int, layers: int, vocabulary: int = 30524) -> dict[str, list[int]]:
    """Keys and shapes of an ImageReward of any size; the published one is (1024, 24, 768, 12)."""
    v, t = "blip.visual_encoder", "blip.text_encoder"
    shapes: dict[str, list[int]] = {
        f"{v}.cls_token": [1, 1, width], f"{v}.pos_embed": [1, 197, width], f"{v}.patch_embed.proj.weight": [width, 3, 16, 16],
        f"{v}.patch_embed.proj.bias": [width], f"{t}.embeddings.word_embeddings.weight": [vocabulary, words],
        f"{t}.embeddings.position_embeddings.weight": [512, words],
    }  # fmt: skip

    def dense(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [out, into], [out]

    def layer_norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [size], [size]

    for i in range(blocks):
        block = f"{v}.blocks.{i}"
        layer_norm(f"{block}.norm1", width)
        layer_norm(f"{block}.norm2", width)
        dense(f"{block}.attn.qkv", 3 * width, width)
        dense(f"{block}.attn.proj", width, width)
        dense(f"{block}.mlp.fc1", 4 * width, width)
        dense(f"{block}.mlp.fc2", width, 4 * width)
    layer_norm(f"{v}.norm", width)
    layer_norm(f"{t}.embeddings.LayerNorm", words)
    for i in range(layers):
        layer = f"{t}.encoder.layer.{i}"
        for name, source in (("attention", words), ("crossattention", width)):
            dense(f"{layer}.{name}.self.query", words, words)
            dense(f"{layer}.{name}.self.key", words, source)
            dense(f"{layer}.{name}.self.value", words, source)
            dense(f"{layer}.{name}.output.dense", words, words)
            layer_norm(f"{layer}.{name}.output.LayerNorm", words)
        dense(f"{layer}.intermediate.dense", 4 * words, words)
        dense(f"{layer}.output.dense", words, 4 * words)
        layer_norm(f"{layer}.output.LayerNorm", words)
    for i, (into, out) in zip((0, 2, 4, 6, 7), ((words, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)), strict=True):
        dense(f"mlp.layers.{i}", out, into)
    return shapes
