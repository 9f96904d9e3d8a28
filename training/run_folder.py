"""The folder of a run: everything that it takes to look at it, and to go on with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..networks.torch_archive import read_tree


@dataclass(frozen=True)
class RunFolder:
    """Checkpoint, log of losses, samples, and ``run.json`` with what made them."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Where ``distil`` saves and resumes."""
        return self.path / "checkpoint.pt"

    @property
    def log(self) -> Path:
        """Losses as JSON lines."""
        return self.path / "loss.jsonl"

    def differences(self, facts: Mapping[str, Any], free: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
        """Of a run that is there and was told something else: name -> (what it was told, what it is told now).

        Args:
            facts: What the run is told; anything that JSON can hold.
            free: What may change while a run goes on.
        """
        if not self.checkpoint.exists():
            return {}
        record = self.path / "run.json"
        there = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        return {key: (there.get(key), value) for key, value in _kept(facts, free).items() if there.get(key) != value}

    def claim(self, facts: Mapping[str, Any], free: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
        """Take the folder for the run that is made of ``facts``, unless it holds another: see ``differences``."""
        if not self.checkpoint.exists():
            text = json.dumps(_kept(facts, free), indent=1) + "\n"
            write_atomically(self.path / "run.json", lambda part: part.write_text(text, encoding="utf-8"))
        return self.differences(facts, free)

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
