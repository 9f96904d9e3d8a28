"""Calibrating: draw with the student on many prompts, score, remember. Resumable, and torch alone: callables draw and score."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..files import UnreadableFile
from .calibration import Calibration, load, save

BUNDLED = Path(__file__).parent / "prompts.txt"
_LONGEST_FILE = 64 << 20
COLUMNS = ("caption", "prompt", "text")  # headings of a csv's prompts


@dataclass(frozen=True)
class Task:
    """One draft to be made: of ``prompt``, its ``draft``-th from 0."""

    prompt: str
    draft: int


# What draws a batch: tasks, and how many drafts the calibration holds already (seed + that names the batch's noise), to the
# student's pictures [B, H, W, C] and, with a teacher, the teacher's.
Draw = Callable[[Sequence[Task], int], tuple[Tensor, Tensor | None]]
# Likewise, to what the drafts are after their first step.
First = Callable[[Sequence[Task], int], Tensor]
# What scores pictures [B, H, W, C] of prompts.
Score = Callable[[Tensor, list[str]], Sequence[float]]
# What is told after each batch: drafts held and drafts wanted.
Progress = Callable[[int, int], None]


def calibrate(
    draw: Draw, score: Score, prompts: Sequence[str], path: Path, blank: Calibration, *, drafts_per_prompt: int = 1,
    batch: int = 8, progress: Progress | None = None, interrupted: Callable[[], bool] | None = None, first: First | None = None,
) -> Calibration:  # fmt: skip
    """Make the drafts that the calibration at ``path`` still lacks, score them, and save after every batch.

    Whatever stops it (an exception out of ``draw``, ``interrupted``, a power cut), the next call goes on after the last whole
    batch, and draws what an unstopped run would have drawn, if the batch size is the same. More prompts, or more drafts a
    prompt, are appended to what is there; drafts of prompts that are no longer asked for stay.

    Args:
        blank: A calibration without drafts: who draws and who scores. What is at ``path`` must have been made the same way.
        drafts_per_prompt: With two and more every prompt gets its own baseline.
        interrupted: Asked before each batch; True stops with what there is.
        first: Draws what the same drafts are after their first step, to be scored as well.

    Returns:
        The calibration, as it is on disk.

    Raises:
        ValueError: There are no prompts, a setting is out of range, or the file was made by another student, oracle,
            schedule or teacher.
    """
    if drafts_per_prompt < 1 or batch < 1:
        raise ValueError("A calibration takes at least one draft a prompt and one picture a batch.")
    if not prompts:
        raise ValueError("There are no prompts to calibrate on: choose a prompt file with at least one line, or type some.")
    calibration = blank
    if path.exists():
        calibration = load(path)
        calibration.require_same(blank)
    todo = tasks_left(calibration, prompts, drafts_per_prompt)
    wanted = len(calibration) + len(todo)
    for start in range(0, len(todo), batch):
        if interrupted is not None and interrupted():
            break
        tasks = todo[start : start + batch]
        calibration = calibration.joined(_batch(draw, score, tasks, len(calibration), blank, first))
        save(calibration, path)
        if progress is not None:
            progress(len(calibration), wanted)
    return calibration


def _batch(
    draw: Draw, score: Score, tasks: Sequence[Task], held: int, blank: Calibration, first: First | None
) -> Calibration:
    images, improved = draw(tasks, held)
    prompts = [task.prompt for task in tasks]
    scores = tuple(float(value) for value in score(images, prompts))
    teacher = () if improved is None else tuple(float(value) for value in score(improved, prompts))
    if len(scores) != len(tasks) or len(teacher) not in (0, len(tasks)):
        raise ValueError(f"{len(tasks)} drafts were asked for, but {len(scores)} came back scored.")
    early = () if first is None else tuple(float(value) for value in score(first(tasks, held), prompts))
    return replace(blank, scores=scores, prompts=tuple(prompts), teacher_scores=teacher, first_scores=early)


def tasks_left(calibration: Calibration | None, prompts: Sequence[str], drafts_per_prompt: int) -> list[Task]:
    """The drafts that are still to be made: every prompt's first, then every prompt's second, and so on.

    So a calibration that was stopped early has seen as many prompts as possible.
    """
    held = Counter(calibration.prompts if calibration is not None else ())
    unique = list(dict.fromkeys(prompts))
    return [Task(p, d) for d in range(drafts_per_prompt) for p in unique if held[p] <= d]


# ----------------------------------------------------------------------------------------------------- prompts


def read_prompts(path: Path, limit: int = 0) -> list[str]:
    """The prompts of a file: a .csv's column called caption, prompt or text, or the lines of any other text.

    Empty ones are skipped, repeated ones taken once.

    Args:
        limit: At most so many, the first; 0 for all.

    Raises:
        ValueError: The file can't be read, has no such column, or has no prompts.
    """
    try:
        if path.stat().st_size > _LONGEST_FILE:
            raise UnreadableFile(f"The prompt file '{path.name}' is too long; take one of at most {_LONGEST_FILE >> 20} MB.")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"There is no prompt file '{path.name}'.") from error
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"The prompt file '{path.name}' is not text in UTF-8; save it as UTF-8.") from error
    except OSError as error:
        raise UnreadableFile(f"The prompt file '{path.name}' can't be read ({error.strerror or error}).") from error
    lines = _column(text, path.name) if path.suffix.lower() == ".csv" else text.splitlines()
    prompts = clean_prompts(lines, limit)
    if not prompts:
        raise UnreadableFile(f"The prompt file '{path.name}' has no prompts: write one a line.")
    return prompts


def clean_prompts(lines: Sequence[str], limit: int = 0) -> list[str]:
    """Lines without surrounding blanks, empty and repeated ones; at most ``limit`` of them, 0 for all."""
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    return prompts[:limit] if limit else prompts


def _column(text: str, name: str) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:  # a field over 131,072 letters, most of all: a quotation mark that is never closed
        raise UnreadableFile(f"The prompt file '{name}' is no table ({error}): look for a quotation mark too many.") from error
    headings = [heading.strip().casefold() for heading in rows[0]] if rows else []
    for wanted in COLUMNS:
        if wanted in headings:
            place = headings.index(wanted)
            return [" ".join(row[place].split()) for row in rows[1:] if len(row) > place]
    raise UnreadableFile(
        f"The prompt file '{name}' needs a column called {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]} in its first line, "
        f"which has {', '.join(repr(h[:40]) for h in headings[:10]) or 'nothing'}."
    )
