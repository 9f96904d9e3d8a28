"""Small JSON files that people can read: written atomically, and refused in one sentence when they can't be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..files import write_atomically


def write_record(path: Path, kind: str, version: int, content: dict[str, Any]) -> None:
    """Write ``content`` with its kind and version, atomically; numbers that JSON lacks must have gone through ``plain``."""
    text = json.dumps({"format": kind, "version": version, **content}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def read_record(path: Path, kind: str, version: int, remedy: str) -> dict[str, Any]:
    """The content of a file that ``write_record`` wrote.

    Args:
        remedy: What to do about a broken file, as the end of a sentence: "delete it and calibrate again".

    Raises:
        ValueError: The file is missing, is no JSON, is of another kind, or was written by a newer Apprentice.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ValueError(f"There is no file '{path.name}' in '{path.parent.name}'.") from error
    except OSError as error:
        raise ValueError(f"'{path.name}' can't be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise ValueError(f"'{path.name}' is damaged: it is no valid JSON ({error}); {remedy}.") from error
    if not isinstance(content, dict) or content.get("format") != kind:
        raise ValueError(f"'{path.name}' is another kind of file: its format should be '{kind}'; choose another file.")
    found = content.get("version")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"'{path.name}' is damaged: its version should be a number from 1, not {found!r}; {remedy}.")
    if found > version:
        raise ValueError(
            f"'{path.name}' was written by a newer Apprentice (version {found}, this one reads up to {version}); "
            f"update Apprentice, or {remedy}."
        )
    return content


def damaged(path: Path, what: str, remedy: str) -> ValueError:
    """The sentence for a file whose content is not as it should be."""
    return ValueError(f"'{path.name}' is damaged: {what}; {remedy}.")


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
    raise ValueError(f"{value!r} is no number")
