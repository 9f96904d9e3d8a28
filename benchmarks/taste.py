"""What clicks teach: simulated artists of known taste on the tiny world, and what their taste does for the gate.

Three artists: one likes warm pictures, one likes bold ones, and one likes what the published oracle likes, but plain. They click
on pairs of pictures of one prompt (draft and improvement, or two drafts) by Bradley-Terry at a temperature, so they contradict
themselves as people do. Prompts for the clicks and for the figures are different ones.

Accuracy: of pairs of held-out prompts, how many the learned taste orders as the artist's own taste does, without noise. Gain:
Algorithm 1 on held-out prompts (the worst third by the gate's oracle to the teacher, the better kept), gated by the taste, minus
gated by the published oracle alone; in units of how much the artist's taste differs between two pictures of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..samplers.adaptive import is_better
from ..training.taste import LEAST_CLICKS, Taste, learn
from ..world.recipe.concepts import held_out_prompts
from ..world.recipe.sampling import World, unit_noise
from . import taste_lora
from .artists import TEMPERATURE, tastes_of
from .figures import Array, Claim, Figures, bootstrap, print_claims, print_table

COUNTS = (20, 50, 100, 200)
STEPS, TEACHER_STEPS, ROLLBACK, SHARE = 1, 9, 0.7, 1 / 3
DRAFTS = 2  # a prompt


@dataclass
class Pictures:
    """Drafts and improvements of many prompts, ``DRAFTS`` of each, one after the other; then all improvements likewise."""

    prompts: list[str]
    features: Array
    published: Array
    tastes: dict[str, Array]

    @property
    def drafts(self) -> int:
        """How many drafts: the improvement of draft i is picture ``drafts`` + i."""
        return len(self.prompts) // 2


def draw(world: World, prompts: list[str], seed: int) -> Pictures:
    """All pictures that clicks and figures need."""
    rows = [prompt for prompt in prompts for _ in range(DRAFTS)]
    noise, fresh = unit_noise(len(rows), seed), unit_noise(len(rows), seed + 1)
    drafts = world.draft(rows, noise, STEPS, seed)
    improved = world.refine(rows, drafts.latents, fresh, TEACHER_STEPS, ROLLBACK)
    pictures = world.pictures(torch.cat([drafts.latents, improved.latents]))
    rows = rows + rows
    with torch.no_grad():
        features = torch.cat([world.oracle.features(part) for part in pictures.split(64)]).double().numpy()
    published = world.oracle.score(pictures, rows).double().numpy()
    return Pictures(rows, features, published, tastes_of(pictures, published))


def clicks_of(pictures: Pictures, taste: Array, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(better, worse) of ``count`` pairs of one prompt each, as an artist of this taste clicks."""
    n = pictures.drafts
    pairs = [(i, i + n) for i in range(n)] + [(i, i + 1) for i in range(0, n, DRAFTS)]
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:count]]
    first = rng.random(count) < 1 / (1 + np.exp(-np.array([taste[a] - taste[b] for a, b in chosen]) / TEMPERATURE))
    return [(a, b) if takes else (b, a) for (a, b), takes in zip(chosen, first, strict=True)]


def taught(pictures: Pictures, clicks: list[tuple[int, int]]) -> Taste:
    """The taste that these clicks teach, as the node learns it."""
    improved = [i >= pictures.drafts for i in range(len(pictures.prompts))]
    return learn(pictures.features, pictures.published, clicks, pictures.prompts, improved)


def scores_by(taste: Taste, pictures: Pictures) -> Array:
    """What the learned taste says of pictures."""
    scores: Array = pictures.features @ taste.weight + taste.published * (pictures.published - taste.mean) / taste.std
    return scores


def agreement(scores: Array, taste: Array, pictures: Pictures) -> Array:
    """For each draft, whether the scores order it and its improvement as the artist does."""
    n = pictures.drafts
    agrees: Array = (scores[:n] > scores[n:]) == (taste[:n] > taste[n:])
    return agrees.astype(float)


def gated(scores: Array, pictures: Pictures) -> Array:
    """Which picture each draft ends as, when these scores judge: the worst ``SHARE`` to the teacher, the better kept."""
    n = pictures.drafts
    tau = np.sort(scores[:n])[round(SHARE * n)]
    return np.array([
        i + n if scores[i] < tau and is_better(scores[i], scores[i + n], 0.0) else i for i in range(n)
    ])  # fmt: skip


def by_prompt(values: Array) -> Array:
    """Mean over a prompt's drafts."""
    mean: Array = values.reshape(-1, DRAFTS).mean(1)
    return mean


def measure(artist: str, count: int, repeats: int, lesson: Pictures, exam: Pictures) -> tuple[Array, Array, Array]:
    """Of each held-out prompt, over ``repeats`` sets of clicks: accuracy, gain, and the published oracle's share of the say."""
    accuracies, gains, shares = [], [], []
    taste = exam.tastes[artist]
    plain = taste[gated(exam.published, exam)]
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, count, sorted(exam.tastes).index(artist)])
        learned = taught(lesson, clicks_of(lesson, lesson.tastes[artist], count, rng))
        scores = scores_by(learned, exam)
        accuracies.append(by_prompt(agreement(scores, taste, exam)))
        gains.append(by_prompt(taste[gated(scores, exam)] - plain))
        shares.append(learned.shares[1])
    return np.mean(accuracies, 0), np.mean(gains, 0), np.array(shares)


def mean_claim(values: Array) -> Claim:
    """The mean over prompts, with its interval."""
    return bootstrap(lambda index: float(values[index].mean()), len(values))


def run(quick: bool, say: Callable[[str], None]) -> Figures:
    """Measure all, print the table."""
    prompts, repeats = (80, 4) if quick else (160, 10)
    texts = [prompt.text() for prompt in held_out_prompts()[: 2 * prompts if quick else None]]
    world = World()
    say(f"drafts and improvements of {len(texts)} prompts")
    lesson, exam = draw(world, texts[:prompts], 1), draw(world, texts[prompts:], 101)
    say(f"{len(exam.tastes)} artists, {repeats} sets of clicks each")
    counts = [count for count in COUNTS if LEAST_CLICKS <= count <= lesson.drafts]
    results = {(artist, count): measure(artist, count, repeats, lesson, exam) for artist in exam.tastes for count in counts}
    rows = []
    for artist in exam.tastes:
        published = agreement(exam.published, exam.tastes[artist], exam).mean()
        for count in counts:
            accuracy, gain, shares = results[artist, count]
            rows.append({
                "artist": artist, "clicks": count, "accuracy": str(mean_claim(accuracy)), "published alone": float(published),
                "gain": str(mean_claim(gain)), "published oracle's say": float(shares.mean()),
            })  # fmt: skip
    claims = {}
    for count in counts:
        parts = [results[artist, count] for artist in exam.tastes]
        claims[f"taste_accuracy_{count}"] = mean_claim(np.mean([p[0] for p in parts], 0))
        claims[f"taste_gain_{count}"] = mean_claim(np.mean([p[1] for p in parts], 0))
    print_table(rows)
    say("LoRAs from clicks alone")
    loras, gains = taste_lora.run(quick, say, taste_lora.ARTISTS[: 1 if quick else None])
    claims |= gains
    print_table(loras)
    print_claims(claims)
    settings = {
        "prompts clicked": prompts, "held-out prompts": len(texts) - prompts, "drafts a prompt": DRAFTS, "share": SHARE,
        "sets of clicks": repeats, "temperature": TEMPERATURE, "student steps": STEPS, "teacher steps": TEACHER_STEPS,
        "rollback": ROLLBACK, "quick": quick,
    }  # fmt: skip
    figures = Figures("taste", settings, rows, claims)
    figures.findings["LoRAs from clicks alone"] = loras
    return figures
