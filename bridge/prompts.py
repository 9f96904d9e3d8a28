"""One prompt a picture, in every family: conditionings of single prompts joined, and taken apart again where they differ.

Texts of one length are one tensor with a row a picture. Texts of several lengths are not: repeated or padded they are other
texts to a network that attends to picture and text together. So the joined conditioning carries each prompt's own, and the
pack's samplers draw pictures with texts of one length together, from their own conditionings. Needs torch alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .rows import Conditioning, take_conditioning

KEY = "apprentice_prompts"
# CLIP's texts come in pieces of 77 tokens. Networks that read them by cross-attention alone (SD1.5, SD2, SDXL; by the width of
# the text) are not changed by repetition, which is how ComfyUI batches them.
_PIECE, _BY_CROSS_ATTENTION, _LONGEST = 77, frozenset({768, 1024, 1280, 2048}), 4


@dataclass(frozen=True)
class Prompts:
    """What a joined conditioning was made of.

    Attributes:
        singles: Each prompt's own conditioning.
        text: The joined text, by which it is known that nobody has changed it.
        options: The joined options; what a node has put there since goes to every picture.
    """

    singles: tuple[Conditioning, ...]
    text: Tensor
    options: dict[str, Any]


class _Guard:
    """Stands among a conditioning's ``model_conds``, which every sampler of ComfyUI asks for a batch; it has none to give."""

    def process_cond(self, **_: Any) -> Any:
        raise ValueError(
            "These prompts have texts of different lengths, which this sampler would draw wrongly together: use Student Sampler, "
            "Teacher or Apprentice Sampler, or prompts of one length."
        )


def join(encoded: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of single prompts (one row each) as one with a row a prompt; several entries stay several.

    Where they can't be one tensor exactly, it carries each prompt's own for ``for_rows``; other samplers than the pack's
    refuse it in a sentence, but for texts that they may repeat.
    """
    if len({signature(conditioning) for conditioning in encoded}) == 1:
        return _rows_of(encoded)
    texts = [conditioning[0][0] for conditioning in encoded]
    length, repeated = max(text.shape[1] for text in texts), _repeated_length(encoded)
    if repeated:
        joined = torch.cat([text.repeat(1, repeated // text.shape[1], 1) for text in texts])
    else:
        joined = torch.cat([torch.nn.functional.pad(text, (0, 0, 0, length - text.shape[1])) for text in texts])
    options = _shared_options(encoded)
    if not repeated:
        options["model_conds"] = {KEY: _Guard()}
    return [[joined, {**options, KEY: Prompts(tuple(encoded), joined, options)}]]


def groups(conditionings: Sequence[Conditioning], rows: Sequence[int]) -> list[list[int]]:
    """``rows`` in groups that can be drawn together: of prompts whose own conditionings differ in values only.

    Raises:
        ValueError: A node has changed joined texts of different lengths.
    """
    carried = [prompts for c in conditionings for text, options in c if (prompts := _prompts_of(text, options))]
    rows_of_form: dict[Any, list[int]] = {}
    for row in rows:
        rows_of_form.setdefault(tuple(signature(p.singles[row % len(p.singles)]) for p in carried), []).append(row)
    return list(rows_of_form.values())


def for_rows(
    conditioning: Conditioning, rows: Sequence[int], total: int, ndim: int = 4, controls: dict[Any, Any] | None = None
) -> Conditioning:
    """``take_conditioning`` for a group of ``groups``: of joined prompts each row's own, with what nodes have added since."""
    picked: Conditioning = []
    for text, options in conditioning:
        prompts = _prompts_of(text, options)
        if prompts is None:
            picked += take_conditioning([[text, _plain(options)]], rows, total, ndim, controls)
            continue
        added = {key: value for key, value in options.items() if key != KEY and value is not prompts.options.get(key)}
        pictures = text.new_zeros(total, 1, 1)  # a text a picture: what was added counts by them
        added = take_conditioning([[pictures, added]], rows, total, ndim, controls)[0][1]
        singles = _rows_of([prompts.singles[row % len(prompts.singles)] for row in rows])
        picked += [[single, {**of_single, **added}] for single, of_single in singles]
    return picked


def signature(conditioning: Conditioning) -> tuple[Any, ...]:
    """Equal for conditionings that differ in the values of their tensors only."""
    return tuple((_kind(text), *((key, _kind(options[key])) for key in sorted(options))) for text, options in conditioning)


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return value if value is None or isinstance(value, (bool, int, float, str)) else id(value)


def _rows_of(encoded: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of one signature as one, a row each."""
    joined = []
    for entries in zip(*encoded, strict=True):
        options = dict(entries[0][1])
        for key, value in options.items():
            if isinstance(value, Tensor) and value.ndim > 0:
                options[key] = torch.cat([each[key] for _text, each in entries])
        joined.append([torch.cat([text for text, _options in entries]), options])
    return joined


def _shared_options(encoded: Sequence[Conditioning]) -> dict[str, Any]:
    """What the first entries have in common: tensors of one shape with a row a prompt, and equal values."""
    options: dict[str, Any] = {}
    for key, first in encoded[0][0][1].items():
        values = [conditioning[0][1].get(key) for conditioning in encoded]
        if len({_kind(value) for value in values}) == 1:
            options[key] = torch.cat(values) if isinstance(first, Tensor) and first.ndim > 0 else first
    return options


def _repeated_length(encoded: Sequence[Conditioning]) -> int:
    """The tokens that all texts can be repeated to without being changed; 0 where there is no such length."""
    texts = [conditioning[0][0] for conditioning in encoded]
    lengths = [text.shape[1] for text in texts]
    plain = all(len(conditioning) == 1 for conditioning in encoded) and texts[0].shape[-1] in _BY_CROSS_ATTENTION
    if not plain or any(length % _PIECE for length in lengths) or any("attention_mask" in c[0][1] for c in encoded):
        return 0
    common = math.lcm(*lengths)
    return common if common <= _LONGEST * max(lengths) else 0


def _prompts_of(text: Tensor, options: dict[str, Any]) -> Prompts | None:
    prompts = options.get(KEY)
    if not isinstance(prompts, Prompts):
        return None
    if text is prompts.text:
        return prompts
    if torch.count_nonzero(text) == 0:  # zeroed out: nothing is left of the prompts
        return None
    raise ValueError(
        "A node between Prompts and the sampler changes texts of different lengths, which can't be done to all at once: connect "
        "Prompts to the sampler without it, or use prompts of one length."
    )


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options without what ``join`` adds."""
    if KEY not in options:
        return options
    rest = {key: value for key, value in options.items() if key != KEY}
    conds = {key: value for key, value in rest.pop("model_conds", {}).items() if key != KEY}
    return {**rest, "model_conds": conds} if conds else rest


def encode_each(clip: Any, prompts: Sequence[str]) -> list[Conditioning]:
    """A conditioning a prompt, as the stock CLIP Text Encode makes it."""
    return [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts]


def encode(clip: Any, prompts: Sequence[str]) -> Conditioning:
    """A conditioning with one row a prompt."""
    return join(encode_each(clip, prompts))
