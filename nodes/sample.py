"""The student that drafts and the teacher that improves."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bridge.drafts import chosen_preset, draw_drafts
from ..bridge.drawing import Drawing
from ..bridge.fast_decode import fast_decode
from ..bridge.info import INFO, family_of
from ..bridge.latents import family
from ..bridge.progress import shown
from ..bridge.teacher import improve, teacher_evaluations
from ..gate.verdict import Verdict as VerdictData
from ..samplers.presets import AUTO
from . import types
from .types import CATEGORY, Verdict


class ApprenticeStudentSampler(io.ComfyNode):
    """Drafts, at the noise levels that the student was made for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeStudentSampler",
            display_name="Student Sampler",
            category=CATEGORY,
            description="Draws drafts with a few-step student, at exactly the noise levels it was distilled for.",
            inputs=[
                io.Model.Input("model", tooltip="The student: a Turbo, LCM, Lightning, Hyper, DMD2… model, or the tiny world's."),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input("negative", tooltip="What to avoid; without effect at CFG 1."),
                io.Latent.Input("latent_image", tooltip="An empty latent, or an encoded picture to edit; masks are kept."),
                types.seed("Decides the noise. The same seed gives the same drafts."),
                types.preset(),
                types.student_steps(),
                types.cfg("cfg", 1.0, "student"),
                types.denoise(),
                types.sampler_name(optional=True),
                types.scheduler(optional=True),
                *types.connected(),
            ],
            outputs=[io.Latent.Output("drafts", display_name="drafts", tooltip="A LATENT that any stock node takes.")],
        )

    @classmethod
    def validate_inputs(
        cls, preset: Any = None, sampler_name: Any = None, scheduler: Any = None, input_types: Any = None
    ) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        return types.check_inputs(cls, input_types, preset=preset, sampler_name=sampler_name, scheduler=scheduler)

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, latent_image: dict[str, Any], seed: int, preset: str, steps: int,
        cfg: float, denoise: float, sampler_name: str = "dpmpp_2m", scheduler: str = "karras", **given: Any,
    ) -> io.NodeOutput:  # fmt: skip
        drawing = Drawing(steps, cfg, sampler_name, scheduler, seed, denoise).connected(**given)
        chosen = preset == AUTO and not drawing.names_no_preset()
        result = shown("auto chose {}, as {}.".format(*chosen_preset(model))) if chosen else None
        return io.NodeOutput(draw_drafts(model, positive, negative, latent_image, preset, drawing), ui=result)


class ApprenticeFastDecode(io.ComfyNode):
    """A quick look at latents, for a judge."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeFastDecode",
            display_name="Fast Decode (for judging)",
            category=CATEGORY,
            description="Decodes with ComfyUI's own preview decoder: TAESD where its file is in models/vae_approx, else the "
            "linear map that previews use. Cheaper than the VAE by far, but by the linear map scores keep their order only "
            "loosely.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the latents belong to; it is not run."),
                io.Latent.Input("samples", tooltip="The latents."),
            ],
            outputs=[io.Image.Output("images", display_name="IMAGE", tooltip="Full-size pictures, softer than the VAE's.")],
        )

    @classmethod
    def execute(cls, model: Any, samples: dict[str, Any]) -> io.NodeOutput:
        return io.NodeOutput(fast_decode(model, samples))


class _TeacherNode(io.ComfyNode):
    """What has ``types.teacher_settings``."""

    @classmethod
    def validate_inputs(
        cls, strategy: Any = None, sampler_name: Any = None, scheduler: Any = None, input_types: Any = None
    ) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        return types.check_inputs(cls, input_types, strategy=strategy, sampler_name=sampler_name, scheduler=scheduler)


class ApprenticeTeacherCost(_TeacherNode):
    """What the teacher will cost, before it is loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeTeacherCost",
            display_name="Teacher Cost",
            category=CATEGORY,
            description="Network evaluations that the teacher will spend on one rejected draft, for Judge's budget. It runs no "
            "model.",
            inputs=[
                io.Model.Input("model", tooltip="A model with the teacher's noise levels: the student will do, in one family."),
                *types.teacher_settings(),
                *types.connected()[:3],
            ],
            outputs=[io.Float.Output("nfe", display_name="nfe", tooltip="Evaluations a picture; for Judge's teacher_nfe.")],
        )

    @classmethod
    def execute(
        cls, model: Any, strategy: str, rollback: float, steps: int, cfg: float, sampler_name: str, scheduler: str,
        **given: Any,
    ) -> io.NodeOutput:  # fmt: skip
        drawing = Drawing(steps, cfg, sampler_name, scheduler, 0).connected(**given)
        return io.NodeOutput(teacher_evaluations(model, strategy, rollback, drawing))


class ApprenticeTeacher(_TeacherNode):
    """The slow model, for rejected drafts only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeTeacher",
            display_name="Teacher",
            category=CATEGORY,
            description="Refines or redraws the drafts that the judge rejected. When nothing was rejected, the teacher and "
            "all that is before it is not even loaded.",
            inputs=[
                Verdict.Input("verdict", tooltip="The judge's verdict on the drafts."),
                io.Latent.Input("drafts", tooltip="The student's drafts."),
                io.Model.Input("model", lazy=True, tooltip="The teacher. Loaded only if a draft was rejected."),
                io.Conditioning.Input("positive", lazy=True, tooltip="What to draw, encoded by the teacher's CLIP."),
                io.Conditioning.Input("negative", lazy=True, tooltip="What to avoid, encoded by the teacher's CLIP."),
                *types.teacher_settings(),
                types.seed("Decides the teacher's noise; each picture's depends on its place in the batch alone."),
                io.Int.Input(
                    "max_batch", default=0, min=0, max=4096, optional=True,
                    tooltip="At most so many rejected drafts at a time; 0 for all. Changes memory, not pictures.",
                ),  # fmt: skip
                io.Vae.Input(
                    "vae", optional=True, lazy=True,
                    tooltip="The student's VAE: only where the teacher belongs to another family (SD1.5 and SDXL).",
                ),  # fmt: skip
                io.Vae.Input("teacher_vae", optional=True, lazy=True, tooltip="The teacher's VAE, in the same case."),
                *types.connected(lazy=True),
            ],
            outputs=[
                io.Latent.Output("improved", display_name="improved", tooltip="The whole batch; accepted drafts as they were.")
            ],
        )

    @classmethod
    def check_lazy_status(cls, verdict: VerdictData, drafts: dict[str, Any], **inputs: Any) -> list[str]:
        """Ask for the teacher only when there is something to improve, for VAEs only between families, and not for texts in whose
        place there is a guider.

        An input that is not connected is not in ``inputs`` and must not be asked for.
        """

        def missing(*names: str) -> list[str]:
            return [name for name in names if name in inputs and inputs[name] is None]

        if not verdict.rejected or verdict.stopped:
            return []
        texts = () if "guider" in inputs else ("positive", "negative")
        teacher = missing("model", *texts, "sigmas", "sampler", "guider", "noise")
        vaes = missing("vae", "teacher_vae")
        if teacher:  # where nothing is remembered, a second question would load the teacher's file again
            return teacher + (vaes if types.forgets() else [])
        same = inputs.get("model") is None or family_of(drafts) == family(inputs["model"])
        return [] if same else vaes

    @classmethod
    def execute(
        cls, verdict: VerdictData, drafts: dict[str, Any], strategy: str, rollback: float, steps: int, cfg: float,
        sampler_name: str, scheduler: str, seed: int, model: Any = None, positive: Any = None, negative: Any = None,
        max_batch: int = 0, vae: Any = None, teacher_vae: Any = None, **given: Any,
    ) -> io.NodeOutput:  # fmt: skip
        verdict.require_batch(len(drafts["samples"]), "drafts")
        if verdict.stopped:
            return io.NodeOutput(ExecutionBlocker(None), ui=shown(_stopped(verdict)))
        if not verdict.rejected:
            return io.NodeOutput(drafts, ui=shown("Nothing was rejected; the teacher was not needed."))
        drawing = Drawing(steps, cfg, sampler_name, scheduler, seed).connected(**given)
        improved = improve(
            model, positive, negative, drafts, verdict.rejected, strategy, rollback, drawing, max_batch, (vae, teacher_vae)
        )
        return io.NodeOutput(improved, ui=shown(f"{len(verdict.rejected)} of {len(verdict)} {improved[INFO].note}."))


def _stopped(verdict: VerdictData) -> str:
    return (
        f"Stopped after judging: {len(verdict.rejected)} of {len(verdict)} would go to the teacher. Look at the judge's "
        "pictures, switch stop_after_judging off and queue again; only the teacher will run."
    )
