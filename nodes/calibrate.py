"""Calibrations: made with the student on many prompts, kept in a file, loaded again."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge.calibrate import Answers, Artist, CalibrationBar
from ..bridge.drafts import known_preset, schedule_in_words, student_schedule
from ..bridge.drawing import Drawing
from ..bridge.fingerprints import model_fingerprint, model_name
from ..bridge.pixels import as_pictures
from ..bridge.progress import shown
from ..bridge.scoring import fresh_scores
from ..charts.calibration import chart
from ..gate import calibrate as core
from ..gate import calibration as files
from ..gate.calibration import Calibration as CalibrationData
from ..gate.calibration import Maker
from ..oracles.base import Oracle as OracleBase
from ..oracles.base import remarks
from . import folders, types
from .folders import gather_prompts, prompt_path
from .types import CATEGORY, Calibration, Oracle


def _optional(widget: Any) -> Any:
    """A shared widget as an optional input."""
    widget.optional = True
    return widget


def _teacher_inputs() -> list[Any]:
    """Who answers every draft, and what to avoid."""
    return [
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
    ]


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
                *_teacher_inputs(),
                io.Boolean.Input(
                    "first_step", default=False, optional=True,
                    tooltip="Score each draft after its first step, too, and tell whether such an early look would pay: one "
                    "evaluation (two above CFG 1) and one decode more a draft.",
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
        cls, prompts: Any = None, preset: Any = None, name: Any = None, sampler_name: Any = None, scheduler: Any = None,
        strategy: Any = None, input_types: Any = None,
    ) -> bool | str:  # fmt: skip
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
            folders.digest(prompt_path(prompts)) if isinstance(prompts, str) else "",
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
        cls, model: Any, clip: Any, vae: Any, oracle: OracleBase, prompts: str, text: str, name: str, max_prompts: int,
        drafts_per_prompt: int, batch_size: int, width: int, height: int, first_seed: int, preset: str, steps: int, cfg: float,
        sampler_name: str = "dpmpp_2m", scheduler: str = "karras", negative_prompt: str = "", teacher: Any = None,
        strategy: str = "refine", rollback: float = 0.6, teacher_steps: int = 20, teacher_cfg: float = 2.0,
        teacher_clip: Any = None, teacher_vae: Any = None, first_step: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        lines, path = gather_prompts(prompts, text, max_prompts), folders.calibration_file(name)
        drawing = Drawing(steps, cfg, sampler_name, scheduler, first_seed)
        preset = known_preset(model, preset)  # the calibration names the preset that "auto" took, as drafts do
        _, sampler, sigmas = student_schedule(model, preset, drawing, width * height / 256)
        second = None
        if teacher is not None:
            answer = Drawing(teacher_steps, teacher_cfg, sampler_name, scheduler, first_seed)
            share = (len(sigmas) - 1) / (len(sigmas) - 1 + teacher_steps)
            second = Answers(teacher, teacher_clip, teacher_vae, strategy, rollback, answer, share)
        held = _held(name)
        left = core.tasks_left(held, lines, drafts_per_prompt)
        by = second.maker() if second else Maker()
        if second is None and held is not None and not left:
            by = held.teacher  # it has all its pairs, so nobody asked for the teacher, who therefore can't be compared
        blank = CalibrationData(
            (), oracle.fingerprint(), oracle.name, student=Maker(model_name(model), model_fingerprint(model)),
            schedule=schedule_in_words(preset, sampler, sigmas, cfg), teacher=by, name=path.stem,
            settings={
                "size": f"{width}x{height}", "first_seed": first_seed, "batch_size": batch_size,
                "prompts": "typed" if text.strip() else prompts,
                "negative_prompt": negative_prompt if cfg != 1 or by != Maker() else "",
                **({"first_step": "scored", "steps": len(sigmas) - 1} if first_step else {}),
            },
        )  # fmt: skip
        bar = CalibrationBar(len(held) if held else 0, (len(held) if held else 0) + len(left))
        artist = Artist(model, clip, vae, negative_prompt, (width, height), preset, drawing, bar, second)

        said: list[str] = []

        def score(images: Tensor, of: list[str]) -> list[float]:
            if not said and (remark := remarks(oracle, list(as_pictures(images)), of)):
                said.append(remark)
            return fresh_scores(oracle, images, of)

        try:
            result = core.calibrate(
                artist, score, lines, path, blank, drafts_per_prompt=drafts_per_prompt, batch=batch_size, progress=bar.done,
                first=artist.first_step if first_step else None,
            )  # fmt: skip
        finally:
            folders.written(path)
        words = "\n\n".join([files.report(result), *said])
        brief = " ".join([words.splitlines()[0], *said])
        return io.NodeOutput(result, words, chart(result), ui={"text": [words], **shown(brief)})


class ApprenticeLoadCalibration(io.ComfyNode):
    """A calibration from its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = list(folders.known_calibrations())
        return io.Schema(
            node_id="ApprenticeLoadCalibration",
            display_name="Load Calibration",
            category=CATEGORY,
            description="A calibration that was saved before, or one of the published ones: the official percentiles of LCM-SDXL "
            "and SDXL-Turbo with ImageReward.",
            inputs=[
                io.Combo.Input(
                    "name", options=names, default=names[0], tooltip="Files in models/calibrations, then those shipped."
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
        listed = folders.known_calibrations()
        return not isinstance(name, str) or name in listed or f"There is no calibration '{name}'; choose: {', '.join(listed)}."

    @classmethod
    def fingerprint_inputs(cls, name: Any = None, **_: Any) -> str:
        """Load again if the file has changed."""
        path = folders.known_calibrations().get(name)
        return folders.digest(path) if path else ""

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        listed = folders.known_calibrations()
        if name not in listed:
            raise ValueError(f"There is no calibration '{name}'; choose: {', '.join(listed)}.")
        result = files.load(listed[name])
        return io.NodeOutput(result, files.report(result))
