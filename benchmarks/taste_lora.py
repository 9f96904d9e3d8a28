"""What clicks teach a model without any oracle: the tiny world's student, and its teacher, tuned by a simulated artist's clicks.

An artist of ``benchmarks.taste`` clicks on ``CLICKS`` pairs of pictures, two of one prompt, contradicting themselves as there. A LoRA
learns from them alone (``training.preference``), with each picture's own noise or with fresh noise. Gain: how much better
the artist likes what the tuned model draws of held-out prompts than what it drew from the same noise before, in the artist's unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..training.control import rollout
from ..training.preference import Player, Preferences, PreferenceSettings, prefer
from ..training.run_folder import RunFolder
from ..world.recipe.concepts import held_out_prompts
from ..world.recipe.sampling import World, unit_noise
from .control_world import TUNED, Tuned
from .figures import Array, Claim, bootstrap
from .taste import TEMPERATURE, tastes_of

CLICKS, SEEDS = 60, 2
RANK = 16
SETTINGS = {
    "student": PreferenceSettings(beta=200.0, updates=120, batch=4, learning_rate=1e-3, ema_half_life=200),
    "teacher": PreferenceSettings(beta=200.0, updates=120, batch=4, learning_rate=1e-3, ema_half_life=200),
}


@dataclass(frozen=True)
class Sheet:
    """Pictures of prompts, ``SEEDS`` of each, one after the other.

    Attributes:
        noise: [N, 32, 8, 8] that each was drawn from.
        latents: Likewise.
        pictures: [N, 64, 64, 3].
        published: The gate's oracle's scores [N].
        judge: The other judge's.
        features: [prompts, SEEDS, 64], the judge's.
    """

    prompts: list[str]
    noise: Tensor
    latents: Tensor
    pictures: Tensor
    published: Array
    judge: Array
    features: Array

    @property
    def diversity(self) -> Array:
        """1 - cosine between the two pictures of each prompt."""
        return 1 - (self.features[:, 0] * self.features[:, 1]).sum(-1)


def sheet(tuned: Tuned, name: str | None, prompts: list[str], seed: int) -> Sheet:
    """Drawn without noise on the way, so that a picture is a function of its own; with the LoRA ``name``, or without."""
    words = [prompt for prompt in prompts for _ in range(SEEDS)]
    noise, process, network, drawn = unit_noise(len(words), seed), replace(tuned.process, eta=0.0), tuned.denoise(name), []
    with torch.no_grad():
        context = tuned.world.context(words)
        for rows in torch.arange(len(words)).split(32):
            start = noise[rows] * float(process.b[0])
            denoise = lambda x, time, _which, c=context[rows]: network(x, time, c)  # noqa: E731
            drawn.append(rollout(process, denoise, start, lambda: torch.zeros(0))[-1])
        latents = torch.cat(drawn)
        pictures = tuned.world.pictures(latents)
        scores = [o.score(pictures, words).double().numpy() for o in (tuned.world.oracle, tuned.world.judge)]
        features = tuned.world.features(pictures).double().numpy().reshape(len(prompts), SEEDS, -1)
    return Sheet(words, noise, latents.clone(), pictures.clone(), *scores, features)


def clicks_on(taste: Array, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(better, worse) of ``count`` prompts' two pictures, by Bradley-Terry at ``TEMPERATURE``."""
    firsts = SEEDS * rng.permutation(len(taste) // SEEDS)[:count]
    takes = rng.random(len(firsts)) < 1 / (1 + np.exp(-(taste[firsts] - taste[firsts + 1]) / TEMPERATURE))
    return [(int(i), int(i) + 1) if first else (int(i) + 1, int(i)) for i, first in zip(firsts, takes, strict=True)]


def learned(tuned: Tuned, lesson: Sheet, clicks: list[tuple[int, int]], settings: PreferenceSettings, folder: Path) -> None:
    """Teach the LoRA of ``tuned``; it holds the moving average afterwards."""
    with torch.no_grad():
        context = tuned.world.context(lesson.prompts)

    def of(name: str | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        network = tuned.denoise(name)
        return lambda x, time, which: network(x, time, context[which])

    given = Preferences(lesson.latents, lesson.noise, torch.arange(len(lesson.prompts)), clicks)
    player = Player(of(None), of(TUNED), tuned.lora, tuned.process, float(lesson.latents.std()))
    ema = prefer(player, given, settings, RunFolder(folder), save_every=settings.updates)
    tuned.lora.load_state_dict(ema.shadow)


def gain_of(before: Sheet, after: Sheet, artist: str) -> Array:
    """By how much the artist likes what is drawn of each prompt better, in the artist's unit."""
    pictures, published = torch.cat([before.pictures, after.pictures]), np.concatenate([before.published, after.published])
    firsts = np.arange(0, len(before.pictures), SEEDS)
    taste = tastes_of(pictures, published, (firsts, firsts + 1))[artist]
    change: Array = (taste[len(before.pictures) :] - taste[: len(before.pictures)]).reshape(-1, SEEDS).mean(1)
    return change


def taste_of(lesson: Sheet, artist: str) -> Array:
    """What the artist thinks of a sheet."""
    firsts = np.arange(0, len(lesson.pictures), SEEDS)
    return tastes_of(lesson.pictures, lesson.published, (firsts, firsts + 1))[artist]


def run(
    quick: bool, say: Callable[[str], None], artists: tuple[str, ...], settings: dict[str, PreferenceSettings] | None = None
) -> tuple[list[dict[str, Any]], dict[str, Claim]]:
    """Rows of each model and kind of noise, all artists together, and the claims."""
    held, clicked, settings = (20, 20, settings) if quick else (80, CLICKS, settings)
    texts = [prompt.text() for prompt in held_out_prompts()]
    rows, claims = [], {}
    for who, chosen in (settings or SETTINGS).items():
        plain = Tuned(World(), RANK, 0, who == "student")
        lesson, before = sheet(plain, None, texts[:clicked], 1), sheet(plain, None, texts[-held:], 101)
        for own in (True, False):
            gains, ratios, judged = [], [], []
            for number, artist in enumerate(artists):
                clicks = clicks_on(taste_of(lesson, artist), clicked, np.random.default_rng([7, number]))
                tuned = Tuned(plain.world, RANK, number, who == "student") if False else Tuned(World(), RANK, number, who == "student")
                one = replace(chosen, own_noise=own, updates=4 if quick else chosen.updates)
                with TemporaryDirectory() as folder:
                    learned(tuned, lesson, clicks, one, Path(folder))
                after = sheet(tuned, TUNED, texts[-held:], 101)
                gains.append(gain_of(before, after, artist))
                judged.append((after.judge - before.judge).reshape(-1, SEEDS).mean(1))
                ratios.append(after.diversity)
                say(f"{who}, {'own' if own else 'fresh'} noise, {artist}: {gains[-1].mean():.2f}")
            gain = mean_of(np.mean(gains, 0))
            variety = bootstrap(lambda i, r=ratios: float(np.mean([x[i].mean() for x in r]) / before.diversity[i].mean()), held)
            rows.append({
                "model": who, "noise": "each picture's own" if own else "fresh", "clicks": clicked, "gain": str(gain),
                **{artist: round(float(g.mean()), 2) for artist, g in zip(artists, gains, strict=True)},
                "judge": str(mean_of(np.mean(judged, 0))), "variety": str(variety),
            })  # fmt: skip
            claims[f"clicks_gain_{who}_{'own' if own else 'fresh'}"] = gain
    return rows, claims


def mean_of(values: Array) -> Claim:
    """The mean over prompts, with its interval."""
    return bootstrap(lambda index: float(values[index].mean()), len(values))
