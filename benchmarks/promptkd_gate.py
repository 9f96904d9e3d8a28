"""A distilled critic as the gate of adaptive collaboration, beside the large CLIP that it learned from, on the tiny world.

The critic learns from the student's own drafts of training prompts, without labels; then both gate drafts of prompts that
training never showed. The judge, which neither has to do with, measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..oracles.clip_files import ClipFile
from ..oracles.promptkd import PromptKDOracle
from ..training import critic as critics
from ..training.domain_data import FixedPictures
from ..world.recipe.concepts import CONCEPTS, held_out_prompts
from ..world.recipe.critic import critic_of_drafts
from ..world.recipe.sampling import World, unit_noise
from .adaptive import STUDENT_STEPS, TEACHER_STEPS, Pool, mean_of, route
from .figures import Array, Claim, bootstrap

SHARE = 0.5  # of the drafts go to the teacher


@dataclass(frozen=True)
class Gates:
    """What was found: a table, and for how many held-out drafts critic and large CLIP decide alike."""

    rows: list[dict[str, Any]]
    same: Claim


def measure(
    clip: Callable[[str], ClipFile], drafts: int, prompts: int, epochs: int, folder: Path, say: Callable[[str], None]
) -> Gates:
    """Distil a critic from ``drafts`` pictures, and let it gate those of ``prompts`` held-out prompts.

    Args:
        clip: Reads the ``large`` or the ``small`` CLIP.
    """
    world, names = World(), list(CONCEPTS)
    say(f"gate: {drafts} drafts to learn from")
    teacher = critics.load_teacher(clip("large"))
    critic = critic_of_drafts(world, teacher, clip("small"), drafts, epochs, folder)
    held = held_out_prompts()[:prompts]
    words, noise = [p.text() for p in held], unit_noise(prompts, 4)
    say(f"gate: {prompts} prompts by student and teacher")
    drawn = [world.draft(words, noise, STUDENT_STEPS, seed=901), world.redraw(words, noise, TEACHER_STEPS)]
    shown = [(world.pictures(d.latents), d.nfe) for d in drawn]
    plain = critics.load_teacher(clip("small"))
    # The large CLIP as an oracle judges like the critic: by the probability of the class that the prompt names.
    large = _scores(teacher.clip.encode_pictures, teacher.features(names), teacher.clip.scale)
    small = _scores(plain.clip.encode_pictures, plain.features(names), plain.clip.scale)
    gates: dict[str, Callable[[Tensor, list[str]], Tensor]] = {
        "large CLIP": lambda images, texts: large(images, [critic.find_class(t) for t in texts]),
        "distilled critic": PromptKDOracle(critic).score,
        "small CLIP, zero-shot": lambda images, texts: small(images, [critic.find_class(t) for t in texts]),
    }
    return _compare(world, gates, shown, words)


def _scores(encode: Callable[[Tensor], Tensor], text: Tensor, scale: Tensor) -> Callable[[Tensor, list[int]], Tensor]:
    @torch.no_grad()
    def score(images: Tensor, classes: list[int]) -> Tensor:
        pixels = FixedPictures([images], 64).pixels
        logits = torch.cat([scale * encode(part) @ text.T for part in pixels.split(100)])
        return logits.softmax(1).gather(1, torch.tensor(classes)[:, None])[:, 0]

    return score


def _compare(
    world: World, gates: dict[str, Callable[[Tensor, list[str]], Tensor]], shown: list[tuple[Tensor, int]], words: list[str]
) -> Gates:
    def pool(gate: Callable[[Tensor, list[str]], Tensor], pictures: Tensor, nfe: int) -> Pool:
        quality = world.judge.score(pictures, words).double().numpy()
        return Pool(gate(pictures, words).double().numpy(), quality, np.zeros((len(words), 1)), nfe, pictures, quality)

    rows: list[dict[str, Any]] = []
    rejected: dict[str, Array] = {}
    for name, gate in gates.items():
        drafts, teacher = (pool(gate, *part) for part in shown)
        routed, order = route(drafts, teacher, SHARE, keep_better=True), np.argsort(drafts.gate, kind="stable")
        rejected[name] = np.isin(np.arange(len(order)), order[: round(SHARE * len(order))])
        gain = mean_of(routed.quality - drafts.quality)
        rows.append({"gate": name, "judge's score": float(routed.quality.mean()), "gain over the drafts": str(gain)})
    alike: Array = rejected["large CLIP"] == rejected["distilled critic"]
    rows[0]["decides as the large one"] = 1.0
    for row in rows[1:]:
        row["decides as the large one"] = float((rejected["large CLIP"] == rejected[row["gate"]]).mean())
    return Gates(rows, bootstrap(lambda index: float(alike[index].mean()), len(alike)))
