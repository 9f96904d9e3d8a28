"""The losses of a run as a picture: one panel a loss, every report a point, a running median on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .contact_sheet import FAINT, GAP, INK, PAPER
from .lettering import font

WIDTH, PANEL, EDGE = 720, 200, 78  # sizes in pixels: the chart, the height of a panel, room for its axis
LINE, DOTS = (52, 110, 180), (188, 208, 232)
SMOOTHED = 15  # reports in the running median


def loss_chart(entries: Sequence[dict[str, Any]], titles: dict[str, str]) -> Tensor:
    """The chart [1, H, W, 3] in 0..1.

    Args:
        entries: The run's log: "pictures" and the losses by name.
        titles: What to show: the loss's name in the log -> its title.
    """
    sheet = Image.new("RGB", (WIDTH, len(titles) * (PANEL + 3 * GAP) + 2 * GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (key, title) in enumerate(titles.items()):
        top = number * (PANEL + 3 * GAP) + 3 * GAP
        pen.text((EDGE, top - 2 * GAP), title, INK, font(15))
        points = [(float(e["pictures"]), float(e[key])) for e in entries if key in e]
        if len(points) < 2:
            pen.text((EDGE, top + 20), "too few steps to draw a curve", FAINT, font(13))
            continue
        _panel(pen, np.array(points), top, last=number == len(titles) - 1)
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


def _panel(pen: ImageDraw.ImageDraw, points: np.ndarray[Any, Any], top: int, last: bool) -> None:
    x, y = points.T
    low, high = np.quantile(y, [0.01, 0.99])
    margin = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    left, right, bottom = EDGE, WIDTH - 2 * GAP, top + PANEL - 2 * GAP

    def at(pictures: float, value: float) -> tuple[float, float]:
        along = (pictures - x[0]) / (x[-1] - x[0])
        return left + along * (right - left), bottom - float(np.clip((value - low) / (high - low), 0, 1)) * (bottom - top)

    for value in np.linspace(low, high, 4):
        height = at(x[0], value)[1]
        pen.line((left, height, right, height), (228, 228, 228))
        pen.text((left - 8, height), f"{value:.3g}", FAINT, font(12), anchor="rm")
    for px, py in (at(*point) for point in points):
        pen.ellipse((px - 1.5, py - 1.5, px + 1.5, py + 1.5), DOTS)
    window = min(SMOOTHED, len(y))
    smooth = [float(np.median(y[max(0, i - window // 2) : i + window // 2 + 1])) for i in range(len(y))]
    pen.line([at(a, b) for a, b in zip(x, smooth, strict=True)], LINE, 2)
    if last:
        pen.text((left, bottom + 6), f"{x[0]:,.0f}", FAINT, font(12))
        pen.text((right, bottom + 6), f"{x[-1]:,.0f} images seen", FAINT, font(12), anchor="ra")
