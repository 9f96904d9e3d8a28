"""Stage ``clip``: the oracle that gates. A small CLIP, trained contrastively on two vendors' icons and their captions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...files import save_safetensors_atomically, write_atomically
from ...networks.tiny_clip import TinyClip
from ...precision import autocast
from ...training.loop import Ema, Schedule, Watch, train
from ...training.run_folder import RunFolder
from .concepts import BACKGROUNDS, CONCEPTS, GATE_SETS, Prompt, training_caption
from .data import BACKGROUND_COLOURS, Icons, on_background
from .latents import vocabulary
from .log import log_to

_NAMES = tuple(BACKGROUNDS)
SCHEDULE = Schedule(pictures=160_000, batch=96, learning_rate=1.5e-3, decay=0.8)
# A second round from the first one's average, with a gentler rate: worth about four points of top-1.
FINISH = Schedule(pictures=96_000, batch=96, learning_rate=8e-4, decay=0.9)
STYLE_OF_SET = {"noto": "noto", "flat": "flat", "glossy": "glossy"}


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Small shifts and zooms, brightness, noise and blur, so that a score doesn't hang on single pixels."""
    b = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=generator) * (high - low) + low

    angle, zoom = uniform(-0.15, 0.15), uniform(0.85, 1.15)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    shift = uniform(-0.1, 0.1, 2)
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(b, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    moved = torch.lerp(moved, blurred, (uniform(-0.5, 1.0).clamp(min=0))[:, None, None, None])
    noise = torch.randn(moved.shape, generator=generator) * (uniform(-0.1, 0.12).clamp(min=0))[:, None, None, None]
    return (moved * uniform(0.9, 1.1, 1, 1, 1) + uniform(-0.08, 0.08, 1, 1, 1) + noise).clamp(-1, 1)


class Pairs:
    """Pictures with captions from some vendors, no concept twice in a batch (twins would be false negatives)."""

    def __init__(self, work: Path, sets: tuple[str, ...]) -> None:
        self.icons, self.sets = Icons.load(work, sets), sets
        self.words = vocabulary(self.icons.tags)

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, list[Prompt]]:
        """Pictures [size, 3, 64, 64] in -1..1 and what they show."""
        concepts = torch.randperm(len(CONCEPTS), generator=generator)[:size]
        chosen = torch.multinomial(self.icons.has[:, concepts].float().T, 1, generator=generator)[:, 0]
        pose = torch.randint(self.icons.rgba.shape[2], (size,), generator=generator)
        background = torch.randint(len(_NAMES), (size,), generator=generator)
        # Every other batch is on one background, or the towers would tell pictures apart by nothing else.
        if torch.rand((), generator=generator) < 0.5:
            background[:] = background[0]
        images = on_background(self.icons.rgba[chosen, concepts, pose], BACKGROUND_COLOURS[background]) * 2 - 1
        prompts = [
            Prompt(CONCEPTS[c], STYLE_OF_SET.get(self.sets[s], ""), _NAMES[b])
            for c, s, b in zip(concepts.tolist(), chosen.tolist(), background.tolist(), strict=True)
        ]
        return images, prompts

    def captions(self, prompts: list[Prompt], generator: torch.Generator) -> Tensor:
        """Token ids of training captions."""
        return self.words.encode(self.sentences(prompts, random.Random(int(torch.randint(2**62, (), generator=generator)))))

    def sentences(self, prompts: list[Prompt], rng: random.Random) -> list[str]:
        """Training captions."""
        return [training_caption(p, self.icons.tags[CONCEPTS.index(p.concept)], rng, 0.4) for p in prompts]


def hard_negatives(prompts: list[Prompt], rng: random.Random) -> list[Prompt]:
    """The same concepts on other backgrounds: they teach the towers to look at the background too."""
    return [
        Prompt(p.concept, p.style, rng.choice([b for b in _NAMES if b != p.background])) for p in prompts
    ]


def contrastive_loss(model: TinyClip, pairs: Pairs, generator: torch.Generator, size: int) -> Tensor:
    """CLIP's symmetric cross-entropy, with one hard negative caption a picture on the picture's side."""
    images, prompts = pairs.batch(generator, size)
    ids = pairs.captions(prompts, generator)
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    wrong = pairs.words.encode([p.text() for p in hard_negatives(prompts, rng)])
    with autocast():
        image = model.encode_image(augment(images, generator))
        text, negative = model.encode_text(torch.cat([ids, wrong])).chunk(2)
    scale = model.logit_scale.exp().clamp(max=100)
    logits = scale * image @ text.T
    against = scale * (image * negative).sum(1, keepdim=True)
    target = torch.arange(size)
    return (F.cross_entropy(torch.cat([logits, against], 1), target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def accuracy(model: TinyClip, pairs: Pairs, sets: tuple[str, ...], work: Path) -> dict[str, float]:
    """Top-1 over all concepts on real, unaugmented pictures of each vendor: {vendor: share right}.

    On backgrounds of every colour, but not of one that the concept's name holds: a black heart on black shows nothing.
    """
    hidden = torch.tensor([[bool(name) and name in concept.split() for name in _NAMES] for concept in CONCEPTS])
    text = model.encode_text(pairs.words.encode(list(CONCEPTS)))
    right: dict[str, float] = {}
    for name in sets:
        icons = Icons.load(work, (name,))
        has, poses = icons.has[0].nonzero()[:, 0], icons.rgba.shape[2]
        hits = []
        for pose in range(poses):
            background = (torch.arange(len(has)) + pose) % len(BACKGROUND_COLOURS)
            images = on_background(icons.rgba[0, has, pose], BACKGROUND_COLOURS[background]) * 2 - 1
            best = (model.encode_image(images) @ text.T).argmax(1)
            hits.append((best == has)[~hidden[has, background]])
        right[name] = torch.cat(hits).float().mean().item()
    return right


def run(
    work: Path, name: str = "clip", sets: tuple[str, ...] = GATE_SETS, seed: int = 31, **shape: int
) -> None:
    """Train, measure, save ``work/<name>.safetensors`` and ``work/<name>.json`` (accuracies)."""
    pairs = Pairs(work, sets)
    torch.manual_seed(seed)
    model = TinyClip(len(pairs.words), **shape)
    report_accuracy = work / f"{name}.json"

    def measure(ema: Ema, pictures: int) -> None:
        shown = TinyClip(len(pairs.words), **shape).eval()
        shown.load_state_dict(ema.shadow)
        vendors = ("noto", "flat", "glossy", "noto-v1", "fxemoji")
        report = {"pictures": pictures, "trained_on": list(sets), "top1": accuracy(shown, pairs, vendors, work)}
        print(report, flush=True)
        write_atomically(report_accuracy, lambda part: part.write_text(json.dumps(report, indent=1)))

    rounds = ((f"{name}_first", SCHEDULE), (name, FINISH))
    for number, (stem, schedule) in enumerate(rounds):
        ema = train(
            model, lambda generator, size: contrastive_loss(model, pairs, generator, size), schedule,
            RunFolder(work / stem), seed=seed + 1000 * number, ema_half_life=5_000, weight_decay=0.05, save_every=400,
            watch=Watch(log_to(work / f"{stem}.log"), on_save=measure),
        )  # fmt: skip
        model.load_state_dict(ema.shadow)
    save_safetensors_atomically({k: v.bfloat16() for k, v in ema.shadow.items()}, work / f"{name}.safetensors")
