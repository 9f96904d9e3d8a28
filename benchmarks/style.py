"""Is my look kept in two steps? The tiny world's teacher with a LoRA of a look that it never saw, and its fast students.

Measured are subjects that the LoRA never saw, by the judge, which no network here learned from: how much of the look they have
(``style_score``), and whether they show what was asked for. A student has got there when it keeps 0.9 of the look and shows as
much as the slow model, to ``TOLERANCE``: blurred colours alone would keep a look too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..files import save_safetensors_atomically, write_atomically
from ..networks.tiny_unet import Denoiser, TinyUNet
from ..training.run_folder import read_lines
from ..world.recipe.concepts import BACKGROUNDS
from ..world.recipe.data import BACKGROUND_COLOURS, on_background
from ..world.recipe.sampling import World, unit_noise
from ..world.weights import DEFAULT_STUDENT, load_unet
from .figures import Array, Claim, Figures, bootstrap, mean_of_seeds
from .sid_world import with_lora
from .style_score import Look, fisher
from .style_world import (
    Say,
    StyledPictures,
    Way,
    consistency,
    distil_styled,
    fetch_icons,
    prompts_of,
    subjects,
    teach_style,
)

SLOW_STEPS, FAST_STEPS = 12, 2
KEPT, TOLERANCE = 0.9, 0.5  # what is asked for: of the look; of the judge's score, below the slow model's
START = DEFAULT_STUDENT  # the published student: the tiny world's consistency student


@dataclass(frozen=True)
class Plan:
    """How much is learned and measured."""

    style: int  # pictures that the style LoRA learns from
    warm: int  # pictures that a student draws while it learns, from the published student on
    cold: int  # likewise from the teacher on
    seeds: int
    every: int  # iterations between points of the curve
    pictures: int  # of each held-out subject
    subjects: int  # that are measured, at most

    @classmethod
    def of(cls, quick: bool) -> Plan:
        """The whole plan, or a few minutes of it."""
        return cls(640, 96, 160, 1, 2, 1, 16) if quick else cls(16_000, 1440, 1440, 3, 10, 2, 1000)


@dataclass(frozen=True, eq=False)
class Measured:
    """Pictures of the held-out subjects: the judge's features [subjects, pictures, D] and scores [subjects, pictures]."""

    features: Array
    scores: Array
    shown: Tensor


class Scale:
    """The look's direction and both ends of its scale, from pictures of the slow model and of the published student."""

    def __init__(self, world: World, icons: Tensor, styled: TinyUNet, plan: Plan, work: Path) -> None:
        self.world, self.pictures = world, plan.pictures
        self.words = prompts_of(subjects(held_out=True)[: plan.subjects], plan.pictures)
        self.noise = unit_noise(len(self.words), 42)
        kept = work / f"scale {len(self.words)}.safetensors"
        if not kept.exists():
            save_safetensors_atomically(self._drawn(icons, styled), kept)
        with safe_open(kept, "pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.plain, self.styled = (
            Measured(found[f"{end} features"].numpy(), found[f"{end} scores"].numpy(), found[f"{end} pictures"])
            for end in ("plain", "styled")
        )
        self.look = Look(found["direction"].numpy(), self.plain.features, self.styled.features)

    def _drawn(self, icons: Tensor, styled: TinyUNet) -> dict[str, Tensor]:
        """What takes the slow model: the direction, from subjects that teach, and both ends, of the others."""
        taught = subjects(held_out=False)
        plain, published = load_unet("teacher"), load_unet(f"student_{START}")
        words = prompts_of(taught, 1)
        noise = unit_noise(len(words), 41)
        with_look = [self.vendors(icons, taught, words), self.slow(styled, words, noise)]
        without = [self.slow(plain, words, noise), self.fast(published, words, noise)]
        direction = fisher(*(np.concatenate([self.features(p) for p in side]) for side in (with_look, without)))
        kept = {"direction": torch.from_numpy(direction)}
        for end, network in (("plain", plain), ("styled", styled)):
            seen = self.measured(self.slow(network, self.words, self.noise))
            kept |= {f"{end} features": torch.from_numpy(seen.features), f"{end} scores": torch.from_numpy(seen.scores)}
            kept[f"{end} pictures"] = seen.shown.clone()
        return kept

    def slow(self, network: TinyUNet, words: list[str], noise: Tensor) -> Tensor:
        """The teacher's way to draw: pictures [B, 64, 64, 3]."""
        self.world.teacher = Denoiser(network)
        return self.world.pictures(self.world.redraw(words, noise, SLOW_STEPS).latents)

    def fast(self, network: TinyUNet, words: list[str], noise: Tensor) -> Tensor:
        """A student's way."""
        self.world._students["shown"] = Denoiser(network)
        return self.world.pictures(self.world.draft(words, noise, FAST_STEPS, student="shown").latents)

    def vendors(self, icons: Tensor, numbers: list[int], words: list[str]) -> Tensor:
        """The vendor's own icons, as the autoencoder can show them."""
        colours = [list(BACKGROUNDS).index(word.rpartition(" on ")[2]) for word in words]
        with torch.inference_mode():
            drawn = on_background(icons[numbers, 0], BACKGROUND_COLOURS[colours]) * 2 - 1
            return self.world.pictures(torch.cat([self.world.decoder.encode(part) for part in drawn.split(64)]))

    def features(self, pictures: Tensor) -> Array:
        """The judge's [B, D]."""
        return self.world.features(pictures).double().numpy()

    def measured(self, pictures: Tensor) -> Measured:
        """Of pictures of the held-out subjects."""
        scores = self.world.judge.score(pictures, self.words).double().numpy().reshape(-1, self.pictures)
        return Measured(self.features(pictures).reshape(*scores.shape, -1), scores, pictures)

    def student(self, network: TinyUNet) -> Measured:
        """Of what a student draws of them."""
        return self.measured(self.fast(network, self.words, self.noise))


# ----------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Run:
    """One way's curve over pictures seen, and what it draws at its end."""

    points: list[dict[str, float]]
    end: Measured

    @property
    def pictures(self) -> int:
        """That the run has drawn: more than asked for, where it was longer before."""
        return int(self.points[-1]["pictures"])

    def reached(self, judge: float) -> float | None:
        """After how many pictures ``KEPT`` of the look are kept at that score of the judge; None if never."""
        wanted = (point["pictures"] for point in self.points if point["kept"] >= KEPT and point["judge"] >= judge - TOLERANCE)
        return next(wanted, None)


def followed(scale: Scale, styled: TinyUNet, way: Way, work: Path, every: int, say: Say) -> Run:
    """Distil by ``way``, or go on; the curve is kept beside the run."""
    path = work / f"curve {way.start or 'cold'} {way.seed}.jsonl"

    def look(network: TinyUNet, pictures: int) -> None:
        seen = scale.student(network)
        point = {"pictures": pictures, "kept": scale.look.kept(seen.features), "judge": float(seen.scores.mean())}
        say(f"{way.start or 'cold'} {way.seed}: {pictures} pictures, kept {point['kept']:.2f}, judge {point['judge']:.2f}")
        before = [each for each in read_lines(path, "pictures") if each["pictures"] < pictures]
        lines = "".join(json.dumps(each) + "\n" for each in [*before, point])
        write_atomically(path, lambda part: part.write_text(lines, encoding="utf-8"))

    made = distil_styled(scale.world, styled, way, work, look, every, say)
    return Run(read_lines(path, "pictures"), scale.student(made))


def ratio(warm: list[Run], cold: list[Run], judge: float) -> Claim:
    """Pictures to get there, warm over cold, over seeds.

    A cold run that never does is counted with all its pictures, so that the ratio is at most that; a warm one makes it infinite.
    A start that is there already counts as one picture.
    """
    values = []
    for first, second in zip(warm, cold, strict=True):
        there, then = first.reached(judge), second.reached(judge)
        values.append(float("inf") if there is None else max(there, 1.0) / (then or second.pictures))
    return mean_of_seeds(values) if np.isfinite(values).all() else Claim(float("inf"), float("nan"), float("nan"))


def row(name: str, scale: Scale, measured: Measured, steps: int, pictures: int) -> dict[str, Any]:
    """One line of the table; intervals by subject."""
    kept = bootstrap(lambda index: scale.look.kept(measured.features, index), len(measured.scores))
    judge = bootstrap(lambda index: float(measured.scores[index].mean()), len(measured.scores))
    return {
        "way": name, "steps": steps, "pictures drawn in learning": pictures, "look kept": round(kept.value, 2),
        "95 %": f"{kept.lo:.2f} to {kept.hi:.2f}", "judge": round(judge.value, 2),
        "95 % of it": f"{judge.lo:.2f} to {judge.hi:.2f}",
    }  # fmt: skip


def run(
    quick: bool = False, plot: Path | None = None, say: Callable[[str], None] = print, work: Path | None = None,
    seeds: int | None = None,
) -> Figures:  # fmt: skip
    """Learn the look, make its students, measure, print, draw.

    Raises:
        RuntimeError: The icons can't be fetched.
        ValueError: ``work`` holds other runs.
    """
    if work is None:
        with tempfile.TemporaryDirectory() as folder:
            return run(quick, plot, say, Path(folder), seeds)
    plan = Plan.of(quick)
    plan = replace(plan, seeds=seeds or plan.seeds)
    world = World()
    icons = fetch_icons(work)
    taught = StyledPictures(world, icons)
    lora = teach_style(world, taught, plan.style, work, say)
    world = World()
    styled = with_lora(load_unet("teacher"), lora)
    scale = Scale(world, icons, styled, plan, work)
    say(f"the look is told from plain pictures in {scale.look.told_apart():.0%}")
    warm = [followed(scale, styled, Way(START, plan.warm, seed), work, plan.every, say) for seed in range(plan.seeds)]
    cold = [followed(scale, styled, Way("", plan.cold, seed), work, plan.every, say) for seed in range(plan.seeds)]
    lcm = consistency(world, styled, taught, plan.warm, work, say)
    habit = with_lora(load_unet(f"student_{START}"), lora)
    drawn = {
        "slow, without the LoRA": (scale.plain, 2 * SLOW_STEPS, 0),
        "slow, with it": (scale.styled, 2 * SLOW_STEPS, 0),
        "the slow model in two steps": (scale.student(styled), FAST_STEPS, 0),
        "the LoRA put on the student (today's habit)": (scale.student(habit), FAST_STEPS, 0),
        "consistency distillation (LCM)": (scale.student(lcm), FAST_STEPS, plan.warm),
        "SiD from the teacher": (together([r.end for r in cold]), FAST_STEPS, cold[0].pictures),
        "SiD from the student": (together([r.end for r in warm]), FAST_STEPS, warm[0].pictures),
    }  # fmt: skip
    figures = summary(plan, scale, drawn, warm, cold)
    figures.show()
    if plot:
        from .style_plot import draw_plot

        draw_plot(figures, {name: measured.shown for name, (measured, *_rest) in drawn.items()}, plot)
        say(f"plot: {plot}")
    return figures


def together(measured: list[Measured]) -> Measured:
    """Several seeds' pictures of each subject side by side; the first seed's are shown."""
    features, scores = (np.concatenate([getattr(m, name) for m in measured], axis=1) for name in ("features", "scores"))
    return Measured(features, scores, measured[0].shown)


def summary(
    plan: Plan, scale: Scale, drawn: dict[str, tuple[Measured, int, int]], warm: list[Run], cold: list[Run]
) -> Figures:
    """Table, claims and curves."""
    judge, last = float(scale.styled.scores.mean()), drawn["SiD from the student"][0]
    settings = {**vars(plan), "start": START, "kept": KEPT, "tolerance": TOLERANCE, "told apart": scale.look.told_apart()}
    figures = Figures("style", settings)
    figures.rows = [row(name, scale, *line) for name, line in drawn.items()]
    habit = drawn["the LoRA put on the student (today's habit)"][0]
    figures.claims = {
        "style_kept": bootstrap(lambda i: scale.look.kept(last.features, i), len(last.scores)),
        "style_judge_difference": minus(last, scale.styled),
        "style_judge_over_habit": minus(last, habit),
        "style_judge_over_cold": minus(last, drawn["SiD from the teacher"][0]),
        "warm_start_ratio": ratio(warm, cold, judge),
    }
    figures.findings = {
        "slow judge": judge, "warm": [r.points for r in warm], "cold": [r.points for r in cold],
        "reached": {"warm": [r.reached(judge) for r in warm], "cold": [r.reached(judge) for r in cold]},
    }  # fmt: skip
    return figures


def minus(first: Measured, second: Measured) -> Claim:
    """The difference of the judge's mean scores, by subject."""
    gain = first.scores.mean(1) - second.scores.mean(1)
    return bootstrap(lambda index: float(gain[index].mean()), len(gain))
