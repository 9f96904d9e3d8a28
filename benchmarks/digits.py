"""SiD at test size: an EDM network on scikit-learn's digits, distilled in minutes into a one-step generator.

The distance is a Frechet distance between Gaussians of the 64 raw pixels (``pixel distance``): no network's features, no FID,
and comparable only with itself. It is small enough to be exact about, and its own floor, real digits against other real
digits, is measured beside it.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..files import save_safetensors_atomically
from ..networks.edm import EDMPrecond
from ..networks.preconditioning import karras_sigmas
from ..networks.tiny_unet import heun
from ..training.distill import Settings, distil
from ..training.edm_task import build_network, edm_task
from ..training.loop import Schedule, Watch
from ..training.run_folder import RunFolder
from ..training.sid import SIGMA_MAX, SIGMA_MIN, edm_denoise, generate
from ..weights.edm_pickle import Snapshot, read_edm, snapshot_metadata
from ..world.recipe.digits import CLASSES, CONFIG, SETTINGS, SIZE, digits, train_edm
from ..world.recipe.frechet import frechet
from .figures import Array, Claim, Figures, bootstrap, print_claims, print_table

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


@torch.no_grad()
def one_step(network: EDMPrecond, count: int, seed: int = 0) -> Tensor:
    """``count`` pictures D(2.5 z, 2.5, labels) of ``network``, an ``EDMPrecond``."""
    return generate(edm_denoise(network.eval()), _noise(count, seed), even_classes(count, network.label_dim))


@torch.no_grad()
def many_steps(network: EDMPrecond, count: int, seed: int = 0, steps: int = 18) -> Tensor:
    """``count`` pictures by EDM's deterministic Heun sampler: 2 ``steps`` - 1 evaluations."""
    labels, denoise = even_classes(count, network.label_dim), edm_denoise(network.eval())
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    return heun(lambda x, sigma: denoise(x, sigma.view(-1, 1, 1, 1), labels), _noise(count, seed), sigmas)


def _noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------- the distillation

DRAWN = 2000
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


def _settings(iterations: int, seed: int = 0) -> Settings:
    return replace(SETTINGS, pictures=iterations * SETTINGS.batch, seed=seed)


def distil_digits(teacher: Snapshot, folder: RunFolder, iterations: int, seed: int = 0, watch: Watch | None = None) -> EDMPrecond:
    """The one-step student of ``teacher``, in a run that ``folder`` resumes."""
    ema = distil(edm_task(teacher), _settings(iterations, seed), folder, watch=watch)
    student = build_network(teacher)
    student.load_state_dict(ema.shadow)
    return student


def measure(teacher: Snapshot, student: EDMPrecond, drawn: int = DRAWN, many: bool = True) -> Distances:
    """Distances before and after, over ``drawn`` pictures; ``many`` False leaves out the teacher's own, which takes longest."""
    network = build_network(teacher)
    return Distances(
        pixel_distance(one_step(network, drawn, EVALUATION_SEED)), pixel_distance(one_step(student, drawn, EVALUATION_SEED)),
        pixel_distance(many_steps(network, drawn, EVALUATION_SEED)) if many else math.nan,
    )  # fmt: skip


TEACHER_FILE = Path(__file__).parents[1] / "tests" / "data" / "digits_teacher.safetensors"
QUICK, FULL = 150, 600  # iterations
SEEDS = 3


def run(quick: bool = False, say: Callable[[str], None] = print) -> Figures:
    """Distil the teacher that is in the repository with several seeds; print distances and claims."""
    iterations, teacher = QUICK if quick else FULL, read_edm(TEACHER_FILE)
    figures = Figures("digits", {
        "iterations": iterations, "seeds": SEEDS, "drawn": DRAWN, "settings": asdict(_settings(iterations)), "floor": floor(),
        "teacher_parameters": sum(value.numel() for value in teacher[1].values()),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEEDS):
            say(f"seed {seed}: {iterations} iterations of {SETTINGS.batch} pictures")
            watch = Watch(lambda step, _, means: say(f"  step {step} {means}"))
            distances = measure(teacher, distil_digits(teacher, RunFolder(Path(folder) / str(seed)), iterations, seed, watch))
            figures.rows.append({"seed": seed, **asdict(distances), "factor": distances.factor})
    for name in ("factor", "undistilled", "student", "teacher"):
        figures.claims[f"digits_{name}"] = _over_seeds([row[name] for row in figures.rows])
    print_table(figures.rows)
    print_claims(figures.claims)
    return figures


def _over_seeds(values: list[float]) -> Claim:
    return bootstrap(lambda seeds: float(np.array(values)[seeds].mean()), len(values))


def main() -> None:
    """``python -m comfyui_apprentice.benchmarks.digits CHECKPOINT``: train the teacher that is in the repository."""
    torch.set_num_threads(1)
    watch = Watch(lambda *progress: print(*progress, flush=True))
    save_teacher(train_teacher(RunFolder(Path(sys.argv[1])), watch=watch), TEACHER_FILE)


if __name__ == "__main__":
    main()
