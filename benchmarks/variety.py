"""What keeps a student's variety, and what it costs: SiD on the tiny world, plain, by guidance, and with either loss beside it.

Every way goes on from the shipped student for the same number of pictures, so that they are compared with it and with each
other; distances, scores and diversities are those of ``benchmarks.sid``, against the same teacher at its best.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..networks.tiny_unet import Denoiser, TinyUNet
from ..training.distill import Settings, distil
from ..training.loop import Watch
from ..training.variety import ANCHOR, CONSISTENCY
from ..world.recipe.concepts import held_out_prompts
from ..world.recipe.frechet import reference
from ..world.recipe.sampling import World
from ..world.weights import load_unet
from .control_world import kept_run
from .figures import Claim, Figures, mean_of_seeds, print_claims, print_table
from .sid import PROMPTS, STUDENT, TEACHER_STEPS, Pool, best_teacher, claims, starting_noise, students_pools, teachers_pools
from .sid_world import GUIDANCE, SETTINGS, student_task

DRAWN_SEEDS = 2  # pictures a prompt
PICTURES, QUICK = 8_000, 64  # that a student draws while it learns
PLAIN = f"SiD, guidance {GUIDANCE:g}"
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "guidance 1.25": {"kappa4": 1.25},
    "Zero-CFG": {"kappa1": 0.0, "kappa2": 0.0, "kappa4": 1.0},  # few-step SiD, arXiv 2505.12674
    "Anti-CFG": {"kappa1": -0.5, "kappa2": -0.5, "kappa4": 1.0},
    "anchor": {"variety": ANCHOR},
    "consistency": {"variety": CONSISTENCY},
}
Say = Callable[[str], None]


def settings_of(changes: dict[str, Any], pictures: int, seed: int) -> Settings:
    """Of one way."""
    return replace(SETTINGS, generator_rate=1e-4, decay=0.5, pictures=pictures, seed=seed, **changes)


def distilled(world: World, settings: Settings, folder: Path, name: str, say: Say) -> tuple[TinyUNet, float]:
    """The student of one way and seed, from a run that ``folder`` keeps; and CPU seconds a picture."""
    task = student_task(world, load_unet("teacher"), STUDENT)
    watch = Watch(lambda step, _p, means: say(f"{name} {step}: {means['generator']:.4g}"), 25)
    run = kept_run(folder / name, settings)
    file, before, begun = run.path / "cost.json", run.pictures_seen(settings.batch), time.process_time()
    ema = distil(task, settings, run, watch=watch, save_every=50)
    learned = settings.schedule.steps * settings.batch - before
    if learned:
        seconds = (time.process_time() - begun) / learned
        write_atomically(file, lambda part: part.write_text(json.dumps(seconds), encoding="utf-8"))
    network = TinyUNet()
    network.load_state_dict(ema.shadow)
    return network.eval().requires_grad_(False), float(json.loads(file.read_text(encoding="utf-8")))


def run(quick: bool = False, say: Say = print, work: Path | None = None, seeds: int = 3) -> Figures:
    """Distil in every way, measure, print the table and the claims.

    Args:
        work: Where runs are kept, and gone on with when they were stopped; None for a folder that is gone afterwards.
        seeds: Runs of every way.
    """
    prompts = [p.text() for p in held_out_prompts()][: 24 if quick else PROMPTS]
    world, pictures = World(), QUICK if quick else PICTURES
    noise, real = starting_noise(len(prompts), DRAWN_SEEDS), reference()
    teacher = best_teacher(teachers_pools(world, prompts, noise, TEACHER_STEPS[::3] if quick else TEACHER_STEPS, say), real)
    figures = Figures("variety", {
        "pictures": pictures, "seeds": seeds, "prompts": len(prompts), "settings": asdict(settings_of({}, pictures, 0)),
        "teacher": teacher.label, "teacher_guidance": teacher.guidance,
    })  # fmt: skip
    figures.rows += _rows("as shipped", [students_pools(world, prompts, noise, STUDENT)], teacher, real)
    plain = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        for way, changes in WAYS.items():
            drawn, costs = [], []
            for seed in range(seeds):
                name = f"{way}, seed {seed}"
                network, seconds = distilled(world, settings_of(changes, pictures, seed), work or Path(temporary), name, say)
                world._students[name] = Denoiser(network)
                drawn.append(students_pools(world, prompts, noise, name))
                costs.append(seconds)
            plain = plain or min(costs)
            rows = _rows(way, drawn, teacher, real)
            figures.rows += [{**row, "cost": round(min(costs) / plain, 2)} for row in rows]
            for row in rows:
                figures.claims |= {f"{way}_{key}_{row['steps']}": row["claims"][key] for key in row["claims"]}
    figures.rows = [{**{k: v for k, v in row.items() if k != "claims"}, "cost": row.get("cost", "-")} for row in figures.rows]
    print_table(figures.rows)
    print_claims(figures.claims)
    return figures


def _rows(way: str, drawn: list[list[Pool]], teacher: Pool, real: Any) -> list[dict[str, Any]]:
    """A row for each number of steps, over seeds; with one seed the intervals are by prompt."""
    rows = []
    for pools in zip(*drawn, strict=True):
        found = [claims(pool, teacher, real, draws=400) for pool in pools]
        over = {key: _over([each[key] for each in found]) for key in found[0]}
        texts = {key.removeprefix("sid_"): f"{claim.value:.2f} ({claim.lo:.2f} to {claim.hi:.2f})" for key, claim in over.items()}
        rows.append({"way": way, "steps": pools[0].steps, **texts, "claims": over})
    return rows


def _over(values: list[Claim]) -> Claim:
    return values[0] if len(values) == 1 else mean_of_seeds([claim.value for claim in values])
