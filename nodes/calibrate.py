"""Calibrations: made with the student on many prompts, kept in a file, loaded again."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge.drafts import draw_drafts, schedule_in_words, student_schedule
from ..bridge.drawing import Drawing
from ..bridge.fingerprints import model_fingerprint, model_name
from ..bridge.memory import on_device
from ..bridge.pixels import as_pictures, to_pixels
from ..bridge.progress import show_text, step_reports
from ..bridge.prompts import join
from ..bridge.teacher import REGENERATE, improve
from ..charts.calibration import chart
from ..gate import calibrate as core
from ..gate import calibration as files
from ..gate.calibration import Calibration as CalibrationData
from ..gate.calibration import Maker
from ..oracles.base import Oracle as OracleBase
from ..oracles.base import remarks
from . import folders, types
from .types import CATEGORY, Calibration, Oracle


@dataclass
class _Bar:
    """One progress bar over the whole calibration, with previews and an estimate of the time that is left."""

    held: int
    wanted: int
    started: float = 0.0
    at_start: int = 0
    batch: int = 0

    def __post_init__(self) -> None:
        self.started, self.at_start = time.monotonic(), self.held
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
        pace = (time.monotonic() - self.started) / max(held - self.at_start, 1)
        left = pace * (wanted - held)
        estimate = f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"
        show_text(f"{held} of {wanted} drafts" + (f", {estimate}" if held < wanted else ""))

    def _show(self, part: float, preview: Any = None) -> None:
        # ComfyUI raises its interruption out of here: within a step, with everything up to the last batch on disk.
        self._bar.update_absolute(round(100 * (self.held + part * self.batch)), self.wanted * 100, preview)


@dataclass
class _Artist:
    """Draws batches for ``core.calibrate``: drafts exactly as ApprenticeStudentSampler, and the teacher's answer to each.

    The noise of a batch is that of seed + (drafts made before), so that a run that was stopped goes on as if it hadn't been.
    """

    model: Any
    clip: Any
    vae: Any
    negative: str
    size: tuple[int, int]
    preset: str
    drawing: Drawing
    bar: _Bar
    teacher: _Teacher | None = None

    def __call__(self, tasks: Any, held: int) -> tuple[Tensor, Tensor | None]:
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

    def _empty(self, count: int) -> dict[str, Tensor]:
        """As the stock empty latent; the sampler fits the channels."""
        cell = int(self.vae.spacial_compression_encode())
        width, height = self.size
        device = comfy.model_management.intermediate_device()
        return {"samples": torch.zeros([count, 4, height // cell, width // cell], device=device)}


@dataclass
class _Teacher:
    """How the teacher answers a batch of drafts: exactly as ApprenticeTeacher would if all were rejected."""

    model: Any
    clip: Any
    vae: Any
    strategy: str
    rollback: float
    drawing: Drawing
    starts_at: float

    def improved(self, artist: _Artist, drafts: dict[str, Any], prompts: list[str], seed: int) -> dict[str, Any]:
        clip = self.clip or artist.clip
        drawing = replace(self.drawing, seed=seed if self.strategy == REGENERATE else (seed + 1) % 2**64)
        return improve(
            self.model, encode(clip, prompts), encode(clip, [artist.negative]), drafts, range(len(prompts)), self.strategy,
            self.rollback, drawing, 0, (artist.vae if self.vae else None, self.vae),
            artist.bar.part(self.model, self.starts_at, 1 - self.starts_at),
        )  # fmt: skip

    def maker(self) -> Maker:
        d = self.drawing
        how = f"{self.strategy} at rollback {self.rollback:g}" if self.strategy != REGENERATE else self.strategy
        settings = f"{how}, {d.steps} steps of {d.sampler} {d.scheduler}, CFG {d.cfg:g}"
        return Maker(model_name(self.model), model_fingerprint(self.model), settings)


def encode(clip: Any, prompts: list[str]) -> Any:
    """A conditioning with one row a prompt."""
    return join([clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts])


def decode(vae: Any, latent: dict[str, Any]) -> Tensor:
    """Pictures [B, H, W, C] as the stock VAE Decode makes them."""
    images = to_pixels(vae, latent["samples"])
    # In the judge's memory layout, so that the oracle's scores are the judge's to the last bit.
    return images.reshape(-1, *images.shape[-3:]).contiguous()


def gather_prompts(choice: str, text: str, limit: int) -> list[str]:
    """The typed prompts, or else those of the chosen file.

    Raises:
        ValueError: The file is not there or has no prompts.
    """
    if text.strip():
        return core.clean_prompts(text.splitlines(), limit)
    if wrong := folders.missing_prompts(choice):
        raise ValueError(wrong)
    return core.read_prompts(_prompt_path(choice), limit)


def _prompt_path(choice: str) -> Path:
    return core.BUNDLED if choice == folders.BUNDLED else Path(folder_paths.get_input_directory()) / choice


def _optional(widget: Any) -> Any:
    """A shared widget as an optional input."""
    widget.optional = True
    return widget


def _held(name: str) -> CalibrationData | None:
    path = folders.calibration_file(name)
    return files.load(path) if path.exists() else None


class ApprenticeCalibrate(io.ComfyNode):
    """Draws with the student on many prompts and remembers the scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeCalibrate",
            display_name="Calibrate",
            category=CATEGORY,
            description="Draws drafts on a list of prompts, scores them, and keeps the scores in models/calibrations, so that a "
            "percentile means the same in every batch. Stop it whenever you like: the next run goes on where it was.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The student."),
                io.Clip.Input("clip", tooltip="The student's text encoder."),
                io.Vae.Input("vae", tooltip="The student's VAE."),
                Oracle.Input("oracle", tooltip="Who judges; the same as in the graph that uses the calibration."),
                io.Combo.Input(
                    "prompts", options=folders.prompt_files(), default=folders.BUNDLED,
                    tooltip="A .txt (one prompt a line) or .csv (a column called caption, prompt or text) in ComfyUI's input "
                    "folder, or the 200 bundled prompts of the tiny world.",
                ),  # fmt: skip
                io.String.Input(
                    "text", multiline=True, default="", tooltip="Prompts, one a line. If there are any, no file is read."
                ),
                io.String.Input(
                    "name", default="my calibration",
                    tooltip="The file in models/calibrations. If it is there, what it lacks is added.",
                ),  # fmt: skip
                io.Int.Input(
                    "max_prompts", default=0, min=0, max=1000000, tooltip="Take only the first so many prompts; 0 for all."
                ),
                io.Int.Input(
                    "drafts_per_prompt", default=1, min=1, max=1000,
                    tooltip="With 2 or more every prompt gets a baseline of its own, for expected gain.",
                ),  # fmt: skip
                io.Int.Input(
                    "batch_size", default=8, min=1, max=4096, tooltip="Drafts at a time. The file is saved after every batch."
                ),
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width of the drafts."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height of the drafts."),
                io.Int.Input(
                    "first_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF,
                    tooltip="Decides all noise: a batch is drawn with this plus the number of drafts made before it.",
                ),  # fmt: skip
                types.preset(),
                types.student_steps(),
                types.cfg("cfg", 1.0, "student"),
                types.sampler_name(optional=True),
                types.scheduler(optional=True),
                io.String.Input(
                    "negative_prompt", default="", optional=True, tooltip="What to avoid; without effect on a student at CFG 1."
                ),
                io.Model.Input(
                    "teacher", optional=True, lazy=True,
                    tooltip="The teacher answers every draft, which guaranteed and expected gain need. Costs its full time.",
                ),  # fmt: skip
                _optional(types.strategy()),
                _optional(types.rollback()),
                _optional(types.teacher_steps("teacher_steps")),
                _optional(types.cfg("teacher_cfg", 2.0, "teacher")),
                io.Clip.Input("teacher_clip", optional=True, lazy=True, tooltip="The teacher's text encoder, if it is another."),
                io.Vae.Input(
                    "teacher_vae", optional=True, lazy=True,
                    tooltip="The teacher's VAE, where it belongs to another family than the student.",
                ),  # fmt: skip
            ],
            outputs=[
                Calibration.Output("calibration", display_name="calibration", tooltip="The scores; the judge wants it."),
                io.String.Output("report", display_name="report", tooltip="What was measured, in words and a table."),
                io.Image.Output("histogram", display_name="histogram", tooltip="How the drafts scored, and the percentiles."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        prompts: Any = None,
        preset: Any = None,
        name: Any = None,
        sampler_name: Any = None,
        scheduler: Any = None,
        strategy: Any = None,
        input_types: Any = None,
    ) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        wrong = folders.check_run(name, "calibration", prompts)
        return wrong or types.check_inputs(
            cls, input_types, preset=preset, sampler_name=sampler_name, scheduler=scheduler, strategy=strategy
        )

    @classmethod
    def fingerprint_inputs(cls, name: Any = None, prompts: Any = None, **_: Any) -> Any:
        """Run again if somebody changed the prompt file, or changed or deleted the calibration."""
        return [
            folders.generation(folders.calibration_file(name)) if isinstance(name, str) else 0,
            folders.digest(_prompt_path(prompts)) if isinstance(prompts, str) else "",
        ]

    @classmethod
    def check_lazy_status(
        cls, name: str, prompts: str, text: str, max_prompts: int, drafts_per_prompt: int, **inputs: Any
    ) -> list[str]:
        """Nothing of the teacher is loaded for a calibration that has all of its pairs.

        An input that is not connected is not in ``inputs`` and must not be asked for.
        """
        wanted: list[str] = [key for key in ("teacher", "teacher_clip", "teacher_vae") if key in inputs and inputs[key] is None]
        held = _held(name)
        left = core.tasks_left(held, gather_prompts(prompts, text, max_prompts), drafts_per_prompt)
        return wanted if left or held is None or not held.teacher_scores else []

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        oracle: OracleBase,
        prompts: str,
        text: str,
        name: str,
        max_prompts: int,
        drafts_per_prompt: int,
        batch_size: int,
        width: int,
        height: int,
        first_seed: int,
        preset: str,
        steps: int,
        cfg: float,
        sampler_name: str = "dpmpp_2m",
        scheduler: str = "karras",
        negative_prompt: str = "",
        teacher: Any = None,
        strategy: str = "refine",
        rollback: float = 0.6,
        teacher_steps: int = 20,
        teacher_cfg: float = 2.0,
        teacher_clip: Any = None,
        teacher_vae: Any = None,
    ) -> io.NodeOutput:
        lines, path = gather_prompts(prompts, text, max_prompts), folders.calibration_file(name)
        drawing = Drawing(steps, cfg, sampler_name, scheduler, first_seed)
        _, sampler, sigmas = student_schedule(model, preset, drawing, width * height / 256)
        second = None
        if teacher is not None:
            answer = Drawing(teacher_steps, teacher_cfg, sampler_name, scheduler, first_seed)
            share = (len(sigmas) - 1) / (len(sigmas) - 1 + teacher_steps)
            second = _Teacher(teacher, teacher_clip, teacher_vae, strategy, rollback, answer, share)
        held = _held(name)
        left = core.tasks_left(held, lines, drafts_per_prompt)
        by = second.maker() if second else Maker()
        if second is None and held is not None and not left:
            by = held.teacher  # it has all its pairs, so nobody asked for the teacher, who therefore can't be compared
        blank = CalibrationData(
            (), oracle.fingerprint(), oracle.name, student=Maker(model_name(model), model_fingerprint(model)),
            schedule=schedule_in_words(preset, sampler, sigmas, cfg), teacher=by, name=path.stem,
            settings={
                "size": f"{width}x{height}", "first_seed": first_seed, "prompts": "typed" if text.strip() else prompts,
                "negative_prompt": negative_prompt if cfg != 1 or by != Maker() else "",
            },
        )  # fmt: skip
        bar = _Bar(len(held) if held else 0, (len(held) if held else 0) + len(left))
        artist = _Artist(model, clip, vae, negative_prompt, (width, height), preset, drawing, bar, second)

        said: list[str] = []

        def score(images: Tensor, of: list[str]) -> list[float]:
            if not said and (remark := remarks(oracle, list(as_pictures(images)), of)):
                said.append(remark)
            with on_device(oracle.network):
                return list(oracle.score(as_pictures(images), of).tolist())

        try:
            result = core.calibrate(
                artist, score, lines, path, blank, drafts_per_prompt=drafts_per_prompt, batch=batch_size, progress=bar.done
            )
        finally:
            folders.written(path)
        words = "\n\n".join([files.report(result), *said])
        show_text(" ".join([words.splitlines()[0], *said]))
        return io.NodeOutput(result, words, chart(result), ui={"text": [words]})


class ApprenticeLoadCalibration(io.ComfyNode):
    """A calibration from its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        known = list(folders.known_calibrations())
        return io.Schema(
            node_id="ApprenticeLoadCalibration",
            display_name="Load Calibration",
            category=CATEGORY,
            description="A calibration that was saved before, or one of the published ones: the official percentiles of LCM-SDXL "
            "and SDXL-Turbo with ImageReward.",
            inputs=[
                io.Combo.Input(
                    "name", options=known, default=known[0], tooltip="Files in models/calibrations, then those shipped."
                )
            ],
            outputs=[
                Calibration.Output("calibration", display_name="calibration", tooltip="The scores; the judge wants it."),
                io.String.Output("report", display_name="report", tooltip="What it holds, in words and a table."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        known = folders.known_calibrations()
        return not isinstance(name, str) or name in known or f"There is no calibration '{name}'; choose: {', '.join(known)}."

    @classmethod
    def fingerprint_inputs(cls, name: Any = None, **_: Any) -> str:
        """Load again if the file has changed."""
        path = folders.known_calibrations().get(name)
        return folders.digest(path) if path else ""

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        known = folders.known_calibrations()
        if name not in known:
            raise ValueError(f"There is no calibration '{name}'; choose: {', '.join(known)}.")
        result = files.load(known[name])
        return io.NodeOutput(result, files.report(result))
