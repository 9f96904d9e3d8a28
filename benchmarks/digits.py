"""SiD at test size: an EDM network on scikit-learn's digits, distilled in minutes into a one-step generator.

The distance is a Frechet distance between Gaussians of the 64 raw pixels (``pixel distance``): no network's features, no FID,
and comparable only with itself. It is small enough to be exact about, and its own floor, real digits against other real
digits, is measured beside it.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..files import save_safetensors_atomically, write_atomically
from ..networks.edm import EDMPrecond
from ..networks.preconditioning import karras_sigmas
from ..networks.tiny_unet import heun
from ..training.distill import Settings, distil
from ..training.edm_task import build_network, edm_task
from ..training.loop import Ema, Schedule, Watch
from ..training.run_folder import RunFolder
from ..training.sid import SIGMA_MAX, SIGMA_MIN, edm_denoise, generate
from ..weights.edm_pickle import Snapshot, read_edm, snapshot_metadata
from ..world.recipe.digits import CLASSES, CONFIG, SETTINGS, SIZE, digits, train_edm
from ..world.recipe.frechet import frechet
from .control_world import kept_run
from .figures import Array, Figures, mean_of_seeds, print_claims, print_table

TEACHER = Schedule(pictures=160_000, batch=64, learning_rate=2e-3, decay=0.6)


# ------------------------------------------------------------------------------------------------- the teacher


def train_teacher(folder: RunFolder, classes: bool = True, watch: Watch | None = None, schedule: Schedule = TEACHER) -> Snapshot:
    """An EDM network of the digits, which ``folder`` resumes; unconditional without ``classes``."""
    images, targets = digits()
    labels = F.one_hot(targets, CLASSES).float() if classes else None
    return train_edm(CONFIG | {"label_dim": CLASSES if classes else 0}, images, labels, schedule, folder, watch=watch)


def save_teacher(teacher: Snapshot, path: Path) -> None:
    """Write ``teacher`` in bfloat16, as ``read_edm`` reads it."""
    config, weights = teacher
    save_safetensors_atomically({key: value.bfloat16() for key, value in weights.items()}, path, snapshot_metadata(config))


# ------------------------------------------------------------------------------------------------ the distance


def even_classes(count: int, classes: int) -> Tensor | None:
    """One-hot labels [count, classes], the classes in turn; none for an unconditional network."""
    return F.one_hot(torch.arange(count) % classes, classes).float() if classes else None


def pixel_distance(images: Tensor) -> float:
    """Frechet distance between Gaussians of the 64 pixels: ``images`` [B, 1, 8, 8] in -1..1 against all digits.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    real = _rows(digits()[0])
    return frechet(_rows(images.clamp(-1, 1)), real.mean(0), np.cov(real, rowvar=False))


def floor(seed: int = 0) -> float:
    """The distance of one half of the digits to the other half: about what a perfect generator of 900 pictures has."""
    real = _rows(digits()[0])
    order = np.random.default_rng(seed).permutation(len(real))
    one, other = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
    return frechet(one, other.mean(0), np.cov(other, rowvar=False))


def _rows(images: Tensor) -> Array:
    return images.flatten(1).double().numpy()


# --------------------------------------------------------------------------------------------------- drawing


PART = 500  # pictures at a time, whose activations stay in a processor's cache


@torch.no_grad()
def one_step(network: EDMPrecond, count: int, seed: int = 0) -> Tensor:
    """``count`` pictures D(2.5 z, 2.5, labels) of ``network``, an ``EDMPrecond``."""
    return _drawn(network, count, seed, lambda z, labels: generate(edm_denoise(network), z, labels))


@torch.no_grad()
def many_steps(network: EDMPrecond, count: int, seed: int = 0, steps: int = 18) -> Tensor:
    """``count`` pictures by EDM's deterministic Heun sampler: 2 ``steps`` - 1 evaluations."""
    denoise, sigmas = edm_denoise(network), karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    return _drawn(
        network, count, seed, lambda z, labels: heun(lambda x, sigma: denoise(x, sigma.view(-1, 1, 1, 1), labels), z, sigmas)
    )


def _drawn(network: EDMPrecond, count: int, seed: int, draw: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """What ``draw`` makes of noise and labels, in parts."""
    network.eval()
    noise, labels = _noise(count, seed), even_classes(count, network.label_dim)
    parts = torch.arange(count).split(PART)
    return torch.cat([draw(noise[part], None if labels is None else labels[part]) for part in parts])


def _noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------- the distillation

DRAWN, CURVE_DRAWN = 50_000, 8_000  # pictures of the claims: n perfect ones are at about 94 / n; and of the curve's points
EVALUATION_SEED = 123


@dataclass(frozen=True)
class Distances:
    """Pixel distances of the same noise drawn in several ways; 0 is the data set's own Gaussian.

    Attributes:
        undistilled: The teacher in one step, which is where the student starts.
        student: The student in one step.
        teacher: The teacher in 18 steps of Heun, 35 evaluations.
    """

    undistilled: float
    student: float
    teacher: float

    @property
    def factor(self) -> float:
        """By how much distillation lowered the distance."""
        return self.undistilled / self.student

    @property
    def ratio(self) -> float:
        """The student's distance over its teacher's."""
        return self.student / self.teacher


def settings_of(iterations: int, seed: int = 0, **changes: Any) -> Settings:
    """What the benchmark distils with: the recipe's settings but for a larger batch, SiD's usual alpha and a later decay."""
    settings = replace(SETTINGS, batch=128, alpha=1.2, decay=0.3, seed=seed)
    settings = replace(settings, **changes)
    return replace(settings, pictures=iterations * settings.batch)


def distil_digits(
    teacher: Snapshot, folder: RunFolder, settings: Settings, watch: Watch | None = None, save_every: int = 250
) -> EDMPrecond:
    """The one-step student of ``teacher``, in a run that ``folder`` resumes."""
    return _student(teacher, distil(edm_task(teacher), settings, folder, watch=watch, save_every=save_every))


def _student(teacher: Snapshot, ema: Ema) -> EDMPrecond:
    student = build_network(teacher)
    student.load_state_dict(ema.shadow)
    return student


def measure(teacher: Snapshot, student: EDMPrecond, drawn: int, of_teacher: float = math.nan) -> Distances:
    """Distances before and after, over ``drawn`` pictures; the teacher's own, which takes longest, is handed in."""
    before = pixel_distance(one_step(build_network(teacher), drawn, EVALUATION_SEED))
    return Distances(before, pixel_distance(one_step(student, drawn, EVALUATION_SEED)), of_teacher)


def teacher_distance(teacher: Snapshot, drawn: int) -> float:
    """What ``measure`` compares with."""
    return pixel_distance(many_steps(build_network(teacher), drawn, EVALUATION_SEED))


def followed(
    teacher: Snapshot, folder: RunFolder, settings: Settings, drawn: int, say: Callable[[str], None], points: int = 20
) -> tuple[EDMPrecond, list[dict[str, float]]]:
    """The student, and its distance at ``points`` along its way, which a stopped run keeps."""
    file, every = folder.path / "curve.json", max(settings.schedule.steps // points, 1)
    curve: list[dict[str, float]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

    def on_save(ema: Ema, pictures: int) -> None:
        iterations = pictures // settings.batch
        distance = pixel_distance(one_step(_student(teacher, ema), drawn, EVALUATION_SEED))
        kept = [point for point in curve if point["iterations"] < iterations]
        curve[:] = [*kept, {"iterations": iterations, "distance": distance}]
        write_atomically(file, lambda part: part.write_text(json.dumps(curve), encoding="utf-8"))
        say(f"  {iterations} iterations: {distance:.4f}")

    return distil_digits(teacher, folder, settings, Watch(on_save=on_save), every), curve


TEACHER_FILE = Path(__file__).parents[1] / "tests" / "data" / "digits_teacher.safetensors"
QUICK, FULL = 150, 5_000  # iterations
SEEDS = 3


def run(quick: bool = False, plot: Path | None = None, say: Callable[[str], None] = print, work: Path | None = None) -> Figures:
    """Distil the teacher that is in the repository with several seeds; print distances and claims, draw them over iterations.

    Args:
        work: Where runs are kept, and gone on with when they were stopped; None for a folder that is gone afterwards.
    """
    iterations, drawn, along = (QUICK, 2000, 2000) if quick else (FULL, DRAWN, CURVE_DRAWN)
    teacher = read_edm(TEACHER_FILE)
    figures = Figures("digits", {
        "iterations": iterations, "seeds": SEEDS, "drawn": drawn, "settings": asdict(settings_of(iterations)), "floor": floor(),
        "teacher_parameters": sum(value.numel() for value in teacher[1].values()),
    })  # fmt: skip
    of_teacher, beside = teacher_distance(teacher, drawn), teacher_distance(teacher, along)
    curves: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(SEEDS):
            settings = settings_of(iterations, seed)
            say(f"seed {seed}: {iterations} iterations of {settings.batch} pictures")
            folder = kept_run((work or Path(temporary)) / f"seed {seed}", settings)
            student, curves[f"seed {seed}"] = followed(teacher, folder, settings, along, say)
            distances = measure(teacher, student, drawn, of_teacher)
            figures.rows.append({"seed": seed, **asdict(distances), "factor": distances.factor, "ratio": distances.ratio})
    for name in ("ratio", "factor", "undistilled", "student", "teacher"):
        figures.claims[f"digits_{name}"] = mean_of_seeds([row[name] for row in figures.rows])
    figures.findings = {"curve": curves, "teacher beside the curve": beside, "pictures of the curve": along}
    print_table(figures.rows)
    print_claims(figures.claims)
    if plot:
        draw_plot(figures, plot)
    return figures


VARIANTS: dict[str, dict[str, Any]] = {
    "as benchmarked": {}, "alpha 1.0": {"alpha": 1.0}, "batch 64": {"batch": 64}, "batch 256": {"batch": 256},
    "generator's rate a third": {"generator_rate": 1e-4}, "three times": {"generator_rate": 1e-3},
    "fake score's rate a third": {"fake_rate": 3e-4}, "half-life a tenth": {"ema_half_life": 50_000, "ema_rampup": 0.005},
}  # fmt: skip


def search(quick: bool = False, say: Callable[[str], None] = print, work: Path | None = None) -> Figures:
    """One thing changed at a time, at an equal number of pictures: what the long runs are distilled with, and why."""
    pictures, teacher = (64 * 40 if quick else 128 * 1500), read_edm(TEACHER_FILE)
    figures = Figures("digits-search", {"pictures": pictures, "drawn": CURVE_DRAWN, "settings": asdict(settings_of(1))})
    of_teacher = teacher_distance(teacher, CURVE_DRAWN)
    with tempfile.TemporaryDirectory() as temporary:
        for name, changes in VARIANTS.items():
            settings = replace(settings_of(1, **changes), pictures=pictures)
            folder = kept_run((work or Path(temporary)) / name, settings)
            distances = measure(teacher, distil_digits(teacher, folder, settings), CURVE_DRAWN, of_teacher)
            say(f"{name}: {distances.ratio:.3f}")
            figures.rows.append({"changed": name, "student": distances.student, "ratio": distances.ratio})
    print_table(figures.rows)
    return figures


def draw_plot(figures: Figures, path: Path) -> None:
    """The ratio of distances over iterations, a line for each seed; both axes are logarithmic."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axis = plt.subplots(figsize=(7, 4.2), constrained_layout=True)
    beside, drawn = figures.findings["teacher beside the curve"], figures.findings["pictures of the curve"]
    for name, points in figures.findings["curve"].items():
        ratios = [point["distance"] / beside for point in points]
        axis.plot([point["iterations"] for point in points], ratios, "o-", ms=3.5, label=name)
    axis.axhline(1.0, color="0.3", lw=1, ls="--")
    axis.annotate("the teacher, 35 evaluations", (0.01, 1.0), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
    axis.set(xscale="log", yscale="log", xlabel="iterations", ylabel="student's distance over its teacher's")
    axis.set_title(f"SiD on digits, one step ({drawn:,} pictures a point; lower is better)", fontsize=11, loc="left")
    for scale, form in ((axis.xaxis, "{x:,.0f}"), (axis.yaxis, "{x:.1f}")):
        scale.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        scale.set_major_formatter(form)
        scale.set_minor_formatter("")
    axis.grid(alpha=0.2, which="both")
    axis.legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """``python -m comfyui_apprentice.benchmarks.digits CHECKPOINT``: train the teacher that is in the repository."""
    torch.set_num_threads(1)
    watch = Watch(lambda *progress: print(*progress, flush=True))
    save_teacher(train_teacher(RunFolder(Path(sys.argv[1])), watch=watch), TEACHER_FILE)


if __name__ == "__main__":
    main()
