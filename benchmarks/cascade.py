"""What a cascade saves and what it gets wrong: on the tiny world's drafts of prompts that its training never showed.

The light oracle is the one that gates there. The heavy one is the unseen judge, which agrees with it little, or both together.
Calibrations are random halves of the drafts; each is tried on the other drafts, at the heavy oracle's 30th percentile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..gate.cascade import CertifiedBand, Pairs, ShareBand
from ..gate.selection import agreement
from ..gate.thresholds import quantile
from ..oracles.cascade import Rule, Scale, band_around
from ..world.recipe.concepts import held_out_prompts
from ..world.recipe.sampling import World, unit_noise
from .figures import Array, Claim, Figures, print_table

STEPS, PERCENTILE, CONFIDENCE, CALIBRATED = 2, 30, 0.9, 150
ALPHAS = (0.1, 0.05)
RULES: dict[str, Callable[[Pairs], Rule]] = {
    "light oracle alone": lambda pairs: ShareBand.of(pairs, 0.0),
    "share 0.3": lambda pairs: ShareBand.of(pairs, 0.3),
    **{f"guaranteed {alpha:g}": partial(CertifiedBand.of, alpha=alpha, confidence=CONFIDENCE) for alpha in ALPHAS},
}


def tried(light: Array, heavy: Array, rule: Callable[[Pairs], Rule], rng: np.random.Generator) -> tuple[float, float]:
    """Shares of new drafts that the heavy oracle is asked about, and that are decided otherwise than by it alone."""
    order = rng.permutation(len(light))
    known, new = order[:CALIBRATED], order[CALIBRATED:]
    pairs = Pairs(tuple(light[known].tolist()), tuple(heavy[known].tolist()), tuple(range(len(known))))
    threshold = quantile(pairs.heavy, PERCENTILE / 100)
    low, high = band_around(threshold, Scale.fitted(pairs.light, pairs.heavy), rule(pairs))
    asked = (low <= light[new]) & (light[new] <= high)
    accepted = np.where(asked, heavy[new] >= threshold, light[new] > high)
    return float(asked.mean()), float((accepted != (heavy[new] >= threshold)).mean())


def run(quick: bool = False, say: Callable[[str], None] = print) -> Figures:
    """Measure, print the table and the claims."""
    prompts = [prompt.text() for prompt in held_out_prompts()]
    splits = 50 if quick else 400
    world = World()
    say(f"{len(prompts)} prompts, a draft of each; {splits} calibrations")
    pictures = world.pictures(world.draft(prompts, unit_noise(len(prompts), 3), STEPS).latents)
    light, judge = (oracle.score(pictures, prompts).double().numpy() for oracle in (world.oracle, world.judge))
    heavies = {"unseen judge": judge, "both together": _z(light) + _z(judge)}
    figures = Figures("cascade", {
        "prompts": len(prompts), "calibrated": CALIBRATED, "calibrations": splits, "percentile": PERCENTILE,
        "confidence": CONFIDENCE,
    })  # fmt: skip
    for name, heavy in heavies.items():
        correlation = agreement(light.tolist(), heavy.tolist()).spearman
        for title, rule in RULES.items():
            rng = np.random.default_rng(0)
            shares = np.array([tried(light, heavy, rule, rng) for _ in range(splits)])
            asked, differing = (_spread(column) for column in shares.T)
            key = f"{title} {name}".replace(" ", "_")
            figures.claims |= {f"asked_{key}": asked, f"differing_{key}": differing}
            figures.rows.append(_row(name, correlation, title, asked, differing))
    print_table(figures.rows)
    return figures


def _row(name: str, correlation: float, title: str, asked: Claim, differing: Claim) -> dict[str, Any]:
    return {
        "heavy oracle": name, "rank correlation": round(correlation, 2), "band": title, "asked": str(asked),
        "decided otherwise": str(differing),
    }  # fmt: skip


def _z(values: Array) -> Array:
    return (values - values.mean()) / values.std()  # type: ignore[no-any-return]


def _spread(values: Array) -> Claim:
    """The mean over calibrations, and where 95 % of them lie."""
    low, high = np.percentile(values, [2.5, 97.5])
    return Claim(float(values.mean()), float(low), float(high)) if len(values) else Claim(math.nan, math.nan, math.nan)
