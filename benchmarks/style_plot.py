"""The plot of ``benchmarks.style``: how a look is learned, and pictures of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .figures import Figures

SHOWN = 12  # subjects in sight
COLOURS = {"warm": "#346eb4", "cold": "#d08030"}
NAMES = {"warm": "SiD from the published student on", "cold": "SiD from the teacher on"}


def draw_plot(figures: Figures, pictures: Mapping[str, Tensor], path: Path) -> None:
    """Above: look and judge's score over pictures seen. Below: the first held-out subjects by every way.

    Args:
        pictures: By row of the table, [B, 64, 64, 3] of the same prompts.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(10, 4 + 0.75 * len(pictures)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(4, 0.75 * len(pictures)))
    curves, sheet = parts
    left, right = curves.subplots(1, 2)
    _curves(left, figures, "kept", figures.settings["kept"], "share of the look that is kept")
    wanted = figures.findings["slow judge"] - figures.settings["tolerance"]
    _curves(right, figures, "judge", wanted, "judge's score: is it what was asked for?")
    left.legend(fontsize=8, loc="lower right")
    axes = sheet.subplots(len(pictures), 1)
    for axis, (name, drawn) in zip(axes, pictures.items(), strict=True):
        step = max(len(drawn) // SHOWN, 1)
        axis.imshow(drawn[::step][:SHOWN].permute(1, 0, 2, 3).flatten(1, 2).numpy())
        axis.set_axis_off()
        axis.text(-8, 32, name, ha="right", va="center", fontsize=8, wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _curves(axis: Any, figures: Figures, key: str, wanted: float, label: str) -> None:
    for way, colour in COLOURS.items():
        for number, points in enumerate(figures.findings[way]):
            seen, values = [p["pictures"] for p in points], [p[key] for p in points]
            axis.plot(seen, values, color=colour, lw=1.5, label=None if number else NAMES[way])
    axis.axhline(wanted, color="0.5", ls="--", lw=1)
    axis.set(xlabel="pictures drawn in learning", ylabel=label)
    axis.grid(alpha=0.3)
