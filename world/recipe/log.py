"""A line of progress for people and for plots."""

from __future__ import annotations

import time
from pathlib import Path

from ...training.loop import Means, Report


def log_to(path: Path) -> Report:
    """A reporter that prints pictures, pictures a second and loss, and appends the line to ``path``."""
    started: list[tuple[float, int]] = []

    def report(step: int, pictures: int, means: Means) -> None:
        started.append((time.monotonic(), pictures))
        (t0, n0), (t1, n1) = started[0], started[-1]
        speed = (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0
        losses = " ".join(f"{name} {value:.5f}" for name, value in means.items())
        line = f"step {step} pictures {pictures} {losses} speed {speed:.1f}/s"
        print(line, flush=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return report
