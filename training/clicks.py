"""The clicks that teach a taste: one file of lines, which only grows, and which its owner can copy, share and delete.

A line is a picture (its name, its prompt, itself, small, and where it came from), a click (which of two is better), an undo, or
features of a picture that some network has worked out.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import UnreadableFile, locked
from .click_origins import Origin, decoded

SIDE = 256  # pixels of a kept picture's longer side
_FILE_BYTES, _LINE_BYTES = 1 << 28, 1 << 20
_KEY = re.compile("[0-9a-f]{16}")
_FEATURES = b'{"kind": "features"'
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ClickedPicture:
    """A picture that was clicked or not clicked.

    Attributes:
        pixels: [h, w, 3] of uint8, at most ``SIDE`` pixels long.
        prompt: What it was asked to show.
        improved: Whether the teacher made it, from a draft.
        origin: Its latents, and what names its noise; None of pictures kept by older versions, of large ones, and without pixels.
    """

    pixels: Array
    prompt: str
    improved: bool = False
    origin: Origin | None = None


@dataclass
class Clicks:
    """What a file of clicks holds.

    Attributes:
        pictures: By their names.
        pairs: (better, worse), names, oldest first; those taken back are left out.
        features: {fingerprint of the network: {name: features [D]}}.
        unread: Lines that could not be read, which are left out.
    """

    pictures: dict[str, ClickedPicture] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    features: dict[str, dict[str, Array]] = field(default_factory=dict)
    unread: int = 0

    @property
    def clicked(self) -> list[str]:
        """Names of the pictures that were clicked on, each once."""
        return list(dict.fromkeys(key for pair in self.pairs for key in pair))


class ClickFile:
    """A file of clicks.

    Args:
        path: Where it is, or will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, pictures: dict[str, ClickedPicture], better: str, worse: str) -> Clicks:
        """Add a click, and of its two pictures those that aren't there yet; what the file holds then.

        Its older pictures come without pixels: a click must not wait for hundreds to be unpacked.

        Raises:
            ValueError: Better and worse are one picture, a name is none, or a picture is missing.
            UnreadableFile: See ``read``.
            OSError: The file can't be written.
        """
        if better == worse or not all(_KEY.fullmatch(key) for key in (better, worse)):
            raise ValueError("A click names two different pictures, each by sixteen hex digits.")
        with locked(self._lock):
            there = self.read(pixels=False)
            if missing := [key for key in (better, worse) if key not in there.pictures and key not in pictures]:
                raise ValueError(f"The picture {missing[0]} is not there any more; run the graph again and click then.")
            new = [_picture_line(key, pictures[key]) for key in (better, worse) if key not in there.pictures]
            self._append([*new, {"kind": "click", "better": better, "worse": worse, "time": round(time.time())}])
            return replace(there, pictures={**pictures, **there.pictures}, pairs=[*there.pairs, (better, worse)])

    def undo(self) -> Clicks:
        """Take the last click back; nothing happens where there is none. What the file holds then, as ``add`` tells it."""
        with locked(self._lock):
            there = self.read(pixels=False)
            if there.pairs:
                self._append([{"kind": "undo", "time": round(time.time())}])
            return replace(there, pairs=there.pairs[:-1])

    def remember(self, network: str, features: dict[str, Array]) -> None:
        """Keep features [D] of pictures, by their names, as the network of this fingerprint sees them."""
        with locked(self._lock):
            self._append([
                {"kind": "features", "key": key, "of": network, "values": _encoded(row)} for key, row in features.items()
            ])  # fmt: skip

    def state(self) -> str:
        """A text that changes with every click; features that are worked out later don't change it."""
        digest = hashlib.blake2b(digest_size=8)
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            while line := file.readline(_LINE_BYTES):
                if not line.startswith(_FEATURES):
                    digest.update(line)
        return digest.hexdigest()

    def delete(self) -> None:
        """Forget everything."""
        with locked(self._lock):
            self.path.unlink(missing_ok=True)

    def read(self, pixels: bool = True) -> Clicks:
        """What the file holds; nothing where there is none. A line that can't be read, as a crash leaves one, is counted.

        Args:
            pixels: Unpack the pictures; else they come without pixels.

        Raises:
            UnreadableFile: It is larger than clicks ever are, or holds no line of a file of clicks.
        """
        clicks = Clicks()
        if not self.path.exists():
            return clicks
        if self.path.stat().st_size > _FILE_BYTES:
            raise UnreadableFile(f"'{self.path.name}' has over {_FILE_BYTES >> 20} MiB, which clicks don't come to; delete it.")
        lines = 0
        with self.path.open("rb") as file:
            while line := file.readline(_LINE_BYTES):
                lines += 1
                clicks.unread += not _take(clicks, line, pixels)
        if lines and clicks.unread == lines:
            raise UnreadableFile(f"'{self.path.name}' is no file of clicks; choose another, or delete it.")
        clicks.pairs = [(a, b) for a, b in clicks.pairs if a in clicks.pictures and b in clicks.pictures]
        return clicks

    @property
    def _lock(self) -> Path:
        return self.path.with_suffix(".lock")

    def _append(self, lines: Iterable[dict[str, Any]]) -> None:
        """Whole lines, on the disk before the click counts; a line that a crash left half is closed first.

        Raises:
            ValueError: The file would grow larger than ``read`` takes.
        """
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines).encode()
        if self.path.exists() and self.path.stat().st_size + len(text) >= _FILE_BYTES:
            raise ValueError(f"'{self.path.name}' is full, at {_FILE_BYTES >> 20} MiB; go on under another name.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            torn = False
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            file.write(b"\n" * torn + text)
            file.flush()
            os.fsync(file.fileno())


def _take(clicks: Clicks, line: bytes, pixels: bool) -> bool:
    """Add what a line says; whether it says anything."""
    try:
        content = json.loads(line)
        kind = content["kind"]
        if kind == "picture":
            key = _key(content["key"])
            clicks.pictures.setdefault(key, _picture(content, pixels))
        elif kind == "click":
            clicks.pairs.append((_key(content["better"]), _key(content["worse"])))
        elif kind == "undo":
            clicks.pairs[-1:] = []
        elif kind == "features":
            clicks.features.setdefault(_key(content["of"]), {})[_key(content["key"])] = _decoded(content["values"])
        else:
            return False
    except (ValueError, KeyError, TypeError, OSError, RecursionError, Image.DecompressionBombError):
        return False
    return True


def _key(value: Any) -> str:
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise ValueError("no name of a picture")
    return value


def _picture(content: dict[str, Any], pixels: bool) -> ClickedPicture:
    if not pixels:
        return ClickedPicture(np.zeros((0, 0, 3), dtype=np.uint8), str(content["prompt"]))
    with Image.open(io.BytesIO(base64.b64decode(content["png"], validate=True)), formats=["PNG"]) as picture:
        if max(picture.size) > SIDE:
            raise ValueError("larger than a kept picture")
        unpacked = np.asarray(picture.convert("RGB"))
    return ClickedPicture(
        unpacked, str(content["prompt"])[:10_000], content.get("improved") is True, decoded(content.get("origin"))
    )


def _picture_line(key: str, picture: ClickedPicture) -> dict[str, Any]:
    small = Image.fromarray(picture.pixels)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    png = base64.b64encode(buffer.getvalue()).decode()
    line = {"kind": "picture", "key": key, "prompt": picture.prompt, "improved": picture.improved, "png": png}
    return line | {"origin": picture.origin.encoded()} if picture.origin and picture.origin.small else line


def _encoded(row: Sequence[float] | Array) -> str:
    return base64.b64encode(np.asarray(row, dtype="<f4").tobytes()).decode()


def _decoded(text: str) -> Array:
    row = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    if not len(row) or not math.isfinite(float(np.abs(row).sum())):
        raise ValueError("no features")
    return row.astype(np.float64)
