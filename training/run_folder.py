"""The folder of a run: all files that it takes to look at it, and to go on with it, and whose they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..files import DiskFull, bytes_of, locked, sweep, write_atomically
from ..weights.torch_archive import read_tree

RECORD = "run.json"
VERSION = "apprentice_run"
"""Of the record: without it, it is of a time when settings were missing that are checked today."""
LATER: dict[str, Any] = {
    "variety": "off", "optimiser": "adam", "begins_at": None, "base": None, "oracle": None, "vae": None, "price": None,
    "student": None,
}  # fmt: skip
"""Settings that came when there were runs already, and what those were made with; where they say that, no record has them."""
_SHORT = 40  # letters of a setting that is told whole


@dataclass
class RunFolder:
    """Everything that a run keeps; ``run.json`` says what made it, and is written first.

    Attributes:
        path: The folder.
        otherwise: What to do if it holds another run, beside deleting it.
    """

    path: Path
    otherwise: str = "take another name"
    _claimed: str | None = field(default=None, repr=False, compare=False)

    @property
    def checkpoint(self) -> Path:
        """Networks, optimisers, moving average, and how far the run is."""
        return self.path / "checkpoint.pt"

    @property
    def log(self) -> Path:
        """Losses as JSON lines."""
        return self.path / "loss.jsonl"

    @property
    def album(self) -> Path:
        """Of pictures along the run, as JSON lines."""
        return self.path / "album.jsonl"

    def album_page(self, step: int) -> Path:
        """The album's pictures after ``step`` steps."""
        return self.path / f"album_{step:06d}.png"

    def samples(self, pictures: int) -> Path:
        """A grid of what the network drew after it had seen so many pictures."""
        return self.path / f"samples-{pictures:010d}.png"

    @property
    def base_rewards(self) -> Path:
        """What the network earned before it was tuned."""
        return self.path / "base_rewards.json"

    def pool(self, number: int) -> Path:
        """The pictures of a round of weighted regression."""
        return self.path / f"pool_{number}.safetensors"

    @property
    def features(self) -> Path:
        """What the teacher sees in pictures that are not augmented."""
        return self.path / "features.safetensors"

    # -------------------------------------------------------------------------------------------- whose it is

    @property
    def key(self) -> str:
        """Changes with the run's settings; "" where there is no run."""
        try:
            return hashlib.sha256((self.path / RECORD).read_bytes()).hexdigest()
        except OSError:
            return ""

    def check(self, facts: Mapping[str, Any], free: tuple[str, ...] = ()) -> None:
        """Whether the folder is free, or holds the run that is made of ``facts``; nothing is written.

        Args:
            facts: The run's settings; anything that JSON can hold.
            free: What may change while a run goes on.

        Raises:
            ValueError: It holds another run, or a checkpoint of which nobody knows the settings.
        """
        record = self._record()
        if record is None:
            return
        record, asked = {**LATER, **record}, _as_json(facts, free)
        made_of = {**asked, **{key: value for key, value in LATER.items() if key not in asked}}
        now = {key: value for key, value in made_of.items() if key in record or VERSION in record}
        other = {key: (record.get(key), value) for key, value in now.items() if record.get(key) != value}
        if not other:
            return
        short = [f"{key} was {was} and is {is_now}" for key, (was, is_now) in other.items() if len(f"{was}{is_now}") < _SHORT]
        raise ValueError(
            f"The run '{self.path.name}' was begun with another {' and '.join(list(other)[:3])}"
            + (f" ({'; '.join(short)})" if short else "")
            + f": {self.otherwise}, or delete the folder {self.path} to begin anew."
        )

    def claim(self, facts: Mapping[str, Any], free: tuple[str, ...] = ()) -> None:
        """Take the folder for the run that is made of ``facts``; see ``check``."""
        self.check(facts, free)
        if self._record() is None:
            for stale in (self.log, self.album):  # of a run that nobody knows
                stale.unlink(missing_ok=True)
            self._write_record(json.dumps({VERSION: 1, **_as_json(facts, free)}, indent=1) + "\n")
        self._claimed = (self.path / RECORD).read_text(encoding="utf-8")

    @contextmanager
    def held(self, facts: Mapping[str, Any], free: tuple[str, ...] = ()) -> Iterator[None]:
        """Take the folder, and hold it while the run works; a run that is refused before its first checkpoint leaves it again.

        Raises:
            ValueError: It holds another run, or another process works in it.
        """
        busy = f"Another process works on the run '{self.path.name}': wait until that has ended, or take another name."
        with locked(self.path / ".lock", busy):
            self.claim(facts, free)
            sweep(self.path, same_number=True)
            try:
                yield
            except (ValueError, DiskFull):
                if not self.checkpoint.exists():
                    (self.path / RECORD).unlink(missing_ok=True)
                raise

    def _record(self) -> dict[str, Any] | None:
        """The settings of the run that is here. None: there is no run; a damaged record without a checkpoint is none either."""
        try:
            record = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
            if isinstance(record, dict) and record:
                return record
        except (OSError, ValueError, RecursionError):
            pass
        if not self.checkpoint.exists():
            return None
        raise ValueError(
            f"The run '{self.path.name}' has a checkpoint, but its {RECORD} is missing or damaged, so nobody knows with which "
            f"settings it goes on: take another name, or delete the run's folder to begin anew."
        )

    def _write_record(self, text: str) -> None:
        write_atomically(self.path / RECORD, lambda part: part.write_text(text, encoding="utf-8"))

    # --------------------------------------------------------------------------------------- checkpoint and log

    def save(self, state: Mapping[str, Any]) -> None:
        """One checkpoint over the one before. If somebody has deleted the folder meanwhile, it is made again, its record too."""
        if self._claimed is not None and not (self.path / RECORD).exists():
            self._write_record(self._claimed)
        write_atomically(self.checkpoint, lambda part: torch.save(state, part), bytes_of(state))

    def pictures_seen(self, batch: int) -> int:
        """How many pictures the run has seen so far.

        Raises:
            ValueError: The checkpoint can't be read.
        """
        if not self.checkpoint.exists():
            return 0
        try:
            return int(read_tree(self.checkpoint)["step"]) * batch
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{self.checkpoint} is damaged: delete it to begin anew.") from error

    def losses(self) -> list[dict[str, Any]]:
        """The lines of the log; what is no line of one, be it torn by a crash or damaged, is left out."""
        entries = read_lines(self.log, "step", "pictures")
        return [entry for entry in entries if all(isinstance(value, int | float) for value in entry.values())]

    def note(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the log."""
        self.path.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it meanwhile
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def cut_log(self, step: int) -> None:
        """Leave only what was noted up to ``step``: what came after a checkpoint is done again."""
        kept = [json.dumps(entry) + "\n" for entry in self.losses() if entry["step"] <= step]
        write_atomically(self.log, lambda part: part.write_text("".join(kept), encoding="utf-8"))


def read_lines(path: Path, *numbers: str) -> list[dict[str, Any]]:
    """The JSON objects of a text, one a line, that have all these ``numbers``; other lines are left out."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and all(type(entry.get(name)) in (int, float) for name in numbers):
            entries.append(entry)
    return entries


def recorded(facts: Mapping[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
    """The settings by which a run is known: without those that are free, and without later ones that change nothing."""
    return {key: value for key, value in facts.items() if key not in free and not (key in LATER and value == LATER[key])}


def _as_json(facts: Mapping[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
    """``recorded`` as JSON gives it back."""
    made: dict[str, Any] = json.loads(json.dumps(recorded(facts, free)))
    return made
