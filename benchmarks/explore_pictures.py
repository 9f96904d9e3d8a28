"""Every picture that ``apprentice bench explore`` chooses among: drawn once, so that policies differ by nothing else.

A row is a prompt and a place (four pictures of each prompt are wanted). Of each picture what the replay needs is kept: the
gate's score and features, the judge's, and the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..networks.tiny_unet import Denoiser
from ..world.recipe.sampling import Drawn, World, unit_noise
from ..world.weights import load_unet
from .figures import Array

PLACES = 4  # pictures of a prompt
TEACHER_STEPS = 9  # 18 evaluations with guidance
# name -> (student, steps, drafts of each row)
STUDENTS: dict[str, tuple[str, int, int]] = {
    "consistency": ("consistency", 1, 16), "SiD": ("sid", 1, 16), "consistency, 2 steps": ("consistency", 2, 6),
}  # fmt: skip
REDRAWN, SPOILED = "teacher", "spoiled student"
_NUMBERS = {"consistency": 0, "SiD": 1, "consistency, 2 steps": 2, REDRAWN: 3, SPOILED: 5}  # by which their noise is told apart
EVERYBODY = tuple(_NUMBERS)
CHUNK = 128  # prompts that are drawn, and kept, together
SPOIL = 0.3  # noise on the spoiled student's weights, as a part of each weight tensor's own spread


@dataclass(frozen=True)
class Pool:
    """Pictures of one source: scores of gate and judge [rows, drafts], unit features of gate and judge [rows, drafts, D]."""

    nfe: float
    gate: Array
    quality: Array
    seen: Array
    features: Array


def pools(
    prompts: list[str], first_seed: int, folder: Path, say: Callable[[str], None], names: Sequence[str] = EVERYBODY
) -> dict[str, Pool]:
    """The pools of the sources ``names`` for ``prompts``, from ``folder`` where they were drawn before.

    Args:
        first_seed: Names the noise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [prompts[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)]
    return {
        name: _joined([_pool(name, part, first_seed + 100_000 * i, folder, say) for i, part in enumerate(parts)])
        for name in names
    }  # fmt: skip


def _joined(parts: list[Pool]) -> Pool:
    held = ("gate", "quality", "seen", "features")
    return Pool(parts[0].nfe, *(np.concatenate([getattr(part, key) for part in parts]) for key in held))


def _pool(name: str, prompts: list[str], first_seed: int, folder: Path, say: Callable[[str], None]) -> Pool:
    rows = [prompt for prompt in prompts for _ in range(PLACES)]
    path = folder / f"{name.replace(' ', '_')}-{len(rows)}-{first_seed}.npz"
    if not path.exists():
        say(f"{name}: {len(rows)} rows")
        _save(_draw(World(), name, rows, first_seed + 1000 * _NUMBERS[name]), path)
    with np.load(path) as stored:
        return Pool(float(stored["nfe"]), *(stored[key] for key in ("gate", "quality", "seen", "features")))


def _save(pool: Pool, path: Path) -> None:
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, **vars(pool))
    unfinished.replace(path)


def _draw(world: World, name: str, rows: list[str], seed: int) -> Pool:
    if name in STUDENTS:
        student, steps, drafts = STUDENTS[name]
        draw = lambda n: world.draft(rows, unit_noise(len(rows), seed + n), steps, 7 * seed + n, student)  # noqa: E731
    elif name == SPOILED:
        drafts, spoiled = 12, spoil(world)
        draw = lambda n: world.draft(rows, unit_noise(len(rows), seed + n), 1, 0, spoiled)  # noqa: E731
    else:
        drafts = 1
        draw = lambda n: world.redraw(rows, unit_noise(len(rows), seed + n), TEACHER_STEPS)  # noqa: E731
    parts = [_seen(world, draw(n), rows) for n in range(drafts)]
    return Pool(parts[0][0], *(np.stack([part[1 + i] for part in parts], axis=1) for i in range(4)))


@torch.inference_mode()
def _seen(world: World, drawn: Drawn, rows: list[str]) -> tuple[float, Array, Array, Array, Array]:
    pictures = world.pictures(drawn.latents)
    gate, quality = (oracle.score(pictures, rows).double().numpy() for oracle in (world.oracle, world.judge))
    seen = torch.cat([unit(world.oracle.features(part)) for part in pictures.split(64)])
    return float(drawn.nfe), gate, quality, seen.numpy(), world.features(pictures).numpy()


def spoil(world: World) -> str:
    """A student that falls far behind its teacher: the consistency student with noise on its weights; its name in ``world``."""
    student = Denoiser(load_unet("student_consistency"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.ndim > 1:
                weight.add_(SPOIL * weight.std() * torch.randn(weight.shape, generator=generator))
    world._students[SPOILED] = student
    return SPOILED


def unit(features: Tensor) -> Tensor:
    """Rows of length 1."""
    return torch.nn.functional.normalize(features.float(), dim=-1)
