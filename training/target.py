"""The file that a run makes: one that the run did not make is not overwritten. One rule for nodes and commands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..weights.checkpoints import read_metadata
from .run_folder import recorded

RUN = "apprentice_run"  # key in a file's metadata: the fingerprint of the settings of the run that made it


@dataclass(frozen=True)
class Target:
    """Where a run writes, and what it writes there of itself.

    Attributes:
        file: Ends in ``.safetensors``.
        mark: Fingerprint of the run's settings.
    """

    file: Path
    mark: str

    @classmethod
    def of(cls, file: Path, facts: Mapping[str, Any], free: tuple[str, ...] = ()) -> Target:
        """The target of a run that is made of ``facts``, as its folder records them; ``free`` may change while it goes on."""
        return cls(file, hashlib.sha256(json.dumps(recorded(facts, free), sort_keys=True).encode()).hexdigest()[:16])

    @property
    def about(self) -> dict[str, str]:
        """What goes into the file's metadata."""
        return {RUN: self.mark}

    @property
    def is_ours(self) -> bool:
        """Whether the file is there, and a run of these settings made it."""
        try:
            return read_metadata(self.file).get(RUN) == self.mark
        except (OSError, ValueError):  # whatever it is, it isn't ours
            return False

    def check(self, taken: Callable[[str], bool] = lambda name: False, otherwise: str = "") -> None:
        """Whether the file may be written: before the run, and again before it is, since a run takes hours.

        Args:
            taken: Whether something else is called so, such as another run.
            otherwise: What to do instead of taking another name.

        Raises:
            ValueError: Something else is there.
        """
        if (self.file.exists() or self.file.is_symlink()) and not self.is_ours:
            raise ValueError(
                f"{self.file.parent.name}/{self.file.name} is there already, and this run did not make it: take another name, "
                f"such as '{self._free(taken)}'{otherwise}."
            )

    def _free(self, taken: Callable[[str], bool]) -> str:
        names = (f"{self.file.stem} {number}" for number in range(2, 1_000_000))
        return next(name for name in names if not self.file.with_name(f"{name}.safetensors").exists() and not taken(name))
