"""Small JSON files that people can read: written atomically, and refused in one sentence when they can't be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..files import UnreadableFile, read_json, reading, write_atomically


def write_record(path: Path, kind: str, version: int, content: dict[str, Any]) -> None:
    """Write ``content`` with its kind and version, atomically; numbers that JSON lacks must have gone through ``plain``."""
    text = json.dumps({"format": kind, "version": version, **content}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def read_record(path: Path, kind: str, version: int, remedy: str) -> dict[str, Any]:
    """The content of a file that ``write_record`` wrote.

    Args:
        remedy: What to do about a broken file, as the end of a sentence: "delete it and calibrate again".

    Raises:
        ValueError: The file is missing.
        UnreadableFile: It is no JSON, of another kind, or written by a newer Apprentice.
    """
    try:
        with reading(path.name, remedy):
            return _checked(read_json(path, remedy), path, kind, version, remedy)
    except FileNotFoundError as error:
        raise ValueError(f"There is no file '{path.name}' in '{path.parent.name}'.") from error


def _checked(content: Any, path: Path, kind: str, version: int, remedy: str) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != kind:
        raise UnreadableFile(f"'{path.name}' is another kind of file: its format should be '{kind}'; choose another file.")
    written = content.get("version")
    if not isinstance(written, int) or isinstance(written, bool) or written < 1:
        raise damaged(path, f"its version should be a number from 1, not {repr(written)[:20]}", remedy)
    if written > version:
        raise UnreadableFile(
            f"'{path.name}' was written by a newer Apprentice (version {written}, this one reads up to {version}); "
            f"update Apprentice, or {remedy}."
        )
    return content


def damaged(path: Path, what: str, remedy: str) -> UnreadableFile:
    """The sentence for a file whose content is not as it should be."""
    return UnreadableFile(f"'{path.name}' is damaged: {what}; {remedy}.")


def plain(value: float) -> float | str | None:
    """A number as JSON has it: NaN becomes null, infinities their names."""
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


def number(value: Any) -> float:
    """The inverse of ``plain``.

    Raises:
        ValueError: It is no number.
    """
    if value is None:
        return math.nan
    if value in ("inf", "-inf") or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return float(value)
    raise ValueError(f"{repr(value)[:40]} is no number")
