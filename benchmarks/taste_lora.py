"""What clicks teach a model without any oracle: the tiny world's student, and its teacher, tuned by a simulated artist's clicks.

An artist of ``artists`` clicks on ``CLICKS`` pairs of pictures, two of one prompt, contradicting themselves as there. A
LoRA learns from them alone (``training.preference``), with each picture's own noise or with fresh noise. Gain: how much better
the artist likes what the tuned model draws of held-out prompts than what it drew of the same noise before, in the artist's unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from .adaptive import mean_of
from .artists import TEMPERATURE, tastes_of
from .control_world import TUNED, Tuned
from .figures import Array, Claim, bootstrap

CLICKS, SEEDS, HELD = 60, 2, 80  # SEEDS and HELD: pictures a prompt, prompts of the figures
RANK = 16
ARTISTS = ("warm", "bold", "right and plain")
SETTINGS = {
    "student": PreferenceSettings(beta=2000.0, updates=80, batch=4, learning_rate=3e-4, ema_half_life=100),
    "teacher": PreferenceSettings(beta=2000.0, updates=80, batch=4, learning_rate=3e-4, ema_half_life=100),
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
        published, judge = (o.score(pictures, words).double().numpy() for o in (tuned.world.oracle, tuned.world.judge))
        features = tuned.world.features(pictures).double().numpy().reshape(len(prompts), SEEDS, -1)
    return Sheet(words, noise, latents.clone(), pictures.clone(), published, judge, features)


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


@dataclass(frozen=True)
class Lesson:
    """A model as it was: what it draws of the prompts that are clicked on, and of those that are held out."""

    who: str
    clicked: Sheet
    before: Sheet

    @classmethod
    def of(cls, who: str, count: int, held: int) -> Lesson:
        """With ``count`` prompts to click on, and ``held`` others."""
        texts = [prompt.text() for prompt in held_out_prompts()]
        plain = Tuned(World(), RANK, 0, who == "student")
        return cls(who, sheet(plain, None, texts[:count], 1), sheet(plain, None, texts[-held:], 101))

    def taught(self, artist: str, seed: int, settings: PreferenceSettings, folder: Path) -> Sheet:
        """What is drawn of the held-out prompts, after a LoRA has learned from the artist's clicks."""
        tuned = Tuned(World(), RANK, seed, self.who == "student")
        rng = np.random.default_rng([7, seed])
        clicks = clicks_on(taste_of(self.clicked, artist), len(self.clicked.prompts) // SEEDS, rng)
        learned(tuned, self.clicked, clicks, settings, folder)
        return sheet(tuned, TUNED, self.before.prompts[::SEEDS], 101)

    def row(self, after: dict[str, Sheet], noise: str) -> tuple[dict[str, Any], Claim]:
        """For the table, and the gain; ``after`` by artists."""
        before, gains = self.before, {artist: gain_of(self.before, then, artist) for artist, then in after.items()}
        gain = mean_of(np.mean(list(gains.values()), 0))
        judged = np.mean([(then.judge - before.judge).reshape(-1, SEEDS).mean(1) for then in after.values()], 0)
        varied = np.mean([then.diversity for then in after.values()], 0)
        variety = bootstrap(lambda i: float(varied[i].mean() / before.diversity[i].mean()), len(varied))
        row = {
            "model": self.who, "noise": noise, "clicks": len(self.clicked.prompts) // SEEDS, "gain": str(gain),
            **{artist: str(mean_of(each)) for artist, each in gains.items()}, "judge": str(mean_of(judged)),
            "variety": str(variety),
        }  # fmt: skip
        return row, gain


def run(
    quick: bool, say: Callable[[str], None], artists: Sequence[str] = ARTISTS, only: Sequence[str] = tuple(SETTINGS),
    changes: Mapping[str, Any] | None = None, noises: Sequence[bool] = (True, False),
) -> tuple[list[dict[str, Any]], dict[str, Claim]]:  # fmt: skip
    """Rows of each model and kind of noise, and the claims: ``clicks_gain`` is the student's, as it is by default.

    Args:
        changes: Of the settings.
    """
    held, count = (12, 12) if quick else (HELD, CLICKS)
    rows, claims = [], dict[str, Claim]()
    for who in only:
        lesson = Lesson.of(who, count, held)
        settings = replace(SETTINGS[who], **(changes or {}))
        if quick:
            settings = replace(settings, updates=4)
        for own in noises:
            after, noise = dict[str, Sheet](), "each picture's own" if own else "fresh"
            for number, artist in enumerate(artists):
                with TemporaryDirectory() as folder:
                    after[artist] = lesson.taught(artist, number, replace(settings, own_noise=own), Path(folder))
                say(f"{who}, {noise} noise, {artist}: gain {gain_of(lesson.before, after[artist], artist).mean():.2f}")
            row, gain = lesson.row(after, noise)
            rows.append(row)
            if own:
                claims["clicks_gain" if who == "student" else f"clicks_gain_{who}"] = gain
    return rows, claims
