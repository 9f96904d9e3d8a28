"""Does a one-step student of SiD draw as well as its teacher? Measured on the tiny world, on prompts that training never showed.

The Frechet distance is that between the judge's features of drawn and of real pictures: the judge is the tiny world's own
CLIP, not the Inception of published FIDs, so these distances compare only with each other, and only at one number of
pictures. Teacher and students draw from the same noise. Intervals are by prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..world.recipe.concepts import held_out_prompts
from ..world.recipe.frechet import frechet, reference
from ..world.recipe.sampling import Drawn, World, unit_noise
from ..world.weights import DEFAULT_STUDENT, FOLDER, GUIDANCE, read
from .figures import Array, Claim, Figures, bootstrap, spread

STUDENT = "sid"
TEACHER_STEPS = (4, 5, 7, 9, 12, 16, 24)
GUIDANCES = (GUIDANCE, 1.5)  # what samplers use, and what SiD was trained against (world/recipe/sid.py)
STUDENT_STEPS = (1, 2)
PROMPTS, SEEDS = 256, 2
CURVE = FOLDER.parent / "sid_curve.json"
CURVE_PROMPTS, CURVE_SEED = 256, 5  # of the points of the curve, as the recipe draws them
FEATURES = "the tiny world's judge (a CLIP of its own; not Inception)"

# -------------------------------------------------------------------------------------------------- measuring


@dataclass
class Pool:
    """What one way of drawing made of every prompt and seed.

    Attributes:
        name: Of the network.
        steps: Of the sampler.
        nfe: Network evaluations a picture.
        quality: The judge's scores [prompts, seeds].
        features: The judge's unit features [prompts, seeds, D].
        guidance: Of the teacher; 0 for students, which have none.
    """

    name: str
    steps: int
    nfe: int
    quality: Array
    features: Array
    guidance: float = 0.0

    @property
    def label(self) -> str:
        """Name and steps in words."""
        return f"{self.name}, {self.steps} step{'s' if self.steps > 1 else ''}"

    def distance(self, real: tuple[Array, Array], index: Array | slice = slice(None)) -> float:
        """Frechet distance of the pictures of the prompts ``index`` to the real ones' mean and covariance."""
        return frechet(self.features[index].reshape(-1, self.features.shape[-1]), *real)

    def spread(self, index: Array | slice = slice(None)) -> float:
        """Diversity as in ``adaptive.diversity``: mean of 1 - cosine between two pictures of one prompt."""
        return spread(self.features[index])

    def first_seed(self) -> Pool:
        """The pictures that come from the curve's noise."""
        return Pool(self.name, self.steps, self.nfe, self.quality[:, :1], self.features[:, :1], self.guidance)


def starting_noise(prompts: int, seeds: int) -> Tensor:
    """Noise [prompts * seeds, 32, 8, 8], a prompt's seeds side by side; the first seed is that of the curve's points."""
    curve = torch.randn(CURVE_PROMPTS, 32, 8, 8, generator=torch.Generator().manual_seed(CURVE_SEED))
    return torch.stack([curve[:prompts], *(unit_noise(prompts, seed) for seed in range(1, seeds))], dim=1).flatten(0, 1)


def pool_of(world: World, prompts: list[str], name: str, steps: int, drawn: Drawn, guidance: float = 0.0) -> Pool:
    """What was drawn of ``prompts``, a prompt's seeds side by side, judged and seen by the judge."""
    pictures = world.pictures(drawn.latents)
    rows = [prompt for prompt in prompts for _ in range(len(pictures) // len(prompts))]
    quality = world.judge.score(pictures, rows).double().numpy().reshape(len(prompts), -1)
    features = world.features(pictures).double().numpy().reshape(*quality.shape, -1)
    return Pool(name, steps, drawn.nfe, quality, features, guidance)


def students_pools(world: World, prompts: list[str], noise: Tensor, name: str) -> list[Pool]:
    """A student's pictures in one step and in two."""
    rows = [prompt for prompt in prompts for _ in range(len(noise) // len(prompts))]
    return [
        pool_of(world, prompts, name, steps, world.draft(rows, noise, steps, seed=500, student=name)) for steps in STUDENT_STEPS
    ]


def teachers_pools(
    world: World, prompts: list[str], noise: Tensor, teacher_steps: Sequence[int], say: Callable[[str], None]
) -> list[Pool]:
    """The teacher's, at every number of steps and both guidances."""
    rows, pools = [prompt for prompt in prompts for _ in range(len(noise) // len(prompts))], []
    for guidance in GUIDANCES:
        for steps in teacher_steps:
            say(f"teacher, steps: {steps}, guidance {guidance:g}")
            pools.append(pool_of(world, prompts, "teacher", steps, world.redraw(rows, noise, steps, guidance), guidance))
    return pools


def measure(
    prompts: list[str], seeds: int, teacher_steps: Sequence[int], student: str, say: Callable[[str], None]
) -> list[Pool]:
    """Draw and judge every prompt with the students, then with the teacher at every number of steps and guidance."""
    world, noise, pools = World(), starting_noise(len(prompts), seeds), list[Pool]()
    world.student(student)  # a missing file is best said before the teacher's long work
    for name in dict.fromkeys((DEFAULT_STUDENT, student)):
        say(f"student {name}")
        pools += students_pools(world, prompts, noise, name)
    return pools + teachers_pools(world, prompts, noise, teacher_steps, say)


# ------------------------------------------------------------------------------------------------------ claims


def best_teacher(pools: Sequence[Pool], real: tuple[Array, Array]) -> Pool:
    """The teacher with the least distance, of all numbers of steps and both guidances: the strictest opponent."""
    return min((p for p in pools if p.name == "teacher"), key=lambda p: p.distance(real))


def claims(student: Pool, teacher: Pool, real: tuple[Array, Array], draws: int = 2000) -> dict[str, Claim]:
    """Student against teacher: the ratio of distances, the difference of scores, the ratio of diversities.

    Both sides of a ratio come from the same prompts.
    """
    count = len(student.quality)
    gain = (student.quality - teacher.quality).mean(1)
    return {
        "sid_frechet_ratio": jackknife(lambda i: student.distance(real, i) / teacher.distance(real, i), count),
        "sid_judge_difference": bootstrap(lambda i: float(gain[i].mean()), count, draws),
        "sid_diversity_ratio": bootstrap(lambda i: student.spread(i) / teacher.spread(i), count, draws),
    }


def jackknife(statistic: Callable[[Array], float], units: int) -> Claim:
    """``statistic(indices)`` of all units (prompts), with its 95 % interval by leaving out one at a time.

    For distances, where the bootstrap is wrong: a Frechet distance grows as pictures get fewer, and a resample holds only
    63 % of them and some twice, so that its distances lie far above the one that they should surround.
    """
    everything = np.arange(units)
    value = statistic(everything)
    without = np.array([statistic(np.delete(everything, unit)) for unit in everything])
    error = float(np.sqrt((units - 1) / units * ((without - without.mean()) ** 2).sum()))
    return Claim(value, value - 1.96 * error, value + 1.96 * error)


def row(pool: Pool, real: tuple[Array, Array]) -> dict[str, Any]:
    """One line of the table."""
    scores = pool.quality.mean(1)
    judge = bootstrap(lambda i: float(scores[i].mean()), len(scores))
    return {
        "network": pool.name, "steps": pool.steps, "guidance": pool.guidance or "-", "NFE": pool.nfe,
        "Frechet": round(pool.distance(real), 5), "judge": judge.value, "95 %": f"{judge.lo:.2f} to {judge.hi:.2f}",
        "diversity": pool.spread(),
    }  # fmt: skip


def read_curve(path: Path = CURVE) -> list[dict[str, float]]:
    """Distance and score over pictures seen, as the recipe wrote them down; empty where it did not."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def levels(pools: Sequence[Pool], real: tuple[Array, Array]) -> list[dict[str, Any]]:
    """What the curve compares with: the teacher at each number of steps and the consistency student, as its points are made.

    A distance depends on the number of pictures; so at another number than the curve's there is nothing to compare.
    """
    if len(pools[0].quality) != CURVE_PROMPTS:
        return []
    points = []
    for pool in pools:
        if pool.guidance == GUIDANCE or (pool.name == DEFAULT_STUDENT and pool.steps == 1):
            one = pool.first_seed()
            points.append({"network": pool.label, "frechet": one.distance(real), "judge": float(one.quality.mean())})
    return points


# --------------------------------------------------------------------------------------------------------- all


def run(
    quick: bool = False, plot: Path | None = None, say: Callable[[str], None] = print, student: str = STUDENT
) -> Figures:
    """Measure, print the table and the claims, draw the plot.

    Raises:
        FileNotFoundError: The student's weights are not there.
    """
    prompts = [p.text() for p in held_out_prompts()][: 64 if quick else PROMPTS]
    pools = measure(prompts, SEEDS, TEACHER_STEPS[::2] if quick else TEACHER_STEPS, student, say)
    figures = compare(pools, reference(), student)
    figures.show()
    if plot:
        if not figures.findings["curve"]:
            say(f"{CURVE.name} is missing, so there is no curve over pictures seen; the recipe's stage 'sid' records it.")
        draw_plot(figures, plot)
        say(f"plot: {plot}")
    return figures


def compare(pools: Sequence[Pool], real: tuple[Array, Array], student: str) -> Figures:
    """Table, claims, and all that the plot shows."""
    teacher = best_teacher(pools, real)
    one, two = ({p.name: p for p in pools if p.name != "teacher" and p.steps == steps} for steps in STUDENT_STEPS)
    figures = Figures("sid", {
        "prompts": len(teacher.quality), "seeds": teacher.quality.shape[1], "student": student, "features": FEATURES,
        "teacher_steps": teacher.steps, "teacher_guidance": teacher.guidance, "student_card": read(f"student_{student}")[1],
    })  # fmt: skip
    figures.rows = [row(pool, real) for pool in pools]
    figures.claims = claims(one[student], teacher, real)
    figures.claims |= {f"{name}_2_steps": claim for name, claim in claims(two[student], teacher, real).items()}
    figures.findings = {"curve": read_curve(), "beside the curve": levels(pools, real)}
    if student != DEFAULT_STUDENT:
        figures.findings["against the consistency student, both in one step"] = claims(one[student], one[DEFAULT_STUDENT], real)
    return figures


# -------------------------------------------------------------------------------------------------------- plot

TEACHER_COLOURS = ("tab:blue", "tab:cyan")
STUDENT_COLOURS = {DEFAULT_STUDENT: "tab:orange", STUDENT: "tab:red"}
PANELS = {"frechet": ("Frechet distance", "lower is better", ".4f"), "judge": ("judge's score", "higher is better", ".2f")}
CROWD = 0.7  # part of the horizontal lines that must be in sight; the others are named at the edge


def draw_plot(figures: Figures, path: Path) -> None:
    """Distance at the left, score at the right: over pictures seen in training above, over evaluations a picture below."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(14, 9.5), constrained_layout=True)
    prompts, seeds = figures.settings["prompts"], figures.settings["seeds"]
    figure.suptitle("SiD's one-step student and its teacher on the tiny world (distances in the features of its judge)")
    for column, (key, (name, direction, _)) in enumerate(PANELS.items()):
        over_training, over_cost = axes[:, column]
        _draw_training(over_training, figures.findings["curve"], figures.findings["beside the curve"], key)
        _draw_cost(over_cost, figures.rows, key)
        over_training.set_title(f"{name} over training: one step, {CURVE_PROMPTS} prompts, one seed", fontsize=11, loc="left")
        over_cost.set_title(f"{name} over cost: {prompts} prompts, {seeds} seeds", fontsize=11, loc="left")
        for axis in (over_training, over_cost):
            axis.set_ylabel(f"{name} ({direction})")
            axis.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_training(axis: Any, curve: Sequence[dict[str, float]], beside: Sequence[dict[str, Any]], key: str) -> None:
    """The curve; beside it a line for each number of the teacher's steps, and for the consistency student's one step."""
    axis.set_xlabel("pictures seen in training, thousands")
    values = [point[key] for point in curve]
    if curve:
        seen = [point["pictures"] / 1000 for point in curve]
        axis.plot(seen, values, "o-", color=STUDENT_COLOURS[STUDENT], ms=4, lw=2, label="SiD student, moving average", zorder=3)
    if not beside:
        note = f"teacher and consistency student: only with {CURVE_PROMPTS} prompts"
        axis.text(0.5, 0.02, note, transform=axis.transAxes, ha="center", va="bottom", fontsize=8, color="0.5")
        return
    low, high = window(values, [level[key] for level in beside])
    named = []
    for level in beside:
        teacher = level["network"].startswith("teacher")
        colour = TEACHER_COLOURS[0] if teacher else STUDENT_COLOURS[DEFAULT_STUDENT]
        seen_as = "" if low <= level[key] <= high else " (out of sight)"
        axis.axhline(level[key], color=colour, lw=1, ls=":" if teacher else "--", zorder=1)
        named.append((level[key], f"{level['network']}: {level[key]:{PANELS[key][2]}}{seen_as}", colour))
    axis.set_ylim(low, high)
    _label_levels(axis, named)
    if curve:
        axis.legend(frameon=False, fontsize=9, loc="lower left" if key == "frechet" else "lower right")


def window(curve: Sequence[float], beside: Sequence[float]) -> tuple[float, float]:
    """The range that shows the curve and the ``CROWD`` of ``beside`` that is nearest to its end, with a margin."""
    centre = curve[-1] if len(curve) else float(np.median(beside))
    near = sorted(beside, key=lambda value: abs(value - centre))[: round(CROWD * len(beside))]
    low, high = min([*curve, *near]), max([*curve, *near])
    margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _label_levels(axis: Any, levels: Sequence[tuple[float, str, str]]) -> None:
    """Names of horizontal lines at the right of the panel, moved apart where they would touch, each tied to its line."""
    low, high = axis.get_ylim()
    ordered = sorted(levels)
    heights = [min(max((height - low) / (high - low), 0.0), 1.0) for height, *_ in ordered]
    places = apart([min(max(height, 0.04), 0.94) for height in heights], 0.05)
    for (_, label, colour), height, place in zip(ordered, heights, places, strict=True):
        axis.annotate(
            label, xy=(1, height), xytext=(1.04, place), xycoords="axes fraction", textcoords="axes fraction", fontsize=8,
            color=colour, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Rising ``places`` moved so that neighbours are at least ``gap`` apart, each group around its own middle."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _bottom(groups[-1], gap) - _top(groups[-2], gap) < gap:
            last = groups.pop()
            groups[-1] += last
    return [_bottom(group, gap) + gap * i for group in groups for i in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return _bottom(group, gap) + gap * (len(group) - 1)


def _draw_cost(axis: Any, rows: Sequence[dict[str, Any]], key: str) -> None:
    """Every network over its evaluations a picture, one line a network."""
    lines: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for r in rows:
        lines.setdefault((r["network"], r["guidance"]), []).append(r)
    teachers = [line for line in lines if line[0] == "teacher"]
    for (name, guidance), series in lines.items():
        teacher = name == "teacher"
        colour = TEACHER_COLOURS[teachers.index((name, guidance))] if teacher else STUDENT_COLOURS.get(name, "tab:green")
        label = f"teacher, guidance {guidance:g}" if teacher else f"{'SiD' if name == STUDENT else name} student"
        style = {"marker": "s", "ms": 5, "zorder": 2} if teacher else {"marker": "o", "ms": 8, "zorder": 3}
        values = [r["Frechet" if key == "frechet" else "judge"] for r in series]
        axis.plot([r["NFE"] for r in series], values, color=colour, label=label, lw=1.5, **style)
    ticks = sorted({r["NFE"] for r in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("network evaluations a picture (guidance takes two a step)")
    axis.legend(frameon=False, fontsize=9)
