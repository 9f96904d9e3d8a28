"""The embedded tiny world, and prompts one a picture."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..bridge import tiny_world as loader
from ..bridge.prompts import encode
from .types import CATEGORY, Oracle


class ApprenticeTinyWorld(io.ComfyNode):
    """The built-in family of small models."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeTinyWorld",
            display_name="Tiny World (built-in models)",
            category=CATEGORY,
            description="A small text-to-image family that ships with Apprentice: 64x64 icons such as 'glossy red heart "
            "on blue'. For trying things out, on any machine, without downloads.",
            inputs=[
                io.Combo.Input(
                    "student",
                    options=loader.students(),
                    default=loader.students()[0],
                    tooltip="Which student, distilled from the teacher: 'consistency' draws in 1 to 4 steps.",
                )
            ],
            outputs=[
                io.Model.Output("teacher_model", display_name="teacher", tooltip="The slow model; CFG about 2, 12 to 20 steps."),
                io.Model.Output("student_model", display_name="student", tooltip="The fast model; CFG 1, preset tiny-world."),
                io.Clip.Output("clip", display_name="CLIP", tooltip="Text encoder of both."),
                io.Vae.Output("vae", display_name="VAE", tooltip="Autoencoder of both: 8 pixels a latent cell."),
                Oracle.Output("oracle", display_name="oracle", tooltip="Scores how well a picture fits its prompt."),
                io.ControlNet.Output("control_net", display_name="control net", tooltip="Draws along edges (stock Canny)."),
            ],
        )

    @classmethod
    def validate_inputs(cls, student: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        students = loader.students()
        if not isinstance(student, str) or student in students:
            return True
        return f"The tiny world has no student '{student}'; choose one of: {', '.join(students)}."

    @classmethod
    def execute(cls, student: str) -> io.NodeOutput:
        return io.NodeOutput(
            loader.load_teacher(),
            loader.load_student(student),
            loader.load_clip(),
            loader.load_vae(),
            loader.load_world_oracle(),
            loader.load_control(),
        )


class ApprenticePrompts(io.ComfyNode):
    """A batch in which every picture has a prompt of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticePrompts",
            display_name="Prompts (one a picture)",
            category=CATEGORY,
            description="One prompt a line: picture i of the batch is drawn from, and judged by, line i. Give the count to the "
            "empty latent's batch_size.",
            inputs=[
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="glossy red heart on blue\nflat cat face on yellow",
                    tooltip="One prompt a line; empty lines are skipped.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("conditioning", display_name="CONDITIONING", tooltip="All prompts, one a picture."),
                io.String.Output("prompts", display_name="prompts", is_output_list=True, tooltip="The lines, for the judge."),
                io.Int.Output("count", display_name="count", tooltip="How many lines there are."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        prompts = [line.strip() for line in text.splitlines() if line.strip()] or [""]
        return io.NodeOutput(encode(clip, prompts), prompts, len(prompts))

