"""What a teacher made of drafts, remembered from run to run, so that Explore knows what calling it is worth.

Keep Better writes the pairs that it compares; they are kept by lesson: who judged, who drew, and what the teacher costs. Another
teacher, or the same with other settings, begins anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import UnreadableFile, locked
from .records import damaged, number, plain, read_record, write_record

KIND, VERSION = "apprentice-gains", 1
_REMEDY = "delete it to learn anew"
_PAIRS, _LESSONS = 512, 64  # that are kept
Pairs = dict[str, tuple[float, float]]
"""Draft's name -> (its score, the score of the teacher's answer)."""


def lesson_of(oracle: str, student: str, teacher_nfe: float) -> str:
    """What pairs are kept under: fingerprints of the oracle and of who drew the drafts, and what the teacher costs."""
    return f"{oracle}-{student}-{teacher_nfe:g}"


def pairs_of(path: Path, lesson: str) -> tuple[list[float], list[float]]:
    """Scores of the drafts and of the teacher's answers; none where nothing was learned, or the file can't be read."""
    try:
        pairs = load(path).get(lesson, ("", {}))[1].values()
    except (UnreadableFile, ValueError):
        return [], []
    return [draft for draft, _ in pairs], [answer for _, answer in pairs]


def remember(path: Path, lesson: str, teacher: str, pairs: Mapping[str, tuple[float, float]]) -> None:
    """Add pairs to a lesson; the same draft counts once. A file that can't be read is written anew.

    Args:
        teacher: Who answered, and how; another one's pairs are forgotten.

    Raises:
        OSError: The file can't be written.
    """
    known = {key: pair for key, pair in pairs.items() if all(map(math.isfinite, pair))}
    if not known:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        try:
            lessons = load(path)
        except (UnreadableFile, ValueError):
            lessons = {}
        before, held = lessons.pop(lesson, (teacher, {}))
        held = {**(held if before == teacher else {}), **known}
        lessons[lesson] = teacher, dict(list(held.items())[-_PAIRS:])
        content = {
            key: {"teacher": who, "pairs": {name: [plain(score) for score in pair] for name, pair in rows.items()}}
            for key, (who, rows) in list(lessons.items())[-_LESSONS:]
        }
        about = "What a teacher made of drafts: [score of the draft, score of the answer]. Delete this file to learn anew."
        write_record(path, KIND, VERSION, {"about": about, "lessons": content})


def load(path: Path) -> dict[str, tuple[str, Pairs]]:
    """Teacher and pairs of every lesson; none where there is no file.

    Raises:
        UnreadableFile: It is damaged, of another kind, or newer than this Apprentice.
    """
    if not path.exists():
        return {}
    content: dict[str, Any] = read_record(path, KIND, VERSION, _REMEDY)
    try:
        return {
            str(key): (str(lesson["teacher"]), {str(k): (number(a), number(b)) for k, (a, b) in lesson["pairs"].items()})
            for key, lesson in content["lessons"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise damaged(path, f"a lesson is not as it should be ({error})", _REMEDY) from error
