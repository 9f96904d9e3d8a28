"""What every benchmark shares: intervals, distances, tables, and the JSON that the docs' numbers come from."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import write_atomically
from ..precision import native_bfloat16

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Claim:
    """A figure with its 95 % interval."""

    value: float
    lo: float
    hi: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.lo:.3f}, {self.hi:.3f}]"


@dataclass
class Figures:
    """The result of a benchmark."""

    name: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: dict[str, Claim] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically; what is no number, as of a run that never came to where it should, is null there."""
        body = json.loads(json.dumps({**asdict(self), "machine": machine()}, default=float), parse_constant=lambda _name: None)
        text = json.dumps(body, indent=1, allow_nan=False) + "\n"
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))

    def show(self) -> None:
        """Print the table, and the claims below it."""
        print_table(self.rows)
        print()
        print_claims(self.claims)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "native_bfloat16": native_bfloat16(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def bootstrap(statistic: Callable[[Array], float], units: int, draws: int = 2000, seed: int = 0) -> Claim:
    """The 95 % percentile bootstrap interval of ``statistic(indices)`` over ``units`` resampled units (prompts)."""
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(units, size=units)) for _ in range(draws)])
    lo, hi = np.nanpercentile(values, [2.5, 97.5]) if np.isfinite(values).any() else (np.nan, np.nan)
    return Claim(float(statistic(np.arange(units))), float(lo), float(hi))


def spread(features: Array) -> float:
    """Mean of 1 - cosine between unit features [prompts, pictures, D] of two pictures of a prompt; 0 where there is one."""
    gaps = [1 - (features[:, a] * features[:, b]).sum(-1) for a in range(features.shape[1]) for b in range(a)]
    return float(np.mean(gaps)) if gaps else 0.0


def jackknife_ratio(above: Callable[[Array], float], below: Callable[[Array], float], units: int) -> Claim:
    """A ratio of two distances over the same units (prompts), each with its bias taken off, and its 95 % interval.

    A Frechet distance grows as pictures get fewer, by about b / N. Quenouille's jackknife takes that off, n d - (n - 1)
    mean(d_-i), with one unit left out at a time; the pseudo-values spread as the ratio does (Efron and Tibshirani 1993, ch. 11).
    """
    everything = np.arange(units)
    left_out = [np.delete(everything, unit) for unit in everything]
    pseudo = np.array([[units * d(everything) - (units - 1) * d(rest) for rest in left_out] for d in (above, below)])
    mean = pseudo.mean(1)
    value = float(mean[0] / mean[1])
    error = float(np.std(pseudo[0] - value * pseudo[1], ddof=1) / np.sqrt(units) / abs(mean[1]))
    return Claim(value, value - 1.96 * error, value + 1.96 * error)


def mean_of_seeds(values: Sequence[float]) -> Claim:
    """The mean over seeds, with the 95 % interval of Student's t; without an interval where there is one seed."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return Claim(mean, float("nan"), float("nan"))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Claim(mean, mean - half, mean + half)


def percent(claim: Claim) -> str:
    """A mean over seeds with its interval, where there is one; for tables."""
    return f"{claim.value:.1f}" + ("" if np.isnan(claim.lo) else f" ({claim.lo:.1f} to {claim.hi:.1f})")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Rows with the same keys as a Markdown table."""
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    cells.insert(1, ["-" * w for w in widths])
    for line in cells:
        print("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |")


def print_claims(claims: dict[str, Claim]) -> None:
    """A claim a line, with its interval."""
    width = max(map(len, claims), default=0)
    for name, claim in claims.items():
        print(f"{name:<{width}} {claim}")


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
