"""Does the critic teach? A 1-D problem with an exact answer, the tiny world's teacher, and the loop closed with its student.

Tuned by the gate's oracle, everything is measured by the judge, which nobody was tuned by, on prompts that no training showed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from ..files import write_atomically
from ..networks.tiny_unet import TinyUNet
from ..training.fdivergence import alpha_for_reward, solve_dual
from ..training.finetune import finetune
from ..training.finetune_task import Settings
from ..training.loop import Means, Watch
from ..training.lora import merge
from ..world.recipe.concepts import training_prompts
from ..world.recipe.sampling import World
from ..world.weights import DEFAULT_STUDENT, load_unet
from . import control_toy as toy
from .control_loop import loop, redistil
from .control_start import start_laws
from .control_world import (
    TUNED,
    Measured,
    Tuned,
    against,
    black_box_claims,
    drawn_by,
    evaluations,
    exact_laws,
    kept_run,
    measure,
    point_of,
    row_of,
)
from .figures import Figures, mean_of_seeds, print_claims, print_table

matplotlib.use("Agg")

ALPHA = 0.5  # of the toy, and of the tiny world's main run
BLACK_BOX = f"DiffusionNFT, scores alone, alpha {ALPHA:g}"
PATH = f"path KL, alpha {ALPHA:g}"  # whose teacher the student is distilled from again
SCORES = "forward_kl, from scores alone"
DIVERGENCES = ("kl", "half_chi2", "forward_kl", "js2", "jeffreys")
DASHES = ("solid", "dotted", "dashed", "dashdot", (0, (6, 1)))  # of their lines
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    updates: int  # of adjoint matching, and of weighted regression
    scored: int  # of DiffusionNFT: as many evaluations as path_kl takes, see ``evaluations``
    others: int  # updates of path_kl with all its prices, which learns faster in each, and of the student
    batch: int
    trained: int  # prompts that are tuned on
    pool: int  # pictures a prompt of weighted regression's rounds
    distilled: int  # pictures that the student draws while it learns from the tuned teacher
    prompts: int
    seeds: int
    weighed: int  # pictures a prompt, of a quarter of the prompts, from which the optimal laws are computed
    looped: int  # prompts of the loop

    @classmethod
    def of(cls, quick: bool) -> Plan:
        """The whole plan, or a few minutes of it."""
        if quick:
            return cls(4, 4, 4, 4, 16, 4, 64, 12, 2, 8, 24)
        return cls(200, 168, 160, 12, 256, 16, 8000, 120, 4, 64, 480)


# ------------------------------------------------------------------------------------------------------------- toy


def run_toy(quick: bool, plot: Path, say: Say) -> Figures:
    """Adjoint Matching, and DiffusionNFT, on the mixture against the exact law; the plot shows exact laws of all divergences."""
    seeds, updates = (1, 300) if quick else (3, 2000)
    figures = Figures("control-toy", {"alpha": ALPHA, "seeds": seeds, "updates": updates})
    for name in ("kl", "half_chi2", SCORES):
        measures: dict[str, list[float]] = {"W1": [], "P(x>0)": [], "E r": [], "CPU seconds": []}
        law = "forward_kl" if name == SCORES else name
        for seed in range(seeds):
            if name == SCORES:
                outcome = toy.solve_by_scores(ALPHA, updates=updates * 3 // 5, seed=seed)
            else:
                outcome = toy.solve(ALPHA, name, updates=updates, seed=seed)
            x = outcome.samples
            values = (toy.wasserstein(x, ALPHA, law), float((x > 0).float().mean()), float(toy.reward(x[:, None]).mean()))
            for key, value in zip(measures, (*values, outcome.seconds), strict=True):
                measures[key].append(value)
            say(f"toy, {name}, seed {seed}: W1 {values[0]:.4f} in {outcome.seconds:.0f} CPU seconds")
        exact = toy.exact_quantiles(ALPHA, law, 50_000).float()
        truth = {"P(x>0)": float((exact > 0).float().mean()), "E r": float(toy.reward(exact[:, None]).mean())}
        row: dict[str, Any] = {"divergence": name, "seeds": seeds}
        for key, values_of in measures.items():
            row[key] = str(mean_of_seeds(values_of)) + (f" (exact {truth[key]:.3f})" if key in truth else "")
        figures.rows.append(row)
        if name == SCORES:
            figures.claims["blackbox_toy_w1"] = mean_of_seeds(measures["W1"])
        if name == "kl":
            figures.claims["toy_w1"], figures.claims["toy_cpu_seconds"] = (
                mean_of_seeds(measures[key]) for key in ("W1", "CPU seconds")
            )
    figures.findings["frontier"] = toy_frontier()
    print_table(figures.rows)
    print_claims(figures.claims)
    draw_toy(figures.findings["frontier"], plot)
    return figures


def toy_frontier(points: int = 14) -> dict[str, list[tuple[float, float]]]:
    """Reward and spread of the exact laws: over alpha for each divergence, at equal rewards, ``points`` at most."""
    x = torch.linspace(-6, 6, 24_001, dtype=torch.float64)
    variance = toy.STDS.double() ** 2
    p = (toy.WEIGHTS.double() / variance.sqrt() * torch.exp(-((x[:, None] - toy.MEANS) ** 2) / (2 * variance))).sum(1)
    p, r = p / p.sum(), toy.reward(x[:, None])
    # On samples that are alike, so that strengths can be found by their target.
    samples = x[torch.searchsorted(p.cumsum(0), (torch.arange(800, dtype=torch.float64) + 0.5) / 800).clamp(max=len(x) - 1)]
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in DIVERGENCES:
        for target in np.linspace(0.3, 0.95, points):
            try:
                alpha = alpha_for_reward(toy.reward(samples[:, None]), float(target), name)
                q = p * solve_dual(r, alpha, name, p, bound=1.0).weights
            except ValueError:
                continue
            mean = float(q @ x)
            lines.setdefault(name, []).append((float(q @ r), float((q @ (x - mean) ** 2).sqrt())))
    return lines


# ----------------------------------------------------------------------------------------------------------- world


def ways(plan: Plan) -> dict[str, Settings]:
    """How the teacher is tuned: as it should be, by the same law's other algorithm at several prices, and by weights."""
    adjoint = Settings(
        value=ALPHA, updates=plan.updates, batch=plan.batch, base_draws=2, learning_rate=1e-3, count=6, last=2, ema_half_life=500
    )
    path = replace(adjoint, algorithm="path_kl", updates=plan.others)
    weighted = Settings(
        algorithm="weighted_regression", strength="target reward gain", value=1.0, updates=plan.updates, batch=4 * plan.batch,
        learning_rate=1e-3, base_draws=plan.pool, pool=plan.pool, rounds=2, ema_half_life=2000,
    )  # fmt: skip
    return {
        f"adjoint matching, alpha {ALPHA:g}": adjoint,
        PATH: replace(path, value=ALPHA),
        f"path KL, alpha {4 * ALPHA:g}": replace(path, value=4 * ALPHA),
        "path KL, no price, twice the rate": replace(path, value=1e-3, learning_rate=2 * path.learning_rate),
        "weighted regression, gain 1": weighted,
        BLACK_BOX: replace(
            adjoint, algorithm="diffusion_nft", updates=plan.scored, batch=4 * plan.batch, count=2, learning_rate=5e-4
        ),
    }


def student_ways(plan: Plan) -> dict[str, Settings]:
    """How the student is tuned in its one step."""
    direct = Settings(
        algorithm="direct", value=0.1, updates=plan.others, batch=2 * plan.batch, base_draws=2, learning_rate=1e-3,
        ema_half_life=500,
    )  # fmt: skip
    return {f"student, direct, alpha {direct.value:g}": direct, "student, direct, no price": replace(direct, value=1e-6)}


def tune(
    tuned: Tuned, name: str, settings: Settings, folder: Path, say: Say, trained: int, prompts_along: int
) -> list[dict[str, Any]]:
    """Tune by the gate's oracle, on training prompts; the LoRA holds the moving average. A run that is there goes on.

    Returns:
        What both judges say of a few held-out prompts at the start and at five points along the run.

    Raises:
        ValueError: ``folder`` holds a run of this name with other settings.
    """
    run = kept_run(folder / name, settings, trained=trained)
    file = run.path / "along.json"
    along: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

    def look(step: int) -> None:
        pools = measure(tuned.world, drawn_by(tuned, TUNED if step else None), prompts_along, 2)
        along[:] = [entry for entry in along if entry["update"] < step] + [{"update": step, **point_of(pools)}]
        write_atomically(file, lambda part: part.write_text(json.dumps(along), encoding="utf-8"))

    def after_step(step: int, _average: Any) -> None:
        if step % max(settings.updates // 5, 1) == 0:
            look(step)

    def report(step: int, _pictures: int, means: Means) -> None:
        say(f"{name}, update {step}: reward {means['reward']:.2f}, KL {means['kl']:.2f}")

    if not along:
        look(0)
    task = tuned.task([p.text() for p in training_prompts(trained, seed=3)], tuned.world.oracle)
    ema, _known = finetune(
        task, settings, run, watch=Watch(report, 20, after_step=after_step), save_every=max(settings.updates // 5, 1)
    )
    tuned.lora.load_state_dict(ema.shadow)
    return along


def merged(tuned: Tuned, student: bool = False) -> TinyUNet:
    """The tuned network as one of its own."""
    network = load_unet(f"student_{DEFAULT_STUDENT}" if student else "teacher")
    merge(network, tuned.lora)
    return network


# ------------------------------------------------------------------------------------------------------------- run


def run(quick: bool, plot: Path, say: Say, work: Path | None = None) -> Figures:
    """Tune the tiny world's teacher and student, measure them, close the loop; the plots show laws, and runs along their way.

    Args:
        plot: Of the laws; beside it, with ``-along`` in its name, that of the runs.
        work: Where runs are kept, and gone on with when they were stopped; None for a folder that is gone afterwards.

    Raises:
        FileNotFoundError: The tiny world's weights are not there.
        ValueError: ``work`` holds runs with other settings.
    """
    plan, world = Plan.of(quick), World()
    figures = Figures("control", {"plan": vars(plan)})
    figures.findings["optimal"] = optimal(world, plan, say)
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        teacher = tune_all(figures, plan, False, PATH, folder, say)
        student = tune_all(figures, plan, True, next(iter(student_ways(plan))), folder, say)
        print_table(figures.rows)
        again = redistil(world, teacher, plan.distilled, folder, say)
    starts, claims = start_laws(world, plan.prompts, plan.seeds, say)
    figures.findings["start"] = starts
    figures.claims |= claims
    print_table(starts)
    table, claims = loop(world, {"distilled again from the tuned teacher": again, "tuned directly": student}, plan.looped)
    figures.findings["loop"] = table
    figures.claims |= claims
    print_table(table)
    print_claims(figures.claims)
    draw(figures, plot)
    draw_along(figures, plot.with_name(f"{plot.stem}-along{plot.suffix}"))
    return figures


def optimal(world: World, plan: Plan, say: Say) -> dict[str, Any]:
    """The optimal laws of every divergence at equal gains, by weighing many of the teacher's own pictures."""
    say("the optimal laws, by weighing the teacher's own pictures")
    base = measure(world, drawn_by(Tuned(World(), 16, 0), None), max(plan.prompts // 4, 2), plan.weighed)
    return {"start": point_of(base), "laws": exact_laws(base, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5), DIVERGENCES)}


def tune_all(figures: Figures, plan: Plan, of_student: bool, wanted: str, folder: Path, say: Say) -> TinyUNet:
    """Tune the teacher or the student in every way; rows, findings, claims of the first way. The network of ``wanted``."""
    network, found, prefix = None, dict[str, Measured](), "student_" if of_student else ""
    for name, settings in (student_ways if of_student else ways)(plan).items():
        tuned = Tuned(World(), 16, 0, of_student)
        if not found:
            before = measure(tuned.world, drawn_by(tuned, None), plan.prompts, plan.seeds)
            same = row_of("the student, one step" if of_student else "the teacher", before, against(before, before))
            figures.rows.append({**same, "evaluations": 0})
        figures.findings[f"along {name}"] = tune(tuned, name, settings, folder, say, plan.trained, plan.prompts // 3)
        found[name] = after = measure(tuned.world, drawn_by(tuned, TUNED), plan.prompts, plan.seeds)
        changed, spent = against(before, after), evaluations(settings, plan.trained, tuned.process.steps)
        figures.rows.append({**row_of(name, after, changed), "evaluations": spent})
        if len(found) == 1:
            figures.claims |= {prefix + claim: value for claim, value in changed.items()}
        if name == wanted:
            network = merged(tuned, of_student)
    if BLACK_BOX in found:
        figures.claims |= black_box_claims(before, found[PATH], found[BLACK_BOX])
    assert network is not None
    return network


def draw_toy(frontier: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Spread over reward for each divergence."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for name, points in frontier.items():
        axis.plot(*zip(*points, strict=True), "o-", markersize=3, label=name)
    axis.set(title="1-D mixture, exact laws", xlabel="mean reward", ylabel="standard deviation")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def runs_of(figures: Figures) -> dict[str, list[dict[str, Any]]]:
    """The runs along their way, by name."""
    return {name.removeprefix("along "): points for name, points in figures.findings.items() if name.startswith("along ")}


def draw(figures: Figures, path: Path) -> None:
    """Variety over the score of either judge: the optimal laws, and every run on its way from the network as it was."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5.4), sharey=True, layout="constrained")
    start = figures.findings["optimal"]["start"]
    for axis, judge in zip(axes, ("oracle", "judge"), strict=True):
        for (name, laws), dashes in zip(figures.findings["optimal"]["laws"].items(), DASHES, strict=False):
            at = [0.0, *(law[judge] - start[judge] for law in laws)]
            diversity = [1.0, *(law["diversity"] / start["diversity"] for law in laws)]
            axis.plot(at, diversity, linestyle=dashes, color="0.3", linewidth=1.2, label=f"optimal law, {name}")
        for number, (name, points) in enumerate(runs_of(figures).items()):
            first, style = points[0], "s--" if name.startswith("student") else "o-"
            at, diversity = ([p[judge] - first[judge] for p in points], [p["diversity"] / first["diversity"] for p in points])
            axis.plot(at, diversity, style, color=f"C{number}", markersize=4, label=name)
        axis.set(xlabel="gain with the judge that nobody was tuned by" if judge == "judge" else "gain with the oracle that tuned")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("variety, in parts of what it was")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_along(figures: Figures, path: Path) -> None:
    """Both judges, variety and distance along each run."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 4.2), layout="constrained")
    titles = {"oracle": "oracle that tuned", "judge": "unseen judge", "diversity": "variety", "Frechet": "Frechet distance"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for number, (name, points) in enumerate(runs_of(figures).items()):
            style = "s--" if name.startswith("student") else "o-"
            values = [p[key] for p in points]
            axis.plot([p["update"] for p in points], values, style, color=f"C{number}", markersize=4, label=name)
        axis.set(title=title, xlabel="updates")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
