"""The story of a picture: what Save Images writes into its PNG, read again and told in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import UnreadableFile, reading
from .verdict import Judgement, Verdict

CHUNK = "apprentice"
"""The text chunk of a PNG that holds it, as JSON."""

_WEIGHTS = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".pkl", ".gguf"}


class NoStory(UnreadableFile):
    """A picture without a story; the message is one sentence for people."""


def story_of(judgement: Judgement, verdict: Verdict, prompt: Any) -> dict[str, Any]:
    """One picture's judgement, who judged and drew it, and the files of weights that the graph names; fit for JSON.

    Args:
        prompt: The graph that ran, in API format; None where it is hidden.
    """
    return {
        **{key: _plain(value) for key, value in asdict(judgement).items()},
        "oracle": verdict.oracle, "oracle_fingerprint": verdict.fingerprint, "mode": verdict.mode, "value": verdict.value,
        "student_fingerprint": verdict.student, "teacher_fingerprint": verdict.teacher, "files": weights_in(prompt),
    }  # fmt: skip


def weights_in(prompt: Any) -> list[str]:
    """The files of weights that a graph's nodes name, in its order, each once."""
    values = [value for node in (prompt or {}).values() for value in node.get("inputs", {}).values() if isinstance(value, str)]
    return list(dict.fromkeys(value for value in values if Path(value).suffix.lower() in _WEIGHTS))


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_story(path: Path) -> dict[str, Any]:
    """What a PNG says of itself: the story, with the picture's ``width``, ``height`` and whether it holds its ``workflow``.

    Raises:
        NoStory: It says nothing.
        UnreadableFile: It is no picture, or what it says isn't JSON.
        FileNotFoundError: There is no such file.
    """
    from PIL import Image, UnidentifiedImageError

    with reading(path.name, "give it a picture that ComfyUI saved"):
        try:
            with Image.open(path) as picture:  # the head alone: no pixel is decoded
                text, size = picture.info, picture.size
        except UnidentifiedImageError as error:
            raise UnreadableFile(f"{path.name} is no picture.") from error
        if CHUNK not in text:
            raise NoStory(_silence(path.name, text))
        story = json.loads(text[CHUNK])
        if not isinstance(story, dict):
            raise TypeError("its story is no table")
    return {**story, "width": size[0], "height": size[1], "workflow": "workflow" in text or "prompt" in text}


def _silence(name: str, text: Mapping[Any, Any]) -> str:
    graph = "it holds its workflow, but " if "workflow" in text or "prompt" in text else ""
    return (
        f"{name} has no verdict in it: {graph}only 'Save Images (with verdict)' writes one, and neither a conversion nor "
        "ComfyUI's --disable-metadata keeps it."
    )


def in_words(story: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The story's rows for people: what, and how it was. What an older version didn't write is left out."""
    size, seed, files = f"{story['width']} x {story['height']}", story.get("seed"), story.get("files")
    hand = {"accept": " (accepted by hand)", "teacher": " (sent to the teacher by hand)"}.get(str(story.get("override")), "")
    before = "" if story.get("draft_score") is None else f"; its draft had {_number(story['draft_score'])}"
    rows = {
        "prompt": _line(story.get("prompt")),
        "size": size + (", with its workflow: drag it onto ComfyUI's canvas" if story["workflow"] else ""),
        "decision": f"{_line(story.get('decision'))}{hand}",
        "score": f"{_number(story.get('score'))}{before}",
        "threshold": f"{_number(story.get('threshold'))} ({_line(story.get('mode'))} {_number(story.get('value'))})",
        "seed": "not known" if seed is None else f"{_line(seed)}, place {_line(story.get('index'))} in its batch",
        "evaluations": "not known" if story.get("nfe") is None else _number(story["nfe"]),
        "oracle": _line(f"{story.get('oracle')} {story.get('oracle_fingerprint')}"),
        "student": _line(story.get("student_fingerprint")),
        "teacher": _line(story.get("teacher_fingerprint")),
        "files": _line(", ".join(map(str, files if isinstance(files, list) else []))),
    }
    yield from ((key, value) for key, value in rows.items() if value)


def _number(value: Any) -> str:
    try:
        return f"{float(value):.4g}"
    except (TypeError, ValueError):
        return "not known"


def _line(value: Any) -> str:
    """A stranger's text on one line that can be printed."""
    text = " ".join(str("" if value is None else value).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)
