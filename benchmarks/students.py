"""Which students complement their teacher, and which merely equal it? The findings of arXiv 2312.10835 by kind of student.

Student and teacher draw from the same noise, on the tiny world's prompts that training never showed. The *judge*, which no
training and no choice ever saw, says whose picture is better; the *oracle* chooses where a choice is made, and its features
say how far two pictures are apart (the paper has people, ImageReward and DreamSim). Intervals are by prompt.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from ..world.recipe.concepts import held_out_prompts
from ..world.recipe.sampling import Drawn, World, unit_noise
from ..world.weights import students as shipped
from .adaptive import mean_of
from .figures import Array, Claim, Figures, bootstrap

TEACHER_STEPS = 24  # more change nothing (apprentice bench sid)
CHEAP_STEPS = 9  # the same network with fewer: what a coarser solver alone does
STUDENT_STEPS = (1, 2)
PROMPTS, SEEDS = 256, 3
QUALITY = 85  # of the JPEG whose size is a picture's complexity
FACTORS = {
    "distance": "distance to the teacher's picture (1 - cosine, the oracle's features)",
    "words": "words of the prompt",
    "complexity": "complexity of the teacher's picture (bytes as JPEG)",
    "curvature": "curvature of the teacher's trajectory",
}

# -------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Drawings:
    """What one network drew for every prompt and seed.

    Attributes:
        name: Of the network.
        steps: Of its sampler.
        nfe: Network evaluations a picture.
        oracle: The oracle's scores [prompts, seeds].
        judge: The judge's scores [prompts, seeds].
        features: The oracle's unit features [prompts, seeds, D].
    """

    name: str
    steps: int
    nfe: int
    oracle: Array
    judge: Array
    features: Array

    @property
    def label(self) -> str:
        """Name and steps in words."""
        return f"{self.name}, {self.steps} step{'s' if self.steps > 1 else ''}"


@dataclass(frozen=True)
class Measured:
    """The students, the teacher's cheap self last, the teacher, and what is known of every prompt and seed [prompts, seeds]."""

    students: list[Drawings]
    teacher: Drawings
    words: Array
    complexity: Array
    curvature: Array

    def factors(self, student: Drawings) -> dict[str, Array]:
        """What the share of better drafts may depend on [prompts, seeds], as in ``FACTORS``."""
        distance = 1 - (student.features * self.teacher.features).sum(-1)
        return {"distance": distance, "words": self.words, "complexity": self.complexity, "curvature": self.curvature}


def key_of(label: str) -> str:
    """What the claims of a network begin with: "sid, 2 steps" -> "sid_2"."""
    return "_".join(label.replace(",", "").split()[:2])


def jpeg_bytes(pictures: Tensor) -> Array:
    """Bytes that each of the pictures [B, H, W, 3] in 0..1 takes as JPEG; the paper asks a network, ICNet."""
    sizes = []
    for picture in (pictures * 255).round().byte().numpy():
        Image.fromarray(picture).save(held := io.BytesIO(), "jpeg", quality=QUALITY)
        sizes.append(len(held.getvalue()))
    return np.array(sizes, dtype=np.float64)


def measure(prompts: list[str], seeds: int, say: Callable[[str], None]) -> Measured:
    """Draw and judge every prompt and seed: students, then the teacher with few steps and with many.

    Raises:
        FileNotFoundError: Weights of the tiny world are not there.
    """
    world, rows, shape = World(), [p for p in prompts for _ in range(seeds)], (len(prompts), seeds)
    noise = unit_noise(len(rows), 1)

    def judged(name: str, steps: int, drawn: Drawn) -> tuple[Drawings, Tensor]:
        pictures = world.pictures(drawn.latents)
        scores = [o.score(pictures, rows).double().numpy().reshape(shape) for o in (world.oracle, world.judge)]
        features = np.concatenate([world.oracle.network.encode_image(part.movedim(-1, 1) * 2 - 1).detach().double().numpy()
                                   for part in pictures.split(64)])  # fmt: skip
        return Drawings(name, steps, drawn.nfe, scores[0], scores[1], features.reshape(*shape, -1)), pictures

    students = []
    for name in shipped():
        for steps in STUDENT_STEPS:
            say(f"student {name}, steps: {steps}")
            students.append(judged(name, steps, world.draft(rows, noise, steps, seed=500, student=name))[0])
    say(f"teacher, {CHEAP_STEPS} steps")
    students.append(judged("teacher", CHEAP_STEPS, world.redraw(rows, noise, CHEAP_STEPS))[0])
    say(f"teacher, {TEACHER_STEPS} steps")
    drawn = world.redraw(rows, noise, TEACHER_STEPS)
    teacher, pictures = judged("teacher", TEACHER_STEPS, drawn)
    words = np.array([float(len(row.split())) for row in rows]).reshape(shape)
    return Measured(students, teacher, words, jpeg_bytes(pictures).reshape(shape), drawn.curvature.numpy().reshape(shape))


# -------------------------------------------------------------------------------------------------- findings


def quarters(values: Array) -> Array:
    """For each value the quarter that it lies in, 0 to 3; equal values lie together, so quarters may differ in size."""
    return np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values)


def share_by_quarter(better: Array, values: Array, draws: int = 1000) -> list[dict[str, float]]:
    """For each quarter of ``values`` that isn't empty: its mean, its pictures, and which share of them is ``better``."""
    group, parts = quarters(values), []
    for quarter in range(4):
        part = group == quarter
        if part.any():
            claim = share_within(better, part, draws)
            about = {"quarter": quarter + 1, "about": float(values[part].mean()), "pictures": int(part.sum())}
            parts.append({**about, "share": claim.value, "lo": claim.lo, "hi": claim.hi})
    return parts


def share_within(better: Array, part: Array, draws: int = 1000) -> Claim:
    """The share of ``better`` among the pictures of ``part``; both [prompts, seeds]."""
    share = _shares(better, part)
    return bootstrap(share, len(better), draws)


def trend(better: Array, values: Array, draws: int = 2000) -> Claim:
    """Share of ``better`` in the last quarter of ``values`` minus that in the first that isn't empty; both [prompts, seeds]."""
    group = quarters(values)
    first, last = (_shares(better, group == quarter) for quarter in (group.min(), group.max()))
    return bootstrap(lambda i: last(i) - first(i), len(better), draws)


def _shares(better: Array, part: Array) -> Callable[[Array], float]:
    """The share of ``better`` within ``part`` of the prompts with given indices; not a number where none of them is in it."""
    won, count = (better * part).sum(1), part.sum(1)

    def share(index: Array) -> float:
        there = count[index].sum()
        return float(won[index].sum() / there) if there else float("nan")

    return share


def rank_correlation(a: Array, b: Array, draws: int = 1000) -> Claim:
    """Spearman's rank correlation of two quantities [prompts, seeds]; ranks are those among all."""
    ranks = [rankdata(x).reshape(x.shape) for x in (a, b)]
    return bootstrap(lambda i: float(np.corrcoef(ranks[0][i].ravel(), ranks[1][i].ravel())[0, 1]), len(a), draws)


def chosen(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
    """The judge's scores where the oracle takes the better of two pictures; each pair is (oracle's, judge's) scores."""
    return np.where(b[0] > a[0], b[1], a[1])


def twos(student: Drawings, teacher: Drawings) -> dict[str, Array]:
    """The judge's score of the oracle's choice of two pictures, a mean over all choices of seeds [prompts].

    "one of each" is from two noises, as the other pairs are; "one of each, one noise" is what the paper compares.
    """
    of = lambda d, seed: (d.oracle[:, seed], d.judge[:, seed])  # noqa: E731
    seeds = range(student.judge.shape[1])
    pairs = {
        "two of the student": [chosen(of(student, a), of(student, b)) for a, b in combinations(seeds, 2)],
        "two of the teacher": [chosen(of(teacher, a), of(teacher, b)) for a, b in combinations(seeds, 2)],
        "one of each": [chosen(of(student, a), of(teacher, b)) for a, b in permutations(seeds, 2)],
        "one of each, one noise": [chosen(of(student, a), of(teacher, a)) for a in seeds],
    }
    return {name: np.mean(scores, axis=0) for name, scores in pairs.items()}


def perfectly(drawings: Drawings) -> Drawings:
    """As if the oracle were the judge."""
    return replace(drawings, oracle=drawings.judge)


def complement(two: dict[str, Array], draws: int = 2000) -> Claim:
    """Judge's score of the choice from one of each, minus that from two of one network, whichever network leaves less.

    Its ends are the lesser of both differences' ends, so it lies above 0 only where one of each beats two of *either*. The mean
    of the better network would be no measure: of two that are equal, the better in the sample is so by luck.
    """
    alone = [two["two of the student"], two["two of the teacher"]]
    gains = [mean_of(two["one of each"] - scores, draws) for scores in alone]
    return Claim(*(min(getattr(gain, end) for gain in gains) for end in ("value", "lo", "hi")))


def verdict(gain: Claim, ahead: Claim) -> str:
    """What the intervals say of a student: ``gain`` is that of ``complement``, ``ahead`` its score minus the teacher's."""
    if gain.lo > 0:
        return "complements it"
    return "is ahead of it" if ahead.lo > 0 else "is behind it" if ahead.hi < 0 else "equals it"


def compare(m: Measured) -> Figures:
    """Table, claims, and the shares by quarter."""
    prompts, seeds = m.teacher.judge.shape
    figures = Figures("students", {
        "prompts": prompts, "seeds": seeds, "teacher_steps": m.teacher.steps, "factors": FACTORS, "jpeg_quality": QUALITY,
    })  # fmt: skip
    quarterly: dict[str, Any] = {}
    alone: dict[str, Any] = {m.teacher.label: float(m.teacher.judge.mean())}
    for student in m.students:
        better = (student.judge > m.teacher.judge).astype(np.float64)
        two, factors = twos(student, m.teacher), m.factors(student)
        claims = {
            "share": share_within(better, np.ones_like(better), 2000),
            "gain": mean_of((student.judge - m.teacher.judge).mean(1)),
            "complement": complement(two),
            "complement_by_the_judge": complement(twos(perfectly(student), perfectly(m.teacher))),
            **{f"{name}_trend": trend(better, values) for name, values in factors.items()},
            **{f"{name}_by_distance": rank_correlation(values, factors["distance"])
               for name, values in factors.items() if name != "distance"},
        }  # fmt: skip
        figures.claims |= {f"{key_of(student.label)}_{name}": claim for name, claim in claims.items()}
        quarterly[student.label] = {name: share_by_quarter(better, values) for name, values in factors.items()}
        alone[student.label] = {"judge": float(student.judge.mean())} | {name: float(s.mean()) for name, s in two.items()}
        figures.rows.append(row(student, claims))
    figures.findings = {"quarters": quarterly, "choices of two": alone}
    return figures


def row(student: Drawings, claims: dict[str, Claim]) -> dict[str, Any]:
    """One line of the table; of each factor the share in its last quarter minus that in its first."""
    span = lambda name: "{0.value:.2f} ({0.lo:.2f} to {0.hi:.2f})".format(claims[name])  # noqa: E731
    return {
        "network": student.label, "NFE": student.nfe, "better drafts": span("share"), "score, minus the teacher's": span("gain"),
        **{f"by {name}": span(f"{name}_trend") for name in FACTORS},
        "one of each": span("complement"), "so it": verdict(claims["complement"], claims["gain"]),
    }  # fmt: skip


def run(quick: bool = False, plot: Path | None = None, say: Callable[[str], None] = print) -> Figures:
    """Measure, print the table and the claims, draw the plot.

    Raises:
        FileNotFoundError: Weights of the tiny world are not there.
    """
    prompts = [p.text() for p in held_out_prompts()][: 40 if quick else PROMPTS]
    figures = compare(measure(prompts, 2 if quick else SEEDS, say))
    figures.show()
    if plot:
        draw_plot(figures, plot)
        say(f"plot: {plot}")
    return figures


# ------------------------------------------------------------------------------------------------------ plot

COLOURS = {"consistency": "tab:orange", "sid": "tab:red", "teacher": "tab:blue"}


def draw_plot(figures: Figures, path: Path) -> None:
    """The share of better drafts by quarter of each factor; at the right the whole share, and the gain of one of each."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(14, 7.5), layout="constrained")
    prompts, seeds, steps = (figures.settings[name] for name in ("prompts", "seeds", "teacher_steps"))
    figure.suptitle(f"Students beside their teacher in {steps} steps, from the same noise: {prompts} prompts, {seeds} seeds")
    for axis, (factor, words) in zip(axes[:, :2].flat, FACTORS.items(), strict=True):
        for number, (label, by_factor) in enumerate(figures.findings["quarters"].items()):
            parts = by_factor[factor]
            places = [p["quarter"] + 0.09 * (number - 2) for p in parts]
            bars = [[p["share"] - p["lo"] for p in parts], [p["hi"] - p["share"] for p in parts]]
            axis.errorbar(places, [p["share"] for p in parts], yerr=bars, label=label, elinewidth=0.8, **_style(label))
        axis.axhline(0.5, color="0.8", lw=1, zorder=0)
        axis.set_xticks(range(1, 5), ["lowest quarter", "2nd", "3rd", "highest"])
        axis.set_ylabel("share of better drafts")
        axis.set_title(words, fontsize=10)
        axis.grid(alpha=0.2)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    _draw_claims(axes[0, 2], figures, "share", 0.5, "share of drafts better than the teacher's")
    _draw_claims(axes[1, 2], figures, "complement", 0.0, "judge's score of one of each minus two of the better")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _style(label: str) -> dict[str, Any]:
    name, steps = label.split(", ")
    return {"color": COLOURS.get(name, "tab:green"), "marker": "s" if name == "teacher" else "o", "ms": 5, "lw": 1.5,
            "ls": "-" if steps.startswith("1 ") else "--" if name != "teacher" else ":"}  # fmt: skip


def _draw_claims(axis: Any, figures: Figures, claim: str, level: float, words: str) -> None:
    """A claim of every network with its interval."""
    labels = list(figures.findings["quarters"])
    for place, label in enumerate(labels):
        found = figures.claims[f"{key_of(label)}_{claim}"]
        bars = [[found.value - found.lo], [found.hi - found.value]]
        axis.errorbar([found.value], [place], xerr=bars, capsize=3, **{**_style(label), "ls": ""})
    axis.axvline(level, color="0.8", lw=1, zorder=0)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_title(words, fontsize=10)
    axis.grid(alpha=0.2)
