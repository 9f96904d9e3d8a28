"""Pictures for a calibration: drafts as Student Sampler draws them, answers as Teacher gives them, one bar over both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..gate.calibration import Maker
from ..training.progress import Clock
from .drafts import draw_drafts, plan_drafts
from .drawing import Drawing
from .fingerprints import model_fingerprint, model_name
from .pixels import decode
from .progress import show_text, step_reports
from .prompts import encode
from .teacher import REGENERATE, improve


@dataclass
class CalibrationBar:
    """One progress bar over the whole calibration, with previews and an estimate of the time that is left."""

    held: int
    wanted: int
    batch: int = 0

    def __post_init__(self) -> None:
        self._clock = Clock()
        self._clock.step(self.held)
        self._bar = comfy.utils.ProgressBar(self.wanted * 100)
        self._show(0.0)

    def batch_of(self, pictures: int) -> None:
        """A batch begins."""
        self.batch = pictures

    def part(self, model: Any, start: float, length: float) -> Any:
        """A preview callback for a part of a batch's work: from ``start`` on, ``length`` long, where the batch is 1."""
        return step_reports(model, lambda step, total, preview: self._show(start + length * step / total, preview))

    def done(self, held: int, wanted: int) -> None:
        """A batch is scored and saved."""
        self.held, self.wanted = held, wanted
        self._show(0.0)
        show_text(f"{held} of {wanted} drafts" + (f", {self._clock.left(held, wanted)}" if held < wanted else ""))

    def _show(self, part: float, preview: Any = None) -> None:
        # ComfyUI raises its interruption out of here: within a step, with everything up to the last batch on disk.
        self._bar.update_absolute(round(100 * (self.held + part * self.batch)), self.wanted * 100, preview)


@dataclass
class Artist:
    """Draws batches for ``gate.calibrate``: drafts exactly as ApprenticeStudentSampler, and the teacher's answer to each.

    The noise of a batch is that of seed + (drafts made before), so that a run that was stopped goes on as if it hadn't been.
    """

    model: Any
    clip: Any
    vae: Any
    negative: str
    size: tuple[int, int]
    preset: str
    drawing: Drawing
    bar: CalibrationBar
    teacher: Answers | None = None

    def __call__(self, tasks: Any, held: int) -> tuple[Tensor, Tensor | None]:
        """The pictures [B, H, W, C] of these tasks, after ``held`` others, and the teacher's answers, where there is one."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.batch_of(len(tasks))
        prompts = [task.prompt for task in tasks]
        drawing = replace(self.drawing, seed=(self.drawing.seed + held) % 2**64)
        drafts = draw_drafts(
            self.model, encode(self.clip, prompts), encode(self.clip, [self.negative]), self._empty(len(tasks)), self.preset,
            drawing, self.bar.part(self.model, 0.0, 1.0 if self.teacher is None else self.teacher.starts_at),
        )  # fmt: skip
        images = decode(self.vae, drafts)
        if self.teacher is None:
            return images, None
        return images, decode(self.vae, self.teacher.improved(self, drafts, prompts, drawing.seed))

    def first_step(self, tasks: Any, held: int) -> Tensor:
        """What the same drafts are after their first step: the network's guess at the picture there, [B, H, W, 3]."""
        prompts = [task.prompt for task in tasks]
        drawing = replace(self.drawing, seed=(self.drawing.seed + held) % 2**64)
        plan = plan_drafts(self.model, self._empty(len(tasks)), self.preset, drawing)
        plan = replace(plan, sigmas=torch.cat([plan.sigmas[:1], plan.sigmas.new_zeros(1)]))
        samples, _ = plan.draw(
            range(len(tasks)), drawing.first_noise(plan.latent), drawing.seed, encode(self.clip, prompts),
            encode(self.clip, [self.negative]), self.bar.part(self.model, 0.0, 0.0),
        )  # fmt: skip
        return decode(self.vae, {"samples": samples})

    def _empty(self, count: int) -> dict[str, Tensor]:
        """As the stock empty latent; the sampler fits the channels."""
        cell = int(self.vae.spacial_compression_encode())
        width, height = self.size
        device = comfy.model_management.intermediate_device()
        return {"samples": torch.zeros([count, 4, height // cell, width // cell], device=device)}


@dataclass
class Answers:
    """How the teacher answers a batch of drafts: exactly as ApprenticeTeacher would if all were rejected."""

    model: Any
    clip: Any
    vae: Any
    strategy: str
    rollback: float
    drawing: Drawing
    starts_at: float

    def improved(self, artist: Artist, drafts: dict[str, Any], prompts: list[str], seed: int) -> dict[str, Any]:
        """The teacher's latents for every draft."""
        clip = self.clip or artist.clip
        drawing = replace(self.drawing, seed=seed if self.strategy == REGENERATE else (seed + 1) % 2**64)
        return improve(
            self.model, encode(clip, prompts), encode(clip, [artist.negative]), drafts, range(len(prompts)), self.strategy,
            self.rollback, drawing, 0, (artist.vae if self.vae else None, self.vae),
            artist.bar.part(self.model, self.starts_at, 1 - self.starts_at),
        )  # fmt: skip

    def maker(self) -> Maker:
        """Who answered, and how, for the calibration's record."""
        d = self.drawing
        how = f"{self.strategy} at rollback {self.rollback:g}" if self.strategy != REGENERATE else self.strategy
        settings = f"{how}, {d.steps} steps of {d.sampler} {d.scheduler}, CFG {d.cfg:g}"
        return Maker(model_name(self.model), model_fingerprint(self.model), settings)
