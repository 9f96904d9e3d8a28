"""The tokenizers that the oracles were trained with, from files that are here already: no downloads."""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import reading

BERT_VOCABULARY = Path(__file__).parent / "data" / "bert-base-uncased.vocab.txt"
CLIP_CONTEXT, CLIP_START, CLIP_END = 77, 49406, 49407


@lru_cache(maxsize=4)
def _word_pieces(vocabulary: str) -> Any:
    from tokenizers import BertWordPieceTokenizer

    with reading(Path(vocabulary).name):
        return BertWordPieceTokenizer(vocabulary, lowercase=True)


def bert_tokens(prompts: list[str], length: int, vocabulary: Path = BERT_VOCABULARY) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both [B, length], of bert-base-uncased: [CLS] words [SEP], cut so that [SEP] stays; 0 pads."""
    tokenizer = _word_pieces(str(vocabulary))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        tokens = tokenizer.encode(prompt).ids
        if len(tokens) > length:
            tokens = [*tokens[: length - 1], tokens[-1]]
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
    return ids, mask


@lru_cache(maxsize=1)
def _clip_bpe() -> Any:
    """transformers' ``CLIPTokenizerFast``, built from the merges that open_clip ships.

    It differs from open_clip's own tokenizer: no HTML entities are decoded and no encodings repaired.
    """
    from open_clip import tokenizer as shipped
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    with gzip.open(shipped.default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = [(line.split()[0], line.split()[1]) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(shipped.bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def clip_tokens(prompts: list[str]) -> Tensor:
    """Ids [B, 77] as transformers' CLIP tokenizer gives them; too long a prompt keeps its end token.

    Padded with the end token: CLIP's text tower reads out the first one, and looks only backwards.
    """
    tokenizer = _clip_bpe()
    ids = torch.full((len(prompts), CLIP_CONTEXT), CLIP_END, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens = [CLIP_START, *tokenizer.encode(prompt).ids[: CLIP_CONTEXT - 2], CLIP_END]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


def open_clip_tokens(prompts: list[str], context: int = CLIP_CONTEXT) -> Tensor:
    """Ids [B, context] as open_clip's tokenizer gives them: repaired, HTML entities decoded, padded with 0, end token kept."""
    from open_clip.tokenizer import SimpleTokenizer

    ids: Tensor = SimpleTokenizer(context_length=context)(prompts)
    return ids
