"""Stage ``clips``: a large and a small CLIP of open_clip's own make, for PromptKD; neither sees the vendor of the domain."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...files import save_safetensors_atomically, write_atomically
from ...networks.tiny_text import Vocabulary, WordTokenizer
from ...oracles.preprocess import normalise
from ...precision import autocast
from ...training.loop import Ema, Schedule, Watch, train
from ...training.run_folder import RunFolder
from ..domain import POSES
from ..weights import CLIPS_FOLDER, clip_config, half, make_clip
from .clip import Pairs, augment
from .concepts import CLASS_TEMPLATES, CONCEPTS, DOMAIN_SET, WIDE_SETS
from .data import BACKGROUND_COLOURS, Icons, on_background
from .latents import vocabulary
from .log import log_to

# Rounds, each from the average of the one before. The large one is slower to fit, so it gets a second.
ROUNDS = {
    "large": (
        Schedule(pictures=81_600, batch=96, learning_rate=1e-3, decay=0.8),
        Schedule(pictures=192_000, batch=96, learning_rate=1e-3, decay=0.9),
    ),
    "small": (Schedule(pictures=150_000, batch=96, learning_rate=2e-3, decay=0.8),),
}
SEEDS = {"large": 61, "small": 67}
LICENCE = "Apache-2.0; trained on icons under Apache-2.0, MIT and CC-BY-4.0, see CARD.md"


def contrastive_loss(model: Any, words: WordTokenizer, pairs: Pairs, generator: torch.Generator, size: int) -> Tensor:
    """CLIP's symmetric cross-entropy; every other caption is in one of the templates that class names are given in."""
    images, prompts = pairs.batch(generator, size)
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    texts = pairs.sentences(prompts, rng)
    texts = [rng.choice(CLASS_TEMPLATES).format(text) if rng.random() < 0.5 else text for text in texts]
    # On sequences this short the fused attention's backward pass is several times slower on a CPU.
    with autocast(), sdpa_kernel(SDPBackend.MATH):
        image = F.normalize(model.encode_image(normalise((augment(images, generator) + 1) / 2)).float(), dim=-1)
        text = F.normalize(model.encode_text(words(texts)).float(), dim=-1)
    logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
    target = torch.arange(size)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def tokenizer(tags: list[list[str]]) -> WordTokenizer:
    """The words of captions and of the templates."""
    spoken = {word for template in CLASS_TEMPLATES for word in template.replace("{}", "").split()}
    return WordTokenizer(Vocabulary(sorted({*vocabulary(tags).words, *spoken})))


@torch.no_grad()
def accuracy(model: Any, words: WordTokenizer, work: Path, vendors: tuple[str, ...]) -> dict[str, float]:
    """Zero-shot top-1 over all concepts on unaugmented pictures of each vendor: {vendor: share right}."""
    names = torch.stack([model.encode_text(words([t.format(c) for c in CONCEPTS])) for t in CLASS_TEMPLATES]).mean(0)
    right = {}
    for vendor in vendors:
        icons = Icons.load(work, (vendor,))
        has, hits = icons.has[0].nonzero()[:, 0], []
        for pose in range(icons.rgba.shape[2]):
            colours = BACKGROUND_COLOURS[(torch.arange(len(has)) + pose) % len(BACKGROUND_COLOURS)]
            features = model.encode_image(normalise(on_background(icons.rgba[0, has, pose], colours)))
            hits.append((features @ F.normalize(names, dim=-1).T).argmax(1) == has)
        right[vendor] = torch.cat(hits).float().mean().item()
    return right


def run(work: Path, target: Path = CLIPS_FOLDER) -> None:
    """Train the small one, then the large (checkpoints and accuracies in ``work``); write what is measured with."""
    pairs = Pairs(work, WIDE_SETS)
    words = tokenizer(pairs.icons.tags)
    for size in ("small", "large"):
        ema = _train(size, words, pairs, work)
        about = {
            "words": json.dumps(words.words.words), "open_clip": json.dumps(clip_config(size, len(words))),
            "templates": json.dumps(CLASS_TEMPLATES), "licence": LICENCE,
        }  # fmt: skip
        save_safetensors_atomically(half(ema.shadow), target / f"tiny world {size}.safetensors", about)
    _draw_domain(work, target / f"{DOMAIN_SET}.webp")


def _draw_domain(work: Path, path: Path) -> None:
    """The domain's icons as one picture: a row an icon, in the order of the names in ``<path>.json``, a column a pose."""
    icons = Icons.load(work, (DOMAIN_SET,))
    has = icons.has[0].nonzero()[:, 0].tolist()
    rows = [torch.cat(list(icons.rgba[0, i, :POSES]), dim=1) for i in has]
    write_atomically(path, lambda part: Image.fromarray(torch.cat(rows).numpy()).save(part, "WEBP", quality=92, method=6))
    names = json.dumps([CONCEPTS[i] for i in has], indent=1) + "\n"
    write_atomically(path.with_suffix(".json"), lambda part: part.write_text(names, encoding="utf-8"))


def _train(size: str, words: WordTokenizer, pairs: Pairs, work: Path) -> Ema:
    torch.manual_seed(SEEDS[size])
    model = make_clip(size, len(words))

    def measure(ema: Ema, pictures: int) -> None:
        shown = make_clip(size, len(words)).eval()
        shown.load_state_dict(ema.shadow)
        report = {"pictures": pictures, "trained_on": WIDE_SETS, "top1": accuracy(shown, words, work, (*WIDE_SETS, DOMAIN_SET))}
        print(size, report, flush=True)
        write_atomically(work / f"clip_{size}.json", lambda part: part.write_text(json.dumps(report, indent=1)))

    for number, schedule in enumerate(ROUNDS[size], start=1):
        ema = train(
            model, lambda generator, batch: contrastive_loss(model, words, pairs, generator, batch), schedule,
            RunFolder(work / f"clip_{size}_{number}"), seed=SEEDS[size] + 1000 * (number - 1), ema_half_life=5_000,
            weight_decay=0.05, save_every=250, watch=Watch(log_to(work / f"clip_{size}_{number}.log"), on_save=measure),
        )  # fmt: skip
        model.load_state_dict(ema.shadow)
    return ema
