"""What the artist gets to see and keep: the contact sheet, and pictures that know their own story."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from comfy.cli_args import args
from comfy_api.v0_0_2 import io
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..files import write_atomically
from ..oracles.contact_sheet import contact_sheet
from ..oracles.verdict import Judgement, table
from ..oracles.verdict import Verdict as VerdictData
from .types import CATEGORY, Verdict


class ApprenticeReport(io.ComfyNode):
    """The contact sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeReport",
            display_name="Report (contact sheet)",
            category=CATEGORY,
            description="Shows every picture with its score and decision, before and after, and how the scores were spread "
            "around the threshold.",
            inputs=[
                Verdict.Input("verdict", tooltip="The verdict of Judge or Keep Better."),
                io.Image.Input("images", tooltip="The final pictures."),
                io.Image.Input("draft_images", optional=True, tooltip="The drafts, to show before and after."),
            ],
            outputs=[
                io.Image.Output("sheet", display_name="contact sheet", tooltip="One picture; preview it or save it."),
                io.String.Output("text", display_name="text", tooltip="The same as a table."),
            ],
        )

    @classmethod
    def execute(cls, verdict: VerdictData, images: Tensor, draft_images: Tensor | None = None) -> io.NodeOutput:
        return io.NodeOutput(contact_sheet(verdict, images, draft_images), table(verdict))


class ApprenticeSaveImages(io.ComfyNode):
    """PNGs with their own score, decision, seed and cost."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeSaveImages",
            display_name="Save Images (with verdict)",
            category=CATEGORY,
            description="Saves PNGs as Save Image does. Beside the workflow, each file holds its own score, decision, seed and "
            "network evaluations.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures to save."),
                Verdict.Input("verdict", tooltip="Their verdict."),
                io.String.Input(
                    "filename_prefix", default="apprentice/picture",
                    tooltip="Name of the files; a slash makes a folder, and %date:yyyy-MM-dd% and the like work.",
                ),  # fmt: skip
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, images: Tensor, verdict: VerdictData, filename_prefix: str) -> io.NodeOutput:
        verdict.require_batch(len(images), "images")
        height, width = images.shape[1:3]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        saved = []
        for judgement, image in zip(verdict, images, strict=True):
            file = f"{name.replace('%batch_num%', str(judgement.index))}_{counter + judgement.index:05}_.png"
            save_png(image, Path(folder) / file, metadata_of(judgement, verdict, cls.hidden))
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return io.NodeOutput(ui={"images": saved})


def metadata_of(judgement: Judgement, verdict: VerdictData, hidden: Any) -> dict[str, str]:
    """Text chunks of one PNG: ComfyUI's ``prompt`` and ``workflow``, and ``apprentice`` with this picture's judgement.

    Empty where the user has switched metadata off.
    """
    if args.disable_metadata:
        return {}
    chunks = {"prompt": json.dumps(hidden.prompt)} if hidden.prompt is not None else {}
    chunks |= {key: json.dumps(value) for key, value in (hidden.extra_pnginfo or {}).items()}
    story = {key: _plain(value) for key, value in asdict(judgement).items()}
    story |= {"oracle": verdict.oracle, "oracle_fingerprint": verdict.fingerprint, "mode": verdict.mode, "value": verdict.value}
    return {**chunks, "apprentice": json.dumps(story)}


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def save_png(image: Tensor, path: Path, chunks: dict[str, str]) -> None:
    """Write a picture [H, W, C] in 0..1 with text chunks, atomically; pixels as the stock Save Image rounds them."""
    pixels = np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)
    info = PngInfo()
    for key, text in chunks.items():
        info.add_text(key, text)
    write_atomically(path, lambda part: Image.fromarray(pixels).save(part, format="PNG", pnginfo=info, compress_level=4))
