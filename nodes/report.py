"""What the artist gets to see and keep: the contact sheet, and pictures that know their own story."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..charts.contact_sheet import contact_sheet
from ..charts.pictures import save_picture
from ..files import NAME_BYTES
from ..gate.story import CHUNK, story_of
from ..gate.verdict import Judgement, table
from ..gate.verdict import Verdict as VerdictData
from .types import CATEGORY, Verdict

_ENDING, _BATCH = "_00000_.png", "%batch_num%"


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
    def validate_inputs(cls, filename_prefix: Any = None) -> bool | str:
        """A name that no file can have is refused before anything is drawn. What is connected has no value yet."""
        return True if not isinstance(filename_prefix, str) else too_long(filename_prefix) or True

    @classmethod
    def execute(cls, images: Tensor, verdict: VerdictData, filename_prefix: str) -> io.NodeOutput:
        verdict.require_batch(len(images), "images")
        height, width = images.shape[1:3]
        now = time.localtime()
        prefix = fill_tokens(filename_prefix, cls.hidden.prompt, cls.hidden.extra_pnginfo, now)
        prefix = fitted(fill_own_tokens(prefix, width, height, now), len(images))
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory(), width, height
        )

        def files() -> list[str]:
            return [f"{name.replace(_BATCH, str(j.index))}_{counter + j.index:05}_.png" for j in verdict]

        while any((Path(folder) / file).exists() for file in files()):  # ComfyUI doesn't count names with a %batch_num%
            counter += 1
        saved = []
        for judgement, image, file in zip(verdict, images, files(), strict=True):
            save_picture(image, Path(folder) / file, metadata_of(judgement, verdict, cls.hidden))
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return io.NodeOutput(ui={"images": saved})


def fill_tokens(prefix: str, prompt: Any, extra: Any, now: time.struct_time) -> str:
    """``prefix`` with the tokens that ComfyUI's front end fills in for its own nodes: dates and other nodes' widgets.

    Args:
        prefix: May hold %date:FORMAT% (d, M, h, m, s once or twice, yy, yyyy) and %NODE.WIDGET%.
        prompt: The graph that runs, as ComfyUI hands it to nodes; None where it is hidden.
        extra: What goes with it; its ``workflow`` knows names for search and replace.

    What names no node or widget stays as it is. No colon is left.
    """

    def fill(match: re.Match[str]) -> str:
        if match[1].startswith("date:"):
            return _date(match[1].removeprefix("date:"), now)
        node, dot, widget = match[1].partition(".")
        value = _widget(node, widget, prompt or {}, extra or {}) if dot else None
        return match[0] if value is None else re.sub(r"[/\\]", "_", str(value))

    drive, rest = os.path.splitdrive(re.sub("%([^%]+)%", fill, prefix))
    return drive + re.sub(r'[?<>:*|"\x00-\x1f\x7f]', "_", rest)


def _date(form: str, now: time.struct_time) -> str:
    parts = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def fill(match: re.Match[str]) -> str:
        if match[0][0] == "y":
            return {2: f"{now.tm_year % 100:02}", 4: str(now.tm_year)}.get(len(match[0]), match[0])
        return str(parts[match[0][0]]).zfill(len(match[0]))

    return re.sub("dd?|MM?|hh?|mm?|ss?|yyy?y?", fill, form)


def _widget(name: str, widget: str, prompt: dict[str, Any], extra: dict[str, Any]) -> Any:
    """The value of a node's widget; the node's name for search and replace goes before its title, as in the front end."""
    saved_nodes = (extra.get("workflow") or {}).get("nodes") or []
    called = {str(node.get("id")): (node.get("properties") or {}).get("Node name for S&R") for node in saved_nodes}
    by_name = [node for key, node in prompt.items() if (called.get(key) or node.get("class_type")) == name]
    by_title = [node for node in prompt.values() if (node.get("_meta") or {}).get("title") == name]
    for node in by_name or by_title:
        value = node.get("inputs", {}).get(widget)
        return None if isinstance(value, list | dict) else value
    return None


def fill_own_tokens(prefix: str, width: int, height: int, now: time.struct_time) -> str:
    """``prefix`` with the tokens that ComfyUI fills in itself, but for %batch_num%, which is another for each picture."""
    parts = {"month": now.tm_mon, "day": now.tm_mday, "hour": now.tm_hour, "minute": now.tm_min, "second": now.tm_sec}
    values = {name: str(value).zfill(2) for name, value in parts.items()}
    for name, value in {**values, "width": str(width), "height": str(height), "year": str(now.tm_year)}.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix


def fitted(prefix: str, pictures: int) -> str:
    """``prefix``, all but %batch_num% filled in, with names cut to what file systems take: nothing that was drawn is lost by what
    a token turned out to be."""
    *folders, name = re.split(r"([/\\])", prefix)
    room = NAME_BYTES - len(_ENDING)
    if len(os.fsencode(name.replace(_BATCH, str(pictures)))) > room:
        name = _cut(name.replace(_BATCH, ""), room)
    return "".join([*(_cut(folder, NAME_BYTES) for folder in folders), name])


def _cut(name: str, room: int) -> str:
    return os.fsencode(name)[:room].decode(errors="ignore")


def too_long(prefix: str) -> str | None:
    """What to say of a prefix that no file or folder can be named by, however short its tokens turn out to be; or None."""

    def shortest(match: re.Match[str]) -> str:
        if match[1].startswith("date:"):
            return _date(match[1].removeprefix("date:"), time.gmtime(0))  # the one date without two digits
        return "" if "." in match[1] else {_BATCH: "0"}.get(match[0], match[0])

    filled = fill_own_tokens(re.sub("%([^%]+)%", shortest, prefix), 1, 1, time.gmtime(0))
    *folders, name = re.split(r"[/\\]", filled)
    for part, room in (*((folder, 0) for folder in folders), (name, len(_ENDING))):
        size = len(os.fsencode(part))
        if size + room > NAME_BYTES:
            return f"filename_prefix has a name of {size} bytes, '{part[:40]}…'; take at most {NAME_BYTES - room}."
    return None


def metadata_of(judgement: Judgement, verdict: VerdictData, hidden: Any) -> dict[str, str]:
    """Text chunks of one PNG: ComfyUI's ``prompt`` and ``workflow``, and ``apprentice`` with this picture's story.

    Empty where the user has switched metadata off.
    """
    if args.disable_metadata:
        return {}
    chunks = {"prompt": json.dumps(hidden.prompt)} if hidden.prompt is not None else {}
    chunks |= {key: json.dumps(value) for key, value in (hidden.extra_pnginfo or {}).items()}
    return {**chunks, CHUNK: json.dumps(story_of(judgement, verdict, hidden.prompt))}
