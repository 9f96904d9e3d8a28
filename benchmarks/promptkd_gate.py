"""Critics as the gate of adaptive collaboration, beside the large CLIP that they learned from, on the tiny world.

Critics learn from the student's own drafts of training prompts, without labels; then they and the CLIPs gate drafts of prompts
that training never showed. The judge, which none has to do with, measures. Intervals are by prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..files import save_safetensors_atomically
from ..oracles.clip_files import ClipFile
from ..oracles.promptkd import PromptKDOracle, log_odds
from ..training import critic as critics
from ..training.domain_data import FixedPictures
from ..world.recipe.concepts import CONCEPTS, held_out_prompts
from ..world.recipe.critic import GATING, critic_of_drafts, gating_critic
from ..world.recipe.sampling import World, unit_noise
from .adaptive import STUDENT_STEPS, TEACHER_STEPS, Pool, mean_of, route
from .figures import Array, Claim, bootstrap

SHARE = 0.5  # of the drafts go to the teacher
ASKED = 0.3  # of the drafts at which a cascade asks the large CLIP, at most
LARGE, PUBLISHED, SMALL = "large CLIP", "distilled critic", "small CLIP, zero-shot"
MIRRORED = "large CLIP, pictures mirrored"  # by which it can be seen what decides alike at best
GATING_CRITIC = "distilled critic, tower taught"
Gate = Callable[[Tensor, list[str]], Tensor]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        drafts: That the critics learn from: as published, and with the tower taught.
        epochs: Likewise.
        prompts: That are gated, each ``seeds`` times.
    """

    drafts: tuple[int, int]
    epochs: tuple[int, int]
    prompts: int
    seeds: int


@dataclass(frozen=True)
class Gates:
    """What was found: a table, and the claims."""

    rows: list[dict[str, Any]]
    claims: dict[str, Claim]


def measure(clip: Callable[[str], ClipFile], plan: Plan, folder: Path, say: Callable[[str], None]) -> Gates:
    """Distil critics, and let them gate drafts of held-out prompts.

    Args:
        clip: Reads the ``large`` or the ``small`` CLIP.
        folder: Where drafts and runs are kept; what is there already is not made again.
    """
    world, names = World(), list(CONCEPTS)
    teacher, plain = critics.load_teacher(clip("large")), critics.load_teacher(clip("small"))
    say(f"gate: {plan.drafts[0]} drafts for the published critic")
    published = critic_of_drafts(world, teacher, clip("small"), plan.drafts[0], plan.epochs[0], folder / "published")
    say(f"gate: {plan.drafts[1]} drafts for the critic whose tower is taught")
    settings = replace(GATING, epochs=plan.epochs[1])
    taught = gating_critic(world, teacher, clip("small"), plan.drafts[1], settings, folder / "critic")
    words = [p.text() for p in held_out_prompts()[: plan.prompts]]
    shown = [drawn(world, words, seed, folder, say) for seed in range(plan.seeds)]
    large = _scores(teacher, teacher.features(names), taught.find_class)
    gates: dict[str, Gate] = {
        LARGE: large,
        MIRRORED: lambda images, texts: large(images.flip(2), texts),
        GATING_CRITIC: PromptKDOracle(taught, "log-odds").score,
        PUBLISHED: PromptKDOracle(published, "log-odds").score,
        SMALL: _scores(plain, plain.features(names), taught.find_class),
    }
    parts = [torch.cat([part[name] for part in shown]).float() / 255 for name in ("drafts", "teacher")]
    return compare(world, gates, parts, words * plan.seeds, len(words))


def drawn(world: World, words: list[str], seed: int, folder: Path, say: Callable[[str], None]) -> dict[str, Tensor]:
    """The student's ``drafts`` and the ``teacher``'s pictures, uint8 [N, 64, 64, 3], drawn once and kept in ``folder``."""
    path = folder / f"gated_{len(words)}_{seed}.safetensors"
    if not path.exists():
        say(f"gate: {len(words)} prompts by student and teacher, seed {seed}")
        noise = unit_noise(len(words), 4 + seed)
        both = {
            "drafts": world.draft(words, noise, STUDENT_STEPS, seed=901 + seed),
            "teacher": world.redraw(words, noise, TEACHER_STEPS),
        }
        pictures = {name: (world.pictures(d.latents) * 255).round().byte() for name, d in both.items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_safetensors_atomically(pictures, path, {})
    return load_file(path)


def _scores(teacher: critics.Teacher, text: Tensor, find_class: Callable[[str], int]) -> Gate:
    """A CLIP as an oracle that judges as critics do: by the log-odds of the class that the prompt names."""

    @torch.no_grad()
    def score(images: Tensor, prompts: list[str]) -> Tensor:
        pixels = FixedPictures([images], 64).pixels
        logits = torch.cat([teacher.clip.scale * teacher.clip.encode_pictures(part) @ text.T for part in pixels.split(100)])
        return log_odds(logits, torch.tensor([find_class(p) for p in prompts]))

    return score


# ------------------------------------------------------------------------------------------------------- decisions


def rejected(scores: Array, share: float = SHARE) -> Array:
    """Whether each picture [N] is among the worst ``share``."""
    order = np.argsort(scores, kind="stable")
    result: Array = np.isin(np.arange(len(order)), order[: round(share * len(order))])
    return result


def cascaded(light: Array, heavy: Array, share: float = SHARE, asked: float = ASKED) -> Array:
    """Likewise, by a light judge that asks a heavy one about the ``asked`` share whose scores are nearest to its threshold."""
    order, count = np.argsort(light, kind="stable"), len(light)
    middle, half = round(share * count), round(asked * count / 2)
    sure, doubted = order[: max(middle - half, 0)], order[max(middle - half, 0) : middle + half]
    worst = doubted[np.argsort(heavy[doubted], kind="stable")][: middle - len(sure)]
    result: Array = np.isin(np.arange(count), np.concatenate([sure, worst]))
    return result


def by_prompt(values: Array, prompts: int) -> Array:
    """Means [prompts] of values [seeds x prompts]."""
    means: Array = values.reshape(-1, prompts).mean(0)
    return means


def lost(gains: Array, of: Array) -> Claim:
    """The part of the mean gain ``of`` [prompts] that the mean of ``gains`` lacks."""
    return bootstrap(lambda index: 1 - float(gains[index].mean() / of[index].mean()), len(of))


def compare(world: World, gates: dict[str, Gate], parts: Sequence[Tensor], words: list[str], prompts: int) -> Gates:
    """All gates on the same pictures.

    Args:
        parts: Drafts and teacher's pictures, each [seeds x prompts, 64, 64, 3] in 0..1.
        words: What they were asked to show.
        prompts: How many different ones there are.
    """
    qualities = [world.judge.score(part, words).double().numpy() for part in parts]
    costs, rows = (STUDENT_STEPS, 2 * TEACHER_STEPS), list[dict[str, Any]]()
    scores: dict[str, Array] = {}
    gains: dict[str, Array] = {}
    for name, gate in gates.items():
        pools = [
            Pool(gate(part, words).double().numpy(), quality, np.zeros((len(words), 1)), nfe, part, quality)
            for part, quality, nfe in zip(parts, qualities, costs, strict=True)
        ]
        routed, scores[name] = route(pools[0], pools[1], SHARE, keep_better=True), pools[0].gate
        gains[name] = by_prompt(routed.quality - pools[0].quality, prompts)
        alike, helped = (
            float((rejected(scores[LARGE]) == decided).mean())
            for decided in (rejected(scores[name]), cascaded(scores[name], scores[LARGE]))
        )
        rows.append({
            "gate": name, "judge's score": float(routed.quality.mean()), "gain over the drafts": str(mean_of(gains[name])),
            "decides as the large one": alike, f"asking it at {ASKED:.0%}": helped,
        })  # fmt: skip
    return Gates(rows, _claims(scores, gains, prompts))


def _claims(scores: dict[str, Array], gains: dict[str, Array], prompts: int) -> dict[str, Claim]:
    theirs = rejected(scores[LARGE])
    same, helped = (
        mean_of(by_prompt((decided == theirs).astype(float), prompts))
        for decided in (rejected(scores[GATING_CRITIC]), cascaded(scores[GATING_CRITIC], scores[LARGE]))
    )
    asked = 2 * round(ASKED * len(theirs) / 2) / len(theirs)
    return {
        "same_decisions": same, "cascade_same_decisions": helped, "cascade_asked": Claim(asked, asked, asked),
        "gate_gain_lost": lost(gains[GATING_CRITIC], gains[LARGE]), "large_gate_gain": mean_of(gains[LARGE]),
    }  # fmt: skip
