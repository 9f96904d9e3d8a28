"""The tiny world's words: a word-level vocabulary and a small transformer, shared by diffusion and oracle."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_TOKENS = 16  # start token, up to 14 words, end token; then padding
PAD, START, END, UNKNOWN = 0, 1, 2, 3
_WORD = re.compile(r"[a-z]+")


class Vocabulary:
    """Words to ids. Ids 0 to 3 are padding, start, end, unknown; a plural falls back to its singular."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)
        self.ids = {word: i + 4 for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words) + 4

    def word_ids(self, text: str) -> list[int]:
        """The ids of the words of ``text``, in order; whatever is not a letter separates words."""
        return [self._id(word) for word in _WORD.findall(text.lower())]

    def encode(self, texts: list[str]) -> Tensor:
        """Token ids [len(texts), 16]; words beyond the 14th are dropped."""
        rows = []
        for text in texts:
            row = [START, *self.word_ids(text)[: MAX_TOKENS - 2], END]
            rows.append(row + [PAD] * (MAX_TOKENS - len(row)))
        return torch.tensor(rows, dtype=torch.long)

    def _id(self, word: str) -> int:
        return self.ids.get(word) or self.ids.get(word.removesuffix("s")) or UNKNOWN


class WordTokenizer:
    """A ``Vocabulary`` as open_clip's models want it: called with texts, and with the end token's id the highest of all.

    CLIP reads its text out at the highest id.
    """

    def __init__(self, words: Vocabulary) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words) + 1

    def __call__(self, texts: list[str] | str) -> Tensor:
        """Token ids [len(texts), 16]."""
        ids = self.words.encode([texts] if isinstance(texts, str) else texts)
        return ids.masked_fill(ids == END, len(self.words))


class Block(nn.Module):
    """A pre-norm transformer block with bidirectional attention; padding is masked."""

    def __init__(self, width: int, heads: int, ops: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = ops.LayerNorm(width), ops.LayerNorm(width)
        self.qkv, self.out = ops.Linear(width, 3 * width), ops.Linear(width, width)
        self.up, self.down = ops.Linear(width, 4 * width), ops.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        # Written out: on sequences this short the fused kernel's backward pass is several times slower on a CPU.
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        attended = logits.softmax(dim=-1).to(v.dtype) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TinyTextEncoder(nn.Module):
    """Token ids [B, 16] to one vector a token [B, 16, width]; the first (start) token's vector sums the prompt up."""

    def __init__(self, vocabulary: int, width: int = 128, layers: int = 2, heads: int = 4, ops: Any = nn) -> None:
        super().__init__()
        self.width = width
        self.token_embedding = ops.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(MAX_TOKENS, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, ops) for _ in range(layers))
        self.norm = ops.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode ``ids`` (long, [B, 16])."""
        x = self.token_embedding(ids)
        x = x + self.position.to(x)
        mask = (ids != PAD)[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
