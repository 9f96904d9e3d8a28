"""The folder of a job: its pictures, a line about each of them, and sheets; a stopped job goes on with what is there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import UnreadableFile, locked, read_json, sweep, write_atomically

LINES, JOB, TABLE, LOCK = "manifest.jsonl", "job.json", "manifest.parquet", "job.lock"


@dataclass(frozen=True)
class Record:
    """What became of one picture.

    Attributes:
        number: Its place in the job.
        file: Of the picture, from the job's folder; "" where there is none.
        prompt: What it was to show.
        score: The oracle's of what was kept; None where it could not be told.
        draft_score: The draft's, where the teacher has had its turn.
        threshold: What the draft was compared with; None where nobody, or everybody, passes.
        decision: See ``gate.verdict``; "failed" where nothing could be drawn.
        seed: Of its batch.
        place: In its batch: with the seed it names the noise.
        nfe: Network evaluations that it cost, where known.
        oracle: Name of the judge.
        error: What went wrong, as a sentence; "" for nothing.
        workflow: Name of the file with its own workflow; "" for the job's.
    """

    number: int
    file: str
    prompt: str
    score: float | None
    draft_score: float | None
    threshold: float | None
    decision: str
    seed: int | None
    place: int
    nfe: float | None
    oracle: str
    error: str = ""
    workflow: str = ""


FAILED = "failed"


def finite(value: float | None) -> float | None:
    """``value``, or None where it is no number that JSON knows."""
    return value if value is not None and math.isfinite(value) else None


class Manifest:
    """What is known of a job's pictures: a line each, on disk before the next one is begun.

    Raises:
        ValueError: The folder holds something else, or a job with other settings.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, json.loads(json.dumps(facts))
        self._check()
        self.records: dict[int, Record] = {}

    def _check(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; name a folder for the pictures with --out.")
        record = self.folder / JOB
        if record.exists():
            before = read_json(record, "name another folder with --out")
            names = [key for key in {**self.facts, **before} if before.get(key) != self.facts.get(key)]
            if names:
                changes = ", ".join(f"{key} was {_short(before.get(key))} and is {_short(self.facts.get(key))}" for key in names)
                raise ValueError(f"{self.folder} holds another job ({changes}): name another folder with --out.")
        elif self.folder.is_dir() and any(map(_foreign, self.folder.iterdir())):
            raise ValueError(f"{self.folder} is not empty, and what is in it is no job's: name another folder with --out.")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Take the folder while the job works, and read what it holds.

        Raises:
            ValueError: Another process works in it.
        """
        with locked(self.folder / LOCK, f"Another 'apprentice draw' is at work in {self.folder}."):
            self._check()
            job = json.dumps(self.facts, indent=1)
            write_atomically(self.folder / JOB, lambda part: part.write_text(job, encoding="utf-8"))
            self._read()
            for folder in (self.folder, *(each for each in self.folder.rglob("*") if each.is_dir())):
                sweep(folder, same_number=True)  # what a killed one left half-written
            yield

    def _read(self) -> None:
        """The lines that are there; one that was cut off by a power cut is taken away."""
        path = self.folder / LINES
        whole = [line for line in path.read_bytes().split(b"\n")[:-1] if line.strip()] if path.exists() else []
        for line in whole:
            try:
                record = Record(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UnreadableFile(f"{path} is damaged: name another folder, or delete this line: {line[:80]!r}") from error
            self.records[record.number] = record
        if path.exists():
            content = b"".join(line + b"\n" for line in whole)
            if content != path.read_bytes():
                write_atomically(path, lambda part: part.write_bytes(content))

    def add(self, records: Iterable[Record]) -> None:
        """Write lines, and have the disk keep them."""
        new = list(records)
        with (self.folder / LINES).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in new)
            file.flush()
            os.fsync(file.fileno())
        self.records |= {record.number: record for record in new}

    def as_table(self) -> Path:
        """All lines as a Parquet file, in the order of their numbers.

        Raises:
            ValueError: pyarrow is missing.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise ValueError("A Parquet file needs pyarrow: pip install pyarrow, or leave --parquet out.") from error
        rows = [asdict(self.records[number]) for number in sorted(self.records)]
        schema = pyarrow.schema([
            ("number", pyarrow.int64()), ("file", pyarrow.string()), ("prompt", pyarrow.string()), ("score", pyarrow.float64()),
            ("draft_score", pyarrow.float64()), ("threshold", pyarrow.float64()), ("decision", pyarrow.string()),
            ("seed", pyarrow.uint64()), ("place", pyarrow.int64()), ("nfe", pyarrow.float64()), ("oracle", pyarrow.string()),
            ("error", pyarrow.string()), ("workflow", pyarrow.string()),
        ])  # fmt: skip
        table, path = pyarrow.Table.from_pylist(rows, schema=schema), self.folder / TABLE
        write_atomically(path, lambda part: pyarrow.parquet.write_table(table, part))
        return path


def _foreign(entry: Path) -> bool:
    """Whether it is not of a job that was killed as it began."""
    return entry.name != LOCK and not entry.name.startswith(f".{JOB}.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
