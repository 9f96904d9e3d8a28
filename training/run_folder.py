"""The folder of a run: everything that it takes to look at it, and to go on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import DiskFull, locked, sweep, write_atomically
from ..weights.torch_archive import read_tree

RECORD = "run.json"
VERSION = "apprentice_run"
"""Of the record: without it, it is of a time when settings were missing that are checked today."""

Differences = dict[str, tuple[Any, Any]]
"""Name of a setting -> (what the run was told, what it is told now)."""


@dataclass(frozen=True)
class RunFolder:
    """Checkpoint, log of losses, samples, and ``run.json`` with what made them, which is written first."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Where ``distil`` saves and resumes."""
        return self.path / "checkpoint.pt"

    @property
    def log(self) -> Path:
        """Losses as JSON lines."""
        return self.path / "loss.jsonl"

    @property
    def album(self) -> Path:
        """Of pictures along the run, as JSON lines."""
        return self.path / "album.jsonl"

    @property
    def key(self) -> str:
        """Changes with the run's settings; "" where there is no run."""
        try:
            return hashlib.sha256((self.path / RECORD).read_bytes()).hexdigest()
        except OSError:
            return ""

    def differences(self, facts: Mapping[str, Any], free: tuple[str, ...]) -> Differences:
        """Of a run that is there and was told something else.

        Args:
            facts: What the run is told; anything that JSON can hold.
            free: What may change while a run goes on.

        Raises:
            ValueError: There is a checkpoint, and nobody knows of what run.
        """
        if (there := self._record()) is None:
            return {}
        kept = {key: value for key, value in _kept(facts, free).items() if key in there or VERSION in there}
        return {key: (there.get(key), value) for key, value in kept.items() if there.get(key) != value}

    def _record(self) -> dict[str, Any] | None:
        """What the run was told. None: there is no run; a damaged record without a checkpoint is none either."""
        try:
            there = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
            if isinstance(there, dict) and there:
                return there
        except (OSError, ValueError, RecursionError):
            pass
        if not self.checkpoint.exists():
            return None
        raise ValueError(
            f"The run '{self.path.name}' has a checkpoint, but its {RECORD} is missing or damaged, so nobody knows with which "
            f"settings it goes on: take another name, or delete the run's folder to begin anew."
        )

    def claim(self, facts: Mapping[str, Any], free: tuple[str, ...]) -> Differences:
        """Take the folder for the run that is made of ``facts``, unless it holds another: see ``differences``."""
        if self._record() is None:
            for stale in (self.log, self.album):  # of a run that nobody knows
                stale.unlink(missing_ok=True)
            text = json.dumps({VERSION: 1, **_kept(facts, free)}, indent=1) + "\n"
            write_atomically(self.path / RECORD, lambda part: part.write_text(text, encoding="utf-8"))
        return self.differences(facts, free)

    @contextmanager
    def held(
        self, facts: Mapping[str, Any], free: tuple[str, ...], refusal: Callable[[Differences], str]
    ) -> Iterator[None]:
        """Take the folder, and hold it while the run works; a run that is refused before its first checkpoint leaves it again.

        Args:
            refusal: The sentence for people whose settings differ.

        Raises:
            ValueError: It holds another run, or another process works in it.
        """
        busy = f"Another process works on the run '{self.path.name}': wait until that has ended, or take another name."
        with locked(self.path / ".lock", busy):
            if other := self.claim(facts, free):
                raise ValueError(refusal(other))
            sweep(self.path, own=True)
            try:
                yield
            except (ValueError, DiskFull):
                if not self.checkpoint.exists():
                    (self.path / RECORD).unlink(missing_ok=True)
                raise

    def pictures_seen(self, batch: int) -> int:
        """How many pictures the generator has drawn so far.

        Raises:
            ValueError: The checkpoint can't be read.
        """
        if not self.checkpoint.exists():
            return 0
        try:
            return int(read_tree(self.checkpoint)["step"]) * batch
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{self.checkpoint} is damaged: delete it to begin anew.") from error


def _kept(facts: Mapping[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
    """As JSON gives them back."""
    return {key: value for key, value in json.loads(json.dumps(facts)).items() if key not in free}
