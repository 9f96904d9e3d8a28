"""A batch taken apart by its verdict, for an upscaler or detailer of one's own, and put together again."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..bridge.latents import part_of, put_back
from ..bridge.progress import shown
from ..gate.verdict import Verdict as VerdictData
from .types import CATEGORY, Verdict


class ApprenticeSplit(io.ComfyNode):
    """Accepted and rejected pictures as batches of their own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeSplit",
            display_name="Split by Verdict",
            category=CATEGORY,
            description="Takes a batch apart: the accepted pictures and the rejected ones, for an upscaler or detailer of your "
            "own. What comes after an empty part is skipped. Merge by Verdict puts them together again.",
            inputs=[
                Verdict.Input("verdict", tooltip="The verdict of Judge."),
                io.Image.Input("images", optional=True, tooltip="The pictures that were judged."),
                io.Latent.Input("latents", optional=True, tooltip="Their latents, with masks and places kept."),
            ],
            outputs=[
                io.Image.Output("accepted", display_name="accepted", tooltip="The pictures that passed."),
                io.Latent.Output("accepted_latents", display_name="accepted latents", tooltip="Their latents."),
                io.Image.Output("rejected", display_name="rejected", tooltip="The pictures that did not pass."),
                io.Latent.Output("rejected_latents", display_name="rejected latents", tooltip="Their latents."),
                io.String.Output(
                    "rejected_prompts", display_name="rejected prompts",
                    tooltip="What the rejected should show, one a line; for the Prompts node.",
                ),  # fmt: skip
                io.String.Output("accepted_places", display_name="accepted places", tooltip="Their places in the batch, from 0."),
                io.String.Output("rejected_places", display_name="rejected places", tooltip="Likewise of the rejected."),
            ],
        )

    @classmethod
    def execute(cls, verdict: VerdictData, images: Tensor | None = None, latents: dict[str, Any] | None = None) -> io.NodeOutput:
        if images is not None:
            verdict.require_batch(len(images), "images")
        if latents is not None:
            verdict.require_batch(len(latents["samples"]), "latents")
        nothing = ExecutionBlocker(None)  # nothing that comes after runs where there is nothing to run on
        rejected = verdict.rejected
        accepted = [row for row in range(len(verdict)) if row not in set(rejected)]

        def parts(rows: list[int], skipped: bool) -> tuple[Any, Any]:
            if not rows or skipped:
                return nothing, nothing
            pictures = nothing if images is None else images[rows]
            return pictures, nothing if latents is None else part_of(latents, rows)

        prompts = "\n".join(" ".join(verdict.prompts[row].split()) for row in rejected)
        words = f"{len(accepted)} accepted, {len(rejected)} rejected"
        return io.NodeOutput(
            *parts(accepted, False), *parts(rejected, verdict.stopped), nothing if verdict.stopped or not rejected else prompts,
            ", ".join(map(str, accepted)), ", ".join(map(str, rejected)),
            ui=shown(f"{words}; stopped after judging" if verdict.stopped and rejected else words),
        )  # fmt: skip


class ApprenticeMerge(io.ComfyNode):
    """The rejected back in their places."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeMerge",
            display_name="Merge by Verdict",
            category=CATEGORY,
            description="Puts what became of the rejected pictures back into their places in the batch that Split by Verdict "
            "took apart. With nothing rejected the batch passes as it is, and what made the rejected ones is not asked for.",
            inputs=[
                Verdict.Input("verdict", tooltip="The verdict that Split by Verdict went by."),
                io.Image.Input("images", optional=True, tooltip="The whole batch, as it went into Split by Verdict."),
                io.Image.Input("rejected", optional=True, lazy=True, tooltip="What became of the rejected pictures, in order."),
                io.Latent.Input("latents", optional=True, tooltip="The whole batch of latents."),
                io.Latent.Input("rejected_latents", optional=True, lazy=True, tooltip="What became of their latents."),
            ],
            outputs=[
                io.Image.Output("merged_images", display_name="IMAGE", tooltip="The whole batch, in its order."),
                io.Latent.Output("merged_latents", display_name="LATENT", tooltip="Likewise; for Keep Better's improved, too."),
            ],
        )

    @classmethod
    def check_lazy_status(cls, verdict: VerdictData, **inputs: Any) -> list[str]:
        """What became of the rejected is asked for only where there are any, and only of what is put back into something."""
        if not verdict.rejected or verdict.stopped:
            return []
        pairs = (("images", "rejected"), ("latents", "rejected_latents"))
        return [part for whole, part in pairs if inputs.get(whole) is not None and part in inputs and inputs[part] is None]

    @classmethod
    def execute(
        cls, verdict: VerdictData, images: Tensor | None = None, rejected: Tensor | None = None,
        latents: dict[str, Any] | None = None, rejected_latents: dict[str, Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        rows = verdict.rejected
        nothing = ExecutionBlocker(None)
        if verdict.stopped and rows:
            return io.NodeOutput(nothing, nothing)
        merged: Any = nothing
        if images is not None:
            verdict.require_batch(len(images), "images")
            merged = images if rejected is None else put_back(images, rejected, rows, "pictures")
        together: Any = nothing
        if latents is not None:
            verdict.require_batch(len(latents["samples"]), "latents")
            together = latents
            if rejected_latents is not None and rows:
                samples = put_back(latents["samples"], rejected_latents["samples"], rows, "latents")
                together = {**latents, "samples": samples}
        return io.NodeOutput(merged, together)
