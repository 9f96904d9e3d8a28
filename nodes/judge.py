"""The oracle's verdict on drafts, and on what the teacher made of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge.board import JUDGED, Board, ComparingBoard, baselines_of, calibration_of, draft_keys, pictures_of
from ..bridge.info import info_of, join_info
from ..bridge.latents import decode_rows, replace_rows
from ..bridge.pixels import as_rgb
from ..bridge.progress import shown
from ..bridge.rows import take_latent
from ..bridge.scoring import picture_keys
from ..gate.controller import FileController
from ..gate.decision import Situation, gate_scores, judge, keep_better, limits
from ..gate.gains import remember
from ..gate.overrides import read_overrides
from ..gate.thresholds import Gate
from ..gate.verdict import IMPROVED, summary, table
from ..gate.verdict import Verdict as VerdictData
from ..oracles.base import Oracle as OracleBase
from ..oracles.base import one_prompt_each, remarks
from . import folders, types
from .types import CATEGORY, Calibration, Oracle, Verdict


class ApprenticeJudge(io.ComfyNode):
    """Scores, a threshold, a verdict."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeJudge",
            display_name="Judge",
            category=CATEGORY,
            description="Scores every picture with the oracle and decides which pass. One prompt for all, or a list with one a "
            "picture.",
            is_input_list=True,
            inputs=[
                Oracle.Input("oracle", tooltip="Who judges."),
                io.Image.Input("images", tooltip="The decoded drafts."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the pictures should show."),
                types.threshold(),
                types.value(),
                Calibration.Input(
                    "calibration", optional=True,
                    tooltip="The student's score distribution: for percentile, expected gain and guaranteed.",
                ),  # fmt: skip
                io.Latent.Input("drafts", optional=True, tooltip="Their cost and seed, for budget and report."),
                io.Float.Input(
                    "teacher_nfe", default=40.0, min=0.0, max=100000.0, step=1.0, optional=True,
                    tooltip="For budget: network evaluations of the teacher a picture (steps, times two above CFG 1).",
                ),  # fmt: skip
                types.controller(),
                types.confidence(),
                types.overrides(),
                types.stop_after_judging(),
            ],
            outputs=[
                Verdict.Output("verdict", display_name="verdict", tooltip="Who passed; the teacher wants it."),
                io.String.Output("report", display_name="report", tooltip="The verdict as a table."),
            ],
        )

    @classmethod
    def validate_inputs(cls, threshold: Any = None, overrides: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        threshold, overrides = (value[0] if isinstance(value, list) else value for value in (threshold, overrides))
        checked = types.check_combos(threshold=threshold)
        return types.check_overrides(overrides) if checked is True else checked

    @classmethod
    def fingerprint_inputs(cls, threshold: Any = None, controller: Any = None, **_: Any) -> int:
        """A running judge is served from the cache like any other: the same pictures have the same verdict, and don't count
        twice. It judges again only when somebody else has changed or deleted the controller's file."""
        if not threshold or threshold[0] != "running" or (controller is not None and not controller):
            return 0
        return folders.generation(folders.controller_file(controller[0] if controller else "default"))

    @classmethod
    def execute(
        cls, oracle: list[OracleBase], images: list[Tensor], prompt: list[str], threshold: list[str], value: list[float],
        calibration: list[Any] | None = None, drafts: list[dict[str, Any]] | None = None,
        teacher_nfe: list[float] | None = None, controller: list[str] | None = None, confidence: list[float] | None = None,
        overrides: list[str] | None = None, stop_after_judging: list[bool] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        pictures = [picture for batch in images for picture in batch]
        prompts = one_prompt_each(prompt, len(pictures))
        fingerprint = oracle[0].fingerprint()
        infos = [info_of(latent) for latent in drafts or []]
        info = join_info(infos, len(pictures))
        if calibration:
            if calibration[0].oracle != fingerprint:
                calibration[0].require_oracle(*oracle[0].unit())
            calibration[0].require_student(info.student if info else "", info.schedule if info else "")
        keys = draft_keys(drafts or [], pictures, prompts, fingerprint)
        board = Board(JUDGED, len(pictures))
        cost = sum(info.nfe) / len(info.nfe) if info and info.nfe else None
        situation = Situation(
            prompts, oracle[0].comparable_across_prompts, fingerprint, oracle[0].name, confidence[0] if confidence else 0.9
        )
        name = _controller(threshold[0], len(pictures), controller, fingerprint, info.student if info else "")
        if name:
            situation = replace(situation, keys=picture_keys(pictures, prompts, fingerprint))
        taught = calibration[0] if calibration else None

        def decided(scores: Sequence[float], trial: bool = True) -> Gate:
            running = FileController(folders.controller_file(name), trial) if name else None
            nfe = teacher_nfe[0] if teacher_nfe else 0
            return gate_scores(scores, threshold[0], value[0], taught, cost, nfe, replace(situation, controller=running))

        scores, files = board.scores(
            oracle[0], images, prompts, keys, range(len(pictures)), lambda scores: limits(decided(scores), threshold[0])
        )
        board.remember_origins(keys, drafts or [])
        gate = decided(scores, trial=False)
        if name:
            folders.written(folders.controller_file(name))
        gate = replace(gate, note=f"{gate.note} {board.note}".strip())
        gate = replace(gate, note=f"{gate.note} {remarks(oracle[0], as_rgb(images), prompts)}".strip())
        verdict = judge(
            gate, scores, prompts, oracle=oracle[0].name, fingerprint=fingerprint, mode=threshold[0], value=value[0],
            seeds=[batch.seed for batch in infos if batch for _ in batch.nfe] if info else None, nfe=info.nfe if info else None,
            keys=keys, overrides=read_overrides(overrides[0] if overrides else ""),
            stopped=bool(stop_after_judging and stop_after_judging[0]),
        )  # fmt: skip
        verdict = replace(verdict, student=info.student if info else "", asked=board.asked)
        rows = pictures_of(verdict, gate.accepted, baselines_of(gate, threshold[0], value[0], len(pictures)))
        content = board.whole(
            verdict, [{**row, "draft": file} for row, file in zip(rows, files, strict=True)],
            costs={"student": cost, "teacher": teacher_nfe[0] if teacher_nfe else None},
            calibration=calibration_of(taught), confidence=situation.confidence,
        )  # fmt: skip
        return io.NodeOutput(verdict, table(verdict), ui=shown(summary(verdict), board=content))


def _controller(mode: str, pictures: int, controller: list[str] | None, oracle: str, student: str) -> str:
    """The name of the controller that remembers for this gate; "" where none does.

    A single picture's share is of those before it, by this oracle and student.
    """
    if mode == "running":
        return controller[0] if controller else "default"
    if pictures != 1 or mode not in ("worst share", "percentile"):
        return ""
    return "-".join(("alone", oracle[:8], *([student[:8]] if student else [])))


def _learned(lesson: str, teacher: str, pairs: dict[str, tuple[float, float]]) -> str:
    """Remember what the teacher made of drafts, for Explore; a word where the disk takes no more."""
    try:
        remember(folders.gains_file(), lesson, teacher, pairs)
    except OSError as error:
        return f"What the teacher gained couldn't be remembered ({error.strerror or error})."
    return ""


class ApprenticeKeepBetter(io.ComfyNode):
    """Of draft and improvement, the better."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeKeepBetter",
            display_name="Keep Better",
            category=CATEGORY,
            description="Judges the teacher's pictures too and keeps, of each pair, the one that scores higher. Accepted drafts "
            "pass as they are.",
            inputs=[
                Oracle.Input("oracle", tooltip="Who judges; the same as for the drafts."),
                Verdict.Input("verdict", tooltip="The judge's verdict on the drafts."),
                io.Latent.Input("drafts", tooltip="The student's drafts."),
                io.Latent.Input("improved", tooltip="The teacher's answer."),
                io.Image.Input("draft_images", tooltip="The decoded drafts."),
                io.Image.Input(
                    "improved_images", lazy=not types.forgets(),
                    tooltip="The decoded improvements; decoded only if there are any.",
                ),  # fmt: skip
                types.margin(),
                io.Vae.Input(
                    "vae", optional=True, lazy=not types.forgets(),
                    tooltip="Decodes the improvements of rejected drafts alone. Where it is connected, improved_images is not "
                    "asked for.",
                ),  # fmt: skip
            ],
            outputs=[
                io.Latent.Output("latent", display_name="LATENT", tooltip="The better of each pair."),
                io.Image.Output("images", display_name="IMAGE", tooltip="The better of each pair."),
                Verdict.Output("verdict_after", display_name="verdict", tooltip="What became of each picture, and what it cost."),
            ],
        )

    @classmethod
    def check_lazy_status(cls, verdict: VerdictData, improved_images: Any = None, **inputs: Any) -> list[str]:
        """With nothing rejected, nothing new needs decoding; with a VAE only the rejected are decoded, here."""
        if not verdict.rejected or improved_images is not None:
            return []
        if "vae" in inputs:
            return ["vae"] if inputs["vae"] is None else []
        return ["improved_images"]

    @classmethod
    def execute(
        cls, oracle: OracleBase, verdict: VerdictData, drafts: dict[str, Any], improved: dict[str, Any], draft_images: Tensor,
        margin: float, improved_images: Tensor | None = None, vae: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        verdict.require_batch(len(draft_images), "draft_images")
        rows = verdict.rejected
        before, after = info_of(drafts), info_of(improved)
        spent = after.nfe if after and rows else None
        note = f"The rejected were {after.note}." if after and rows and after.note else ""
        same = before and after and before.mark == after.mark  # Teacher is bypassed, or had no step to take
        if rows and not same and improved_images is None and vae is not None:
            improved_images = decode_rows(vae, improved["samples"], rows)
        board = ComparingBoard(verdict, draft_images)
        board.remember_origins([j.key for j in verdict], [drafts])
        scores: dict[int, float] = {}
        if rows and same:
            scores, spent = dict.fromkeys(rows, math.nan), (0.0,) * len(verdict)
            note = "The improved pictures are the drafts: no teacher has changed them."
        elif rows and improved_images is not None:
            verdict.require_batch(len(improved_images), "improved_images")
            scores = board.compare(oracle, improved_images[rows])
            board.remember_origins([board.rows[row]["improved_key"] for row in rows], [take_latent(improved, rows)])
            remark = remarks(oracle, as_rgb([improved_images[rows]]), [verdict.prompts[row] for row in rows])
            note += f" {remark}" * (remark not in verdict.note) + f" {board.note}" * bool(board.note)
        result = keep_better(
            verdict, scores, margin, spent, before.nfe if before else None, before.seed if before else None, note
        )
        student, teacher = verdict.student or (before.student if before else ""), after.teacher if after and rows else ""
        result = replace(result, student=student, teacher=teacher)
        if verdict.lesson and scores and after:
            pairs = {verdict.judgements[row].key: (verdict.judgements[row].score, score) for row, score in scores.items()}
            how = re.split(r"; |\. ", after.note)[0]  # what comes after it depends on how many were rejected
            result = replace(result, note=f"{result.note} {_learned(verdict.lesson, f'{teacher} {how}', pairs)}".strip())
        chosen = [j.index for j in result if j.decision == IMPROVED]
        latent, images = replace_rows(drafts, improved, draft_images, improved_images, chosen)
        costs = {
            "student": sum(before.nfe) / len(before.nfe) if before and before.nfe else None,
            "teacher": sum(spent[row] for row in rows) / len(rows) if spent and rows else None,
        }
        return io.NodeOutput(latent, images, result, ui=shown(summary(result), board=board.whole_of(result, costs)))
