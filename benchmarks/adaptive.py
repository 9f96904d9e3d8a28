"""Is adaptive collaboration worth having? Measured on the tiny world, on prompts that training never showed.

Every picture is drawn once; routing, keeping the better, and budgets are then applied to the same pictures, so methods
differ by nothing else. The oracle gates; the judge, which no gate ever saw, measures. Intervals are by prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..samplers.adaptive import adaptive_collaboration, regenerate
from ..world.recipe.concepts import held_out_prompts
from ..world.recipe.frechet import frechet, reference
from ..world.recipe.sampling import World, unit_noise
from .figures import Array, Claim, Figures, bootstrap, jackknife_ratio, spread

STUDENT_STEPS = 2
TEACHER_STEPS = 9  # of the teacher that improves: where more steps no longer pay; 18 evaluations with guidance
TEACHER_CURVE = (3, 4, 5, 6, 7, 9, 12, 16)
ROLLBACKS = (0.5, 0.6, 0.7, 0.8)
ROLLBACK = 0.7
CANDIDATES = 6  # of best-of-N: as many drafts as the budget affords
BUDGET = 12.0  # average evaluations a picture
SHARES = tuple(i / 10 for i in range(11))


@dataclass
class Pool:
    """One method's picture for every row (a prompt and a seed): gate score, judge score, the judge's features, cost."""

    gate: Array
    quality: Array
    features: Array
    nfe: float
    pixels: Tensor
    path: Array

    def where(self, chosen: Array, other: Pool, nfe: float) -> Pool:
        """``other`` where ``chosen``, else this."""
        gate = np.where(chosen, other.gate, self.gate)
        quality = np.where(chosen, other.quality, self.quality)
        features = np.where(chosen[:, None], other.features, self.features)
        return Pool(gate, quality, features, nfe, self.pixels, self.path)


class Measured:
    """All pictures that the comparison needs."""

    def __init__(self, prompts: list[str], seeds: int, say: Callable[[str], None]) -> None:
        self.prompts, self.seeds = prompts, seeds
        self.rows = [p for p in prompts for _ in range(seeds)]
        self.world = World()
        noise = unit_noise(len(self.rows), 1)
        say(f"{len(prompts)} prompts, {seeds} seeds")
        self.drafts, latents = self._drafts(noise, say)
        self.teacher = {}
        for steps in TEACHER_CURVE:
            say(f"teacher, {steps} steps")
            drawn = self.world.redraw(self.rows, noise, steps)
            self.teacher[steps] = self._pool(drawn.latents, drawn.nfe, drawn.path)
        fresh, self.refined = unit_noise(len(self.rows), 2), {}
        for rollback in ROLLBACKS:
            say(f"refine from rollback {rollback}")
            drawn = self.world.refine(self.rows, latents, fresh, TEACHER_STEPS, rollback)
            self.refined[rollback] = self._pool(drawn.latents, drawn.nfe, drawn.path)
        say("refine all at the budget")
        steps = _steps_below(self.world, ROLLBACK, BUDGET - STUDENT_STEPS)
        drawn = self.world.refine(self.rows, latents, fresh, steps, ROLLBACK)
        self.cheap_refined = self._pool(drawn.latents, drawn.nfe, drawn.path)

    def _drafts(self, noise: Tensor, say: Callable[[str], None]) -> tuple[list[Pool], Tensor]:
        pools, latents = [], []
        for number in range(CANDIDATES):
            say(f"student, candidate {number + 1} of {CANDIDATES}")
            start = noise if number == 0 else unit_noise(len(self.rows), 100 + number)
            drawn = self.world.draft(self.rows, start, STUDENT_STEPS, seed=500 + number)
            pools.append(self._pool(drawn.latents, drawn.nfe, drawn.path))
            latents.append(drawn.latents)
        return pools, latents[0]

    def _pool(self, latents: Tensor, nfe: int, path: Tensor) -> Pool:
        pictures = self.world.pictures(latents)
        gate, quality = (o.score(pictures, self.rows).double().numpy() for o in (self.world.oracle, self.world.judge))
        features = self.world.features(pictures).double().numpy()
        return Pool(gate, quality, features, float(nfe), pictures, path.numpy())

    def by_prompt(self, values: Array) -> Array:
        """Mean over a prompt's seeds."""
        return values.reshape(len(self.prompts), self.seeds).mean(1)


def _steps_below(world: World, rollback: float, nfe: float) -> int:
    """The length of a whole schedule of which about ``nfe`` evaluations are below ``rollback``."""
    from ..networks.preconditioning import karras_sigmas
    from ..samplers.schedules import refine_sigmas
    from ..world.weights import SIGMA_MAX, SIGMA_MIN

    start = SIGMA_MIN ** (1 - rollback) * SIGMA_MAX**rollback
    cost = lambda n: 2 * (len(refine_sigmas(karras_sigmas(n, SIGMA_MIN, SIGMA_MAX), start)) - 1)  # noqa: E731
    return min(range(3, 40), key=lambda n: abs(cost(n) - nfe))


def route(drafts: Pool, teacher: Pool, share: float, keep_better: bool) -> Pool:
    """Algorithm 1 on pictures that are drawn: the worst ``share`` go to the teacher; with ``keep_better`` only better come back.

    A picture is its row in a table of both: S leaves it, T moves it to the teacher's half.
    """
    count = len(drafts.gate)
    rho, rows = torch.from_numpy(np.concatenate([drafts.gate, teacher.gate])), torch.arange(count)
    tau = np.append(np.sort(drafts.gate), np.inf)[round(share * count)]
    result = adaptive_collaboration(
        student=lambda z: z, oracle=lambda x, _: rho[x], teacher=lambda x, _: x + count, z=rows, tau=float(tau),
        strategy=regenerate(rows), margin=0.0 if keep_better else -np.inf,
    )  # fmt: skip
    return drafts.where(result.replaced.numpy(), teacher, drafts.nfe + result.rejected.numpy().mean() * teacher.nfe)


def route_at_random(drafts: Pool, teacher: Pool, share: float, keep_better: bool, seed: int = 0) -> Pool:
    """Likewise, but the oracle has no say in who goes. Quality is the expectation over all routings; features one draw."""
    better = teacher.gate > drafts.gate if keep_better else np.ones(len(drafts.gate), dtype=bool)
    rejected = np.random.default_rng(seed).permutation(len(better)) < round(share * len(better))
    pool = drafts.where(rejected & better, teacher, drafts.nfe + share * teacher.nfe)
    pool.quality = np.where(better, (1 - share) * drafts.quality + share * teacher.quality, drafts.quality)
    return pool


def best_of(drafts: list[Pool], count: int) -> Pool:
    """Of ``count`` drafts, the one that the oracle likes most."""
    best = drafts[0]
    for other in drafts[1:count]:
        best = best.where(other.gate > best.gate, other, best.nfe)
    return replace(best, nfe=count * drafts[0].nfe)


def share_for(budget: float, drafts: Pool, teacher: Pool) -> float:
    """The share that an average of ``budget`` evaluations affords."""
    return min(1.0, max(0.0, (budget - drafts.nfe) / teacher.nfe))


def methods(m: Measured) -> dict[str, Pool]:
    """Every method at the same average cost, as near as whole steps allow."""
    drafts, redrawn, refined = m.drafts[0], m.teacher[TEACHER_STEPS], m.refined[ROLLBACK]
    k, r = share_for(BUDGET, drafts, redrawn), share_for(BUDGET, drafts, refined)
    pools = {"student only": drafts}
    pools |= {f"teacher only, {steps} steps": m.teacher[steps] for steps in TEACHER_CURVE}
    cheap = m.cheap_refined
    pools["refine all"] = drafts.where(np.ones(len(drafts.gate), dtype=bool), cheap, drafts.nfe + cheap.nfe)
    pools |= {
        "random routing, regenerate": route_at_random(drafts, redrawn, k, False),
        "random routing, regenerate, keep better": route_at_random(drafts, redrawn, k, True),
        f"best of {CANDIDATES} drafts": best_of(m.drafts, CANDIDATES),
        "adaptive refine": route(drafts, refined, r, False),
        "adaptive refine, keep better": route(drafts, refined, r, True),
        "adaptive regenerate": route(drafts, redrawn, k, False),
        "adaptive regenerate, keep better": route(drafts, redrawn, k, True),
    }
    return pools


ADAPTIVE, RANDOM = "adaptive regenerate, keep better", "random routing, regenerate, keep better"


def difference(m: Measured, a: Pool, b: Pool) -> Claim:
    """Mean judge score of ``a`` minus that of ``b``."""
    return mean_of(m.by_prompt(a.quality - b.quality))


def mean_of(values: Array, draws: int = 2000) -> Claim:
    """The mean over prompts."""
    return bootstrap(lambda index: float(values[index].mean()), len(values), draws)


def nfe_ratio(m: Measured, adaptive: Pool) -> Claim:
    """Cost of ``adaptive`` over the cost at which the teacher alone is as good, interpolated between its step counts.

    Where the teacher never gets as good, its best counts, and the ratio is an upper bound.
    """
    costs = np.array([m.teacher[s].nfe for s in TEACHER_CURVE])
    curve = np.stack([m.by_prompt(m.teacher[s].quality) for s in TEACHER_CURVE])
    mine = m.by_prompt(adaptive.quality)

    def ratio(index: Array) -> float:
        levels, target = np.maximum.accumulate(curve[:, index].mean(1)), mine[index].mean()
        first = int(np.argmax(levels >= min(target, levels[-1])))
        if first == 0 or target >= levels[-1]:
            return float(adaptive.nfe / costs[first])
        part = (target - levels[first - 1]) / (levels[first] - levels[first - 1])
        return float(adaptive.nfe / (costs[first - 1] + part * (costs[first] - costs[first - 1])))

    return bootstrap(ratio, len(mine))


def frechet_ratio(m: Measured, adaptive: Pool, teacher: Pool) -> Claim:
    """Frechet distance to the real pictures (the judge's features), adaptive over teacher, the bias of few pictures taken off."""
    real = reference()

    def distance(pool: Pool) -> Callable[[Array], float]:
        features = pool.features.reshape(len(m.prompts), m.seeds, -1)
        return lambda index: frechet(features[index].reshape(-1, features.shape[-1]), *real)

    return jackknife_ratio(distance(adaptive), distance(teacher), len(m.prompts))


def diversity(m: Measured, pool: Pool) -> float:
    """Mean of 1 - cosine between the judge's features of two pictures of one prompt; 0 where there is one seed only."""
    return spread(pool.features.reshape(len(m.prompts), m.seeds, -1))


def better_drafts(m: Measured) -> dict[str, Any]:
    """The paper's findings: how often a draft beats the teacher's picture, and on what that depends."""
    draft, teacher = m.drafts[0], m.teacher[TEACHER_STEPS]
    won = (draft.quality > teacher.quality).astype(np.float64)
    distance = (draft.pixels - teacher.pixels).flatten(1).square().mean(1).sqrt().numpy()
    length = np.array([len(p.split()) for p in m.rows])

    def split(values: Array) -> dict[str, float]:
        edges = np.quantile(values, [0.25, 0.5, 0.75])
        group = np.searchsorted(edges, values)
        return {f"quarter {q + 1} (about {values[group == q].mean():.3g})": won[group == q].mean() for q in range(4)}

    words = {f"{n} words": float(won[length == n].mean()) for n in sorted(set(length.tolist())) if (length == n).sum() >= 8}
    return {
        "by distance between draft and teacher (pixel RMS)": split(distance),
        "by length of the prompt": words,
        "by the teacher's trajectory length": split(teacher.path),
    }


def run(quick: bool = False, plot: Path | None = None, say: Callable[[str], None] = print) -> Figures:
    """Measure, print the table and the claims, draw the plot."""
    prompts = [p.text() for p in held_out_prompts()][: 40 if quick else 128]
    m = Measured(prompts, 1 if quick else 2, say)
    table = methods(m)
    mean, covariance = reference()
    figures = Figures("adaptive", {"prompts": len(prompts), "seeds": m.seeds, "student_steps": STUDENT_STEPS,
                                   "teacher_steps": TEACHER_STEPS, "rollback": ROLLBACK, "budget": BUDGET,
                                   "adaptive": ADAPTIVE, "random": RANDOM})  # fmt: skip
    for name, pool in table.items():
        claim = mean_of(m.by_prompt(pool.quality))
        figures.rows.append({
            "method": name, "NFE": round(pool.nfe, 1), "judge": claim.value, "95 %": f"{claim.lo:.2f} to {claim.hi:.2f}",
            "oracle": float(pool.gate.mean()), "Frechet": frechet(pool.features, mean, covariance),
            "diversity": diversity(m, pool),
        })  # fmt: skip
    # The strongest opponent: the teacher's best number of steps within the budget (few-step solvers don't rise evenly).
    equal = max((s for s in TEACHER_CURVE if m.teacher[s].nfe <= BUDGET), key=lambda s: m.teacher[s].quality.mean())
    figures.settings["teacher_steps_at_equal_cost"] = equal
    adaptive, full = table[ADAPTIVE], m.teacher[TEACHER_STEPS]
    won = m.by_prompt((m.drafts[0].quality > full.quality).astype(np.float64))
    figures.claims = {
        "adaptive_minus_random": difference(m, adaptive, table[RANDOM]),
        "adaptive_minus_student": difference(m, adaptive, table["student only"]),
        "adaptive_minus_teacher": difference(m, adaptive, m.teacher[equal]),
        "adaptive_minus_best_of_n": difference(m, adaptive, table[f"best of {CANDIDATES} drafts"]),
        "frechet_ratio_to_teacher": frechet_ratio(m, adaptive, m.teacher[equal]),
        "nfe_ratio_at_equal_quality": nfe_ratio(m, adaptive),
        "share_of_better_drafts": mean_of(won),
    }
    figures.findings = {"share of drafts better than the teacher's": better_drafts(m), "sweeps": sweeps(m)}
    report(figures)
    if plot:
        draw_plot(m, figures, plot)
        say(f"plot: {plot}")
    return figures


def sweeps(m: Measured) -> dict[str, list[dict[str, float]]]:
    """Judge score over the share k sent to the teacher, and over the rollback of a refinement."""
    drafts, redrawn = m.drafts[0], m.teacher[TEACHER_STEPS]

    def points(teacher: Pool, keep: bool) -> list[dict[str, float]]:
        pools = [(k, route(drafts, teacher, k, keep)) for k in SHARES]
        return [{"k": 100 * k, "nfe": p.nfe, "judge": float(p.quality.mean())} for k, p in pools]

    return {
        "regenerate": points(redrawn, False),
        "regenerate, keep better": points(redrawn, True),
        "refine": points(m.refined[ROLLBACK], False),
        "refine, keep better": points(m.refined[ROLLBACK], True),
        "rollback (refine all)": [{"rollback": r, "nfe": drafts.nfe + p.nfe, "judge": float(p.quality.mean())}
                                  for r, p in m.refined.items()],
        "best of n": [{"n": n, "nfe": n * drafts.nfe, "judge": float(best_of(m.drafts, n).quality.mean())}
                      for n in range(1, CANDIDATES + 1)],
    }  # fmt: skip


def report(figures: Figures) -> None:
    """Print the table, the claims and the findings."""
    figures.show()
    print("\nshare of drafts that beat the teacher's picture:")
    for name, parts in figures.findings["share of drafts better than the teacher's"].items():
        print(f"  {name}: " + ", ".join(f"{key}: {value:.2f}" for key, value in parts.items()))


def draw_plot(m: Measured, figures: Figures, path: Path) -> None:
    """Judge score over cost, for every method and sweep."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.5, 5.2), constrained_layout=True)
    curve = [(m.teacher[s].nfe, float(m.teacher[s].quality.mean())) for s in TEACHER_CURVE]
    lines: dict[str, list[tuple[float, float]]] = {"teacher only": curve}
    for key in ("regenerate, keep better", "refine, keep better", "regenerate", "best of n"):
        label = "best of N drafts" if key == "best of n" else f"adaptive {key}"
        lines[label] = [(p["nfe"], p["judge"]) for p in figures.findings["sweeps"][key]]
    styles = {"teacher only": ("k", "s-"), "best of N drafts": ("tab:gray", "d--")}
    for (label, points), colour in zip(lines.items(), ("k", "tab:blue", "tab:green", "tab:cyan", "tab:gray"), strict=True):
        axes.plot(*zip(*points, strict=True), styles.get(label, (colour, "o-"))[1], color=colour, label=label, ms=4)
    drafts, redrawn = m.drafts[0], m.teacher[TEACHER_STEPS]
    pools = [route_at_random(drafts, redrawn, k, True) for k in SHARES]
    axes.plot([p.nfe for p in pools], [p.quality.mean() for p in pools], "r:", label="random routing, keep better")
    axes.axvline(BUDGET, color="0.85", zorder=0)
    axes.text(BUDGET + 0.4, axes.get_ylim()[0], "budget of the table", color="0.5", va="bottom", fontsize=8)
    axes.set(xlabel="network evaluations a picture", ylabel="score by the judge that no gate saw",
             title=f"Adaptive collaboration on {len(m.prompts)} held-out prompts")  # fmt: skip
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
