"""Does the critic teach? A 1-D problem with an exact answer, the tiny world's teacher, and the loop closed with its student.

Tuned by the gate's oracle, everything is measured by the judge, which nobody was tuned by, on prompts that no training showed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from ..networks.tiny_unet import Denoiser, TinyUNet
from ..samplers.schedules import tiny_world_sigmas
from ..training.distill import Settings as SidSettings
from ..training.distill import Task as SidTask
from ..training.distill import distil
from ..training.fdivergence import alpha_for_reward, solve_dual
from ..training.finetune import Settings, finetune
from ..training.loop import Ema, Means, Watch, autocast
from ..training.lora import merge
from ..training.sid import EdmLevels, Players
from ..world.recipe.concepts import held_out_prompts, training_prompts
from ..world.weights import DEFAULT_STUDENT, load_unet
from . import control_toy as toy
from .adaptive import TEACHER_STEPS, Pool, mean_of, route, share_for
from .control_world import SHAPE, TUNED, Measured, Tuned, by_teacher, mean_by_prompt, measure
from .figures import Array, Claim, Figures, bootstrap, mean_of_seeds, print_table
from .world import World, unit_noise

matplotlib.use("Agg")

ALPHA, BUDGET, GUIDANCE = 0.5, 12.0, 1.5  # of the toy; evaluations a picture of the loop; of the tuned teacher in SiD
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    alpha: float
    updates: int
    others: int  # updates of the ways that it is compared with
    batch: int
    distilled: int  # pictures that the student draws while it learns from the tuned teacher
    prompts: int
    seeds: int

    @classmethod
    def of(cls, quick: bool) -> Plan:
        """The whole plan, or a few minutes of it."""
        if quick:
            return cls(0.5, 4, 4, 4, 64, 12, 2)
        return cls(0.5, 200, 50, 12, 6400, 120, 4)


# ------------------------------------------------------------------------------------------------------------- toy


def run_toy(quick: bool, plot: Path, say: Say) -> Figures:
    """Adjoint Matching on the mixture against the exact law; the plot shows exact laws of all divergences."""
    seeds, updates = (1, 300) if quick else (3, 2000)
    figures = Figures("control-toy", {"alpha": ALPHA, "seeds": seeds, "updates": updates})
    for name in ("kl", "half_chi2"):
        found: dict[str, list[float]] = {"W1": [], "P(x>0)": [], "E r": [], "CPU seconds": []}
        for seed in range(seeds):
            outcome = toy.solve(ALPHA, name, updates=updates, seed=seed)
            x = outcome.samples
            values = (toy.wasserstein(x, ALPHA, name), float((x > 0).float().mean()), float(toy.reward(x[:, None]).mean()))
            for key, value in zip(found, (*values, outcome.seconds), strict=True):
                found[key].append(value)
            say(f"toy, {name}, seed {seed}: W1 {values[0]:.4f} in {outcome.seconds:.0f} CPU seconds")
        exact = toy.exact_quantiles(ALPHA, name, 50_000).float()
        truth = {"P(x>0)": float((exact > 0).float().mean()), "E r": float(toy.reward(exact[:, None]).mean())}
        row: dict[str, Any] = {"divergence": name, "seeds": seeds}
        for key, values_of in found.items():
            row[key] = str(mean_of_seeds(values_of)) + (f" (exact {truth[key]:.3f})" if key in truth else "")
        figures.rows.append(row)
        if name == "kl":
            figures.claims["toy_w1"], figures.claims["toy_cpu_seconds"] = (
                mean_of_seeds(found[key]) for key in ("W1", "CPU seconds")
            )
    figures.findings["frontier"] = toy_frontier()
    print_table(figures.rows)
    for name, claim in figures.claims.items():
        print(f"{name}: {claim}")
    draw_toy(figures.findings["frontier"], plot)
    return figures


def toy_frontier() -> dict[str, list[tuple[float, float]]]:
    """Reward and spread of the exact laws: over alpha for each divergence, at equal rewards."""
    x = torch.linspace(-6, 6, 24_001, dtype=torch.float64)
    variance = toy.STDS.double() ** 2
    p = (toy.WEIGHTS.double() / variance.sqrt() * torch.exp(-((x[:, None] - toy.MEANS) ** 2) / (2 * variance))).sum(1)
    p, r = p / p.sum(), toy.reward(x[:, None])
    # On samples that are alike, so that strengths can be found by their target.
    samples = x[torch.searchsorted(p.cumsum(0), (torch.arange(800, dtype=torch.float64) + 0.5) / 800).clamp(max=len(x) - 1)]
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in ("kl", "half_chi2", "forward_kl", "js2", "jeffreys"):
        for target in np.linspace(0.3, 0.95, 14):
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
    """How the teacher is tuned: as it should be, and two others."""
    own = Settings(
        value=plan.alpha, updates=plan.updates, batch=plan.batch, base_draws=2, learning_rate=1e-3, count=6, last=2,
        ema_half_life=500,
    )  # fmt: skip
    return {
        f"adjoint matching, alpha {plan.alpha:g}": own,
        "weighted regression, the same alpha": replace(own, algorithm="weighted_regression", base_draws=16, pool=16, rounds=2),
        "no price": replace(own, algorithm="path_kl", value=1e-3, updates=plan.others),
    }


def tune(tuned: Tuned, name: str, settings: Settings, folder: Path, say: Say, prompts_along: int) -> list[dict[str, Any]]:
    """Tune the teacher by the gate's oracle, on training prompts; the LoRA holds the moving average.

    Returns:
        What both judges say of a few held-out prompts at five points along the run.
    """
    along: list[dict[str, Any]] = []

    def after_step(step: int, _ema: Ema) -> None:
        if step % max(settings.updates // 5, 1) == 0:
            along.append({"update": step, **row_of(name, measure(tuned.world, by_teacher(tuned, TUNED), prompts_along, 2))})

    prompts = [p.text() for p in training_prompts(64, seed=3)]

    def report(step: int, _pictures: int, means: Means) -> None:
        say(f"{name}, update {step}: reward {means['reward']:.2f}, KL {means['kl']:.2f}")

    task = tuned.task(prompts, tuned.world.oracle)
    ema, _known = finetune(task, settings, folder / name, watch=Watch(report, 20, after_step=after_step), save_every=10**6)
    tuned.lora.load_state_dict(ema.shadow)
    return along


def merged(tuned: Tuned) -> TinyUNet:
    """The tuned teacher as a network of its own."""
    network = load_unet("teacher")
    merge(network, tuned.lora)
    return network


def row_of(name: str, m: Measured) -> dict[str, Any]:
    """For the table."""
    oracle, judge = m.score(False), m.score(True)
    rest = {"diversity": round(m.diversity(), 4), "Frechet": round(m.frechet(), 4)}
    return {"law": name, "oracle": str(oracle), "judge": str(judge), **rest}


def against(before: Measured, after: Measured) -> dict[str, Claim]:
    """What tuning changed, with intervals by prompts."""
    return {
        "reward_gain": mean_by_prompt(after.oracle - before.oracle),
        "unseen_judge_gain": mean_by_prompt(after.judge - before.judge),
        "diversity_ratio": bootstrap(lambda i: after.diversity(i) / before.diversity(i), len(before.oracle), 400),
    }


# ------------------------------------------------------------------------------------------------------------ loop


def redistil(world: World, teacher: TinyUNet, pictures: int, folder: Path, say: Say) -> TinyUNet:
    """The one-step student against the tuned teacher, by SiD at all noise levels, from the old student on."""
    generator, fake = load_unet(f"student_{DEFAULT_STUDENT}"), load_unet("teacher")
    prompts = [p.text() for p in training_prompts(512, seed=4)]
    with torch.no_grad():
        contexts, empty = world.context(prompts), world.context([""])

    def denoiser(network: TinyUNet) -> Callable[[Tensor, Tensor, Any], Tensor]:
        around = Denoiser(network)

        def denoise(x: Tensor, sigma: Tensor, context: Any) -> Tensor:
            with autocast():
                denoised: Tensor = around(x, sigma.flatten(), context)
            return denoised.float()

        return denoise

    for network in (generator, fake):
        network.requires_grad_(True)
    players = Players(
        denoiser(teacher), denoiser(fake), denoiser(generator), list(fake.parameters()), list(generator.parameters())
    )

    def labels(rng: torch.Generator, batch: int) -> tuple[Any, Any]:
        return contexts[torch.randint(len(prompts), (batch,), generator=rng)], empty.expand(batch, -1, -1)

    settings = SidSettings(
        pictures=pictures, batch=32, generator_rate=3e-5, fake_rate=3e-4, alpha=1.0, kappa4=GUIDANCE, steps=2,
        generator_scale=1.0, ema_half_life=1500, ema_rampup=0.3, warmup=0.05, delay=0.12,
    )  # fmt: skip
    task = SidTask(
        players, generator, fake, SHAPE, labels, lambda steps: tuple(tiny_world_sigmas(steps)), EdmLevels(p_mean=-0.4, p_std=1.2)
    )
    watch = Watch(lambda step, _p, means: say(f"SiD {step}: {means['generator']:.4g}"), 25)
    ema = distil(task, settings, folder / "sid.pt", watch=watch, save_every=10**6)
    generator.load_state_dict(ema.shadow)
    return generator.eval().requires_grad_(False)


def loop(world: World, after: TinyUNet, prompts: int) -> tuple[list[dict[str, Any]], dict[str, Claim]]:
    """Adaptive collaboration with the old student and the new one: the same threshold, then the same cost."""
    words, noise = [p.text() for p in held_out_prompts()[:prompts]], unit_noise(prompts, 21)

    def pool(latents: Tensor, nfe: int) -> Pool:
        pictures = world.pictures(latents)
        gate, quality = (o.score(pictures, words).double().numpy() for o in (world.oracle, world.judge))
        return Pool(gate, quality, np.zeros((len(words), 1)), nfe, pictures, gate)

    redrawn = world.redraw(words, noise, TEACHER_STEPS)
    teacher, world._students["taught"] = pool(redrawn.latents, redrawn.nfe), Denoiser(after)
    drafts = {
        name: pool(world.draft(words, noise, 2, seed=31, student=student).latents, 2)
        for name, student in (("before", DEFAULT_STUDENT), ("after", "taught"))
    }
    threshold = float(np.median(drafts["before"].gate))
    rows, share = [], share_for(BUDGET, drafts["before"], teacher)
    routed = {name: route(found, teacher, share, keep_better=True) for name, found in drafts.items()}
    for name, found in drafts.items():
        rows.append({
            "student": name, "its own score (judge)": round(float(found.quality.mean()), 3),
            "rejected at the old median": f"{float((found.gate < threshold).mean()):.0%}",
            f"adaptive, {BUDGET:g} evaluations (judge)": round(float(routed[name].quality.mean()), 3),
        })  # fmt: skip
    rejected: dict[str, Array] = {name: (found.gate < threshold).astype(np.float64) for name, found in drafts.items()}
    return rows, {
        "loop_quality_gain": mean_of(routed["after"].quality - routed["before"].quality),
        "loop_reject_share_change": mean_of(rejected["after"] - rejected["before"]),
    }


# ------------------------------------------------------------------------------------------------------------- run


def run(quick: bool, plot: Path, say: Say) -> Figures:
    """Tune the tiny world's teacher, measure it, close the loop; the plot shows the laws.

    Raises:
        FileNotFoundError: The tiny world's weights are not there.
    """
    plan = Plan.of(quick)
    figures = Figures("control", {"plan": vars(plan)})
    world, laws = World(), list[tuple[str, Measured]]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        networks = []
        for name, settings in ways(plan).items():
            tuned = Tuned(World(), 16, 0)
            if not laws:
                laws.append(("the teacher", measure(world, by_teacher(tuned, None), plan.prompts, plan.seeds)))
            figures.findings[f"along {name}"] = tune(tuned, name, settings, folder, say, plan.prompts // 3)
            laws.append((name, measure(world, by_teacher(tuned, TUNED), plan.prompts, plan.seeds)))
            networks.append(merged(tuned))
        figures.rows = [row_of(*law) for law in laws]
        print_table(figures.rows)
        figures.claims |= against(laws[0][1], laws[1][1])
        after = redistil(world, networks[0], plan.distilled, folder, say)
    table, claims = loop(world, after, plan.prompts * 2)
    figures.findings["loop"] = table
    figures.claims |= claims
    print_table(table)
    for name, claim in figures.claims.items():
        print(f"{name}: {claim}")
    draw(laws, plot)
    return figures


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


def draw(laws: list[tuple[str, Measured]], path: Path) -> None:
    """Each law by the score of either judge, and by its variety."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, judge in zip(axes, (False, True), strict=True):
        for name, m in laws:
            claim = m.score(judge)
            bars = [[claim.value - claim.lo], [claim.hi - claim.value]]
            axis.errorbar(claim.value, m.diversity(), xerr=bars, fmt="o", capsize=3, label=name)
        axis.set(xlabel="score of the judge that nobody was tuned by" if judge else "score of the oracle that tuned")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("diversity")
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
