"""ImageReward written out, equation by equation, on the authors' state dict: what the oracle is compared with.

BLIP (arXiv 2201.12086): a pre-norm ViT with LayerNorm eps 1e-6; a post-norm BERT whose every layer attends to itself, then to the
picture; the vector of [CLS] goes through five linear layers without activations (ImageReward, arXiv 2304.05977).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    b, t, c = q.shape
    q, k, v = (x.view(b, -1, heads, c // heads).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) / (c // heads) ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :].bool(), float("-inf"))
    return (logits.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c)


def picture(w: Weights, pixels: Tensor) -> Tensor:
    p = "blip.visual_encoder"
    patches = F.conv2d(pixels, w[f"{p}.patch_embed.proj.weight"], w[f"{p}.patch_embed.proj.bias"], stride=16)
    x = torch.cat([w[f"{p}.cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], 1) + w[f"{p}.pos_embed"]
    heads, i = x.shape[-1] // 64, 0
    while f"{p}.blocks.{i}.norm1.weight" in w:
        block = f"{p}.blocks.{i}"
        q, k, v = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"{block}.attn.proj", attend(q, k, v, heads))
        x = x + linear(w, f"{block}.mlp.fc2", F.gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", x, 1e-6))))
        i += 1
    return norm(w, f"{p}.norm", x, 1e-6)


def reading(w: Weights, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    p = "blip.text_encoder"
    embedded = w[f"{p}.embeddings.word_embeddings.weight"][ids]
    x = embedded + w[f"{p}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(w, f"{p}.embeddings.LayerNorm", x, 1e-12)
    heads, i = x.shape[-1] // 64, 0
    while f"{p}.encoder.layer.{i}.attention.self.query.weight" in w:
        layer = f"{p}.encoder.layer.{i}"
        for name, source, keep in (("attention", x, mask), ("crossattention", seen, None)):
            source = x if name == "attention" else seen
            a = f"{layer}.{name}"
            q, k, v = (linear(w, f"{a}.self.{n}", s) for n, s in (("query", x), ("key", source), ("value", source)))
            x = norm(w, f"{a}.output.LayerNorm", x + linear(w, f"{a}.output.dense", attend(q, k, v, heads, keep)), 1e-12)
        inner = F.gelu(linear(w, f"{layer}.intermediate.dense", x))
        x = norm(w, f"{layer}.output.LayerNorm", x + linear(w, f"{layer}.output.dense", inner), 1e-12)
        i += 1
    return x


def score(w: Weights, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Scores [B]."""
    x = reading(w, ids, mask, picture(w, pixels))[:, 0]
    for i in (0, 2, 4, 6, 7):
        x = linear(w, f"mlp.layers.{i}", x)
    return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072
