"""The start tuned instead of the network: the teacher from noise that its student finds promising."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..training.control import tilted_choice
from ..world.recipe.sampling import World, unit_noise
from .control_world import against, measure, row_of
from .figures import Claim

CANDIDATES, TEACHER_STEPS = 8, 12
ALPHAS = (0.3, 3.0, 1.0, 0.01)


def start_laws(
    world: World, prompts: int, seeds: int, say: Callable[[str], None], alphas: Sequence[float] = ALPHAS
) -> tuple[list[dict[str, Any]], dict[str, Claim]]:
    """The teacher with guidance, without fresh noise, from noises picked by one-step drafts at several strengths.

    Returns:
        A row for each strength, the first without any choice, and claims about the first of ``alphas``.
    """

    @cache
    def scored(words: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """The candidates [B * candidates, ...] and the oracle's scores of their drafts; a picture's own lie together."""
        many, each = unit_noise(len(words) * CANDIDATES, 99), [word for word in words for _ in range(CANDIDATES)]
        return many, world.oracle.score(world.pictures(world.draft(each, many, 1).latents), each)

    def draw(words: list[str], noise: Tensor, alpha: float | None) -> Tensor:
        if alpha is not None:
            many, scores = scored(tuple(words))
            picked = tilted_choice(scores.view(-1, CANDIDATES), alpha, torch.Generator().manual_seed(7))
            noise = many.unflatten(0, (-1, CANDIDATES))[torch.arange(len(words)), picked]
        return world.redraw(words, noise, TEACHER_STEPS).latents

    before = measure(world, partial(draw, alpha=None), prompts, seeds)
    rows, claims = [row_of("any noise", before, against(before, before))], dict[str, Claim]()
    for alpha in alphas:
        say(f"start, alpha {alpha:g}")
        after = measure(world, partial(draw, alpha=alpha), prompts, seeds)
        changed = against(before, after)
        rows.append(row_of(f"of {CANDIDATES}, alpha {alpha:g}", after, changed))
        claims = claims or {f"start_{name}": claim for name, claim in changed.items()}
    return [rows[0], *sorted(rows[1:], key=lambda row: -float(row["law"].split()[-1]))], claims
