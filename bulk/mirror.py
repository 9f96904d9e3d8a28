"""A job's folder in an object store, too: pictures as they are done, and the manifest after them.

Object stores don't append, so the folder stays where the job writes; what is finished is uploaded from it, by a thread beside the
drawing. A picture is there before the manifest that names it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ..files import write_atomically
from .job import file_of
from .manifest import JOB, LINES, TABLE, Manifest

_WAITS = (1.0, 4.0, 15.0)  # seconds before an upload is tried again
_OFTEN = 30.0  # seconds between two uploads of the manifest, which is the whole of it each time
_AT_ONCE = 16  # files
R = TypeVar("R")


class Mirror:
    """The store of a job.

    Args:
        address: What fsspec knows: s3://bucket/night, gs://…, file:///mnt/night.
        folder: The job's, on this machine.
        say: Told what people should know.

    Raises:
        ValueError: fsspec or what it needs for the address is missing, or nobody answers there.
    """

    def __init__(self, address: str, folder: Path, say: Callable[[str], object]) -> None:
        self.address, self.folder, self.say = address, folder, say
        self.files, self.root = _opened(address)
        self.there = self._tried(self._listed, ())  # whoever mistyped it is told at once
        self.late: list[str] = []  # what should be there, and isn't
        self._error, self._seen, self._sheets, self._sent = "", 0, set[str](), float("-inf")

    def _listed(self) -> dict[str, int]:
        """What is there: names from the root, and sizes."""
        self.files.invalidate_cache()
        found = self.files.find(self.root, detail=True)
        return {path.removeprefix(self.root).lstrip("/"): entry["size"] for path, entry in found.items()}

    def _tried(self, work: Callable[[], R], waits: Sequence[float] | None = None) -> R:
        """Raises: ValueError: It failed, again and again."""
        for wait in (*(_WAITS if waits is None else waits), None):
            try:
                return work()
            except Exception as error:  # a store fails in as many ways as there are libraries
                if wait is None:
                    why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                    raise ValueError(f"{self.address} can't be used ({why}): mend it, or what gives you access.") from error
                time.sleep(wait)
        raise AssertionError

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    # --------------------------------------------------------------------------------------------------- going on

    def fetch(self, sheet: int) -> None:
        """Where the folder has no job and the store has one: what is needed to go on with it; most pictures stay there.

        Args:
            sheet: Pictures of a contact sheet; 0 for no sheets.

        Raises:
            ValueError: The store doesn't answer.
        """
        if (self.folder / JOB).exists() or JOB not in self.there:
            return
        sheets = [name for name in self.there if re.fullmatch(r"sheets/\d{7}\.png", name)]
        for name in (*sheets, *(name for name in (LINES, JOB) if name in self.there)):
            self._fetch(name)
        lines = (self.folder / LINES).read_text(encoding="utf-8").splitlines() if LINES in self.there else []
        for record in map(json.loads, lines if sheet else []):
            on_sheet = f"sheets/{record['number'] - record['number'] % sheet:07d}.png"
            if record["file"] and on_sheet not in self.there:
                self._fetch(file_of(record["number"]))
        self.say(f"{self.address} has {len(lines):,} pictures of this job; it goes on from there.")

    def _fetch(self, name: str) -> None:
        content = self._tried(lambda: self.files.cat_file(self._path(name)))
        write_atomically(self.folder / name, lambda part: part.write_bytes(content))

    # -------------------------------------------------------------------------------------------------- uploading

    @contextmanager
    def kept(self, manifest: Manifest) -> Iterator[Callable[[], None]]:
        """Yields what is to be called after each batch; in the end everything is uploaded, or in ``late``.

        Raises:
            ValueError: The store holds something else.
        """
        self._check(manifest)
        working: list[Future[None]] = []
        with ThreadPoolExecutor(1) as thread:

            def look() -> None:
                if not working or working[-1].done():
                    working[:] = [thread.submit(self._upload, *self._new(manifest))]

            try:
                yield look
            finally:
                for future in working:
                    future.result()
                self._sent = float("-inf")
                self._upload(*self._new(manifest))

    def _check(self, manifest: Manifest) -> None:
        if JOB in self.there:
            if json.loads(self._tried(lambda: self.files.cat_file(self._path(JOB)))) != manifest.facts:
                raise ValueError(f"{self.address} holds another job: name another address with --also.")
        elif self.there:
            raise ValueError(f"{self.address} is not empty, and what is in it is no job's: name another address with --also.")
        self.late = [JOB]

    def _new(self, manifest: Manifest) -> tuple[list[str], int]:
        """What has come into the folder since the last call, and how long the manifest is that names no more than that."""
        records = list(islice(manifest.records.values(), self._seen, None))
        self._seen += len(records)
        sheets = {f"sheets/{path.name}" for path in (self.folder / "sheets").glob("*.png")} - self._sheets
        self._sheets |= sheets
        lines = self.folder / LINES
        names = [record.file for record in records if record.file] + sorted(sheets)
        if (self.folder / TABLE).exists():
            names.append(TABLE)
        return names, lines.stat().st_size if lines.exists() else 0

    def _upload(self, names: Sequence[str], lines: int) -> None:
        """All that is late or new and not there yet, then the manifest; what fails is told once, and stays late."""
        todo = [name for name in dict.fromkeys([*self.late, *names]) if self._differs(name)]
        self.late = [name for name in todo if name != LINES]
        try:
            for start in range(0, len(todo), _AT_ONCE):
                part = todo[start : start + _AT_ONCE]
                self._put({name: (self.folder / name).read_bytes() for name in part})
                self.late = [name for name in self.late if name not in part]
            if lines != self.there.get(LINES, 0) and time.monotonic() - self._sent >= _OFTEN:
                self.late = [LINES]
                self._put({LINES: (self.folder / LINES).read_bytes()[:lines]})
                self.late, self._sent = [], time.monotonic()
        except ValueError as error:
            if str(error) != self._error:
                self.say(f"{error} Drawing goes on; the files are in {self.folder}, and are tried again after the next batch.")
            self._error = str(error)

    def _differs(self, name: str) -> bool:
        """Whether the folder has it, and the store doesn't have as many bytes of it."""
        path = self.folder / name
        return name != LINES and path.exists() and self.there.get(name) != path.stat().st_size

    def _put(self, contents: dict[str, bytes]) -> None:
        self._tried(lambda: self.files.pipe({self._path(name): content for name, content in contents.items()}))
        self.there |= {name: len(content) for name, content in contents.items()}


def _opened(address: str) -> tuple[Any, str]:
    """A file system, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        raise ValueError("--also needs fsspec: pip install fsspec, and s3fs, gcsfs or adlfs for what it names.") from error
    if "://" not in address:
        raise ValueError(f"--also {address} is no address: write it like s3://bucket/night, or file:///mnt/night.")
    try:
        files, root = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ValueError(f"fsspec can't use {address} ({error}): pip install s3fs for s3://, gcsfs for gs://.") from error
    files.auto_mkdir = True  # of folders on disks, which object stores don't have
    return files, root.rstrip("/")
