"""A whole CLIP from a file, with its tokenizer: open_clip's layout, OpenAI's, or transformers'."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import UnreadableFile, parse_json, parse_texts, reading
from ..networks.limits import refuse_immodest
from ..networks.prompted_clip import picture_size_of
from ..networks.tiny_text import MAX_TOKENS, Vocabulary, WordTokenizer
from ..weights.checkpoints import read_metadata, read_weights
from .tokenizers import clip_tokens, open_clip_tokens
from .towers import Weights, build_open_clip, hf_to_open_clip, is_hf_clip

# Numbers that OpenAI's archives hold beside the weights.
_SIZES = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True)
class ClipFile:
    """An open_clip model and what turns texts into its token ids [N, context].

    Attributes:
        templates: The sentences that it was trained with, ``{}`` where a name goes; empty where the file doesn't say.
    """

    name: str
    network: Any
    tokenizer: Callable[[list[str]], Tensor]
    templates: tuple[str, ...] = ()

    @property
    def picture_size(self) -> int:
        """Side in pixels of the square pictures that go in."""
        return picture_size_of(self.network.visual)


def load_clip(path: str | os.PathLike[str], quick_gelu: bool | None = None) -> ClipFile:
    """The CLIP in a file, frozen, on the CPU in float32.

    What can't be read off the weights is taken from the file's metadata where it has them: ``open_clip`` (a model config as
    JSON), ``words`` (a word-level vocabulary in place of CLIP's) and ``templates`` (a JSON list).

    Args:
        quick_gelu: Whether the activation is OpenAI's. None takes it for OpenAI's own archives and transformers' layout, and not
            for others.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableFile: It can't be read as data, or is not a CLIP with a picture and a text tower.
    """
    file = Path(path)
    with reading(file.name, "choose another file"):
        return _load(file, quick_gelu)


def _load(file: Path, quick_gelu: bool | None) -> ClipFile:
    weights, metadata = read_weights(file), read_metadata(file)
    if is_hf_clip(weights):
        network = build_open_clip(hf_to_open_clip(weights), file.name, quick_gelu=quick_gelu is not False)
        return ClipFile(file.stem, network, clip_tokens)
    if not {"text_projection", "ln_final.weight", "token_embedding.weight", "visual.proj"} <= weights.keys():
        raise ValueError(f"{file.name} is not a CLIP with a ViT and a text tower in open_clip's layout; choose another file.")
    openai = is_openai(weights) if quick_gelu is None else quick_gelu
    config = parse_json(metadata["open_clip"], f"The metadata open_clip of {file.name}") if "open_clip" in metadata else None
    if config is not None and not isinstance(config, dict):
        raise UnreadableFile(f"The metadata open_clip of {file.name} are no configuration: choose another file.")
    refuse_immodest(config, file.name)
    kept = {key: value for key, value in weights.items() if key not in _SIZES}
    network = build_open_clip(kept, file.name, config=config, quick_gelu=openai)
    templates = parse_texts(metadata.get("templates", "[]"), f"The metadata templates of {file.name}")
    words = len(weights["token_embedding.weight"])
    return ClipFile(file.stem, network, _tokenizer(metadata, int(network.context_length), words, file.name), templates)


def is_openai(weights: Weights) -> bool:
    """Whether weights are OpenAI's own archive, which holds its sizes as tensors."""
    return "input_resolution" in weights


def _tokenizer(metadata: dict[str, str], context: int, vocabulary: int, name: str) -> Callable[[list[str]], Tensor]:
    if "words" in metadata:
        tokenizer = WordTokenizer(Vocabulary(parse_texts(metadata["words"], f"The metadata words of {name}")))
        if len(tokenizer) > vocabulary or context != MAX_TOKENS:
            raise UnreadableFile(f"{name} has words that its network has no room for: use another file.")
        return tokenizer
    return lambda texts: open_clip_tokens(texts, context)
