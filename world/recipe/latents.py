"""The encoded pictures that teacher, student and ControlNet learn from, with their captions."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...files import save_safetensors_atomically
from ...networks.tiny_autoencoder import TinyAutoencoder
from ...networks.tiny_text import Vocabulary
from ...precision import autocast
from .concepts import BACKGROUNDS, CONCEPTS, STYLES, Prompt, is_held_out, training_caption
from .data import BACKGROUND_COLOURS, Icons, on_background

_BACKGROUND_NAMES = tuple(BACKGROUNDS)
# White is what a caption without a background means, so it is drawn more often.
_BACKGROUND_WEIGHTS = torch.tensor([4.0] + [1.0] * (len(BACKGROUNDS) - 1))


def vocabulary(tags: list[list[str]]) -> Vocabulary:
    """Every word that a training caption can hold, sorted."""
    words = {"a", "on", "background", *STYLES, *BACKGROUNDS}
    words.update(word for concept in CONCEPTS for word in concept.split())
    words.update(tag for concept_tags in tags for tag in concept_tags)
    return Vocabulary(sorted(words))


def load_autoencoder(path: Path) -> TinyAutoencoder:
    """The trained autoencoder in float32, for inference."""
    model = TinyAutoencoder()
    model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return model.eval().requires_grad_(False)


@dataclass
class Latents:
    """``table`` [styles, concepts, backgrounds, poses, 32, 8, 8] half; combinations that are held out are never drawn."""

    table: Tensor
    tags: list[list[str]]
    words: Vocabulary
    weights: Tensor  # chance of [styles, concepts, backgrounds], flattened; 0 where held out

    @classmethod
    def load(cls, work: Path) -> Latents:
        """Read ``work/latents.safetensors``, made from the icons and the autoencoder when it is not there."""
        path = work / "latents.safetensors"
        icons = Icons.load(work, STYLES)
        if not path.exists():
            save_safetensors_atomically({"table": _encode_all(icons, work)}, path)
        with safe_open(path, "pt") as file:
            table = file.get_tensor("table")
        weights = torch.tensor(
            [
                0.0 if is_held_out(concept, style, background) else float(_BACKGROUND_WEIGHTS[b])
                for style, concept, (b, background) in itertools.product(
                    STYLES, CONCEPTS, enumerate(_BACKGROUND_NAMES)
                )
            ]
        )
        return cls(table, icons.tags, vocabulary(icons.tags), weights)

    def batch(self, generator: torch.Generator, size: int, dropout: float = 0.12) -> tuple[Tensor, Tensor]:
        """Random latents [size, 32, 8, 8] and the token ids [size, 16] of their captions; some captions are empty."""
        latents, prompts = self.pictures(generator, size)
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        captions = [
            "" if rng.random() < dropout else training_caption(p, self.tags[CONCEPTS.index(p.concept)], rng)
            for p in prompts
        ]
        return latents, self.words.encode(captions)

    def pictures(self, generator: torch.Generator, size: int) -> tuple[Tensor, list[Prompt]]:
        """Random latents and what they show."""
        styles, concepts, backgrounds, poses = self.table.shape[:4]
        which = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        pose = torch.randint(poses, (size,), generator=generator)
        s, c, b = torch.unravel_index(which, (styles, concepts, backgrounds))
        prompts = [
            Prompt(CONCEPTS[j], STYLES[i], _BACKGROUND_NAMES[k])
            for i, j, k in zip(s.tolist(), c.tolist(), b.tolist(), strict=True)
        ]
        return self.table[s, c, b, pose].float(), prompts


@torch.no_grad()
def _encode_all(icons: Icons, work: Path) -> Tensor:
    model = load_autoencoder(work / "autoencoder.safetensors")
    sets, count, poses = icons.rgba.shape[:3]
    table = torch.zeros(sets, count, len(BACKGROUNDS), poses, 32, 8, 8, dtype=torch.half)
    for s, i in itertools.product(range(sets), range(count)):
        for b, colour in enumerate(BACKGROUND_COLOURS):
            with autocast():
                images = on_background(icons.rgba[s, i], colour.expand(poses, 3)) * 2 - 1
                table[s, i, b] = model.encode(images).half()
    return table
