"""What shall be drawn: prompts from a text, a table or JSON lines, or workflows of one's own, in the order of their numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..files import UnreadableFile
from ..gate.calibrate import COLUMNS, read_prompts


@dataclass(frozen=True)
class Item:
    """One picture that is wanted.

    Attributes:
        number: Its place in the whole job, from 0; names its file.
        prompt: What it shall show; "" where its workflow knows.
        workflow: Name of the file with its own workflow; "" for the job's. Pictures of one file follow each other.
    """

    number: int
    prompt: str
    workflow: str = ""


def read_items(path: Path, count: int = 1, limit: int = 0) -> list[Item]:
    """The pictures that a file of prompts asks for: every prompt's first, then every prompt's second, and so on.

    Args:
        path: A .jsonl with a prompt an object, or what ``gate.calibrate.read_prompts`` reads.
        count: Pictures a prompt.
        limit: Only the first so many prompts; 0 for all.

    Raises:
        ValueError: The file can't be read, or has no prompts.
    """
    prompts = _json_lines(path) if path.suffix.lower() in (".jsonl", ".ndjson") else read_prompts(path)
    prompts = prompts[:limit] if limit else prompts
    return [Item(number, prompt) for number, prompt in enumerate(prompts * count)]


def _json_lines(path: Path) -> list[str]:
    """The prompts of JSON lines: texts, or objects with one under ``COLUMNS``; repeated ones once."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise ValueError(f"There is no prompt file '{path.name}'.") from error
    except (UnicodeDecodeError, OSError) as error:
        raise UnreadableFile(f"The prompt file '{path.name}' can't be read as text in UTF-8.") from error
    prompts = [_prompt(line, f"Line {i + 1} of '{path.name}'") for i, line in enumerate(lines) if line.strip()]
    prompts = list(dict.fromkeys(prompt for prompt in prompts if prompt))
    if not prompts:
        raise UnreadableFile(f"The prompt file '{path.name}' has no prompts: write one JSON object a line.")
    return prompts


def _prompt(line: str, where: str) -> str:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f'{where} is not JSON; write an object a line, such as {{"prompt": "a cat"}}.') from error
    if isinstance(found, dict):
        found = next((found[name] for name in COLUMNS if isinstance(found.get(name), str)), None)
    if not isinstance(found, str):
        raise UnreadableFile(f"{where} has no text called {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}.")
    return " ".join(found.split())


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """``items`` in batches of ``size``, or of a file's workflow each.

    Always the same ones, since a picture's noise goes by its place in its batch.
    """
    for workflow, group in groupby(items, lambda item: item.workflow):
        alike = list(group)
        step = len(alike) if workflow else size
        for start in range(0, len(alike), step):
            yield alike[start : start + step]
