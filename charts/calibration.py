"""A calibration as one picture: how the drafts scored, the percentiles, and the teacher beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..gate.calibration import Calibration
from ..gate.verdict import ACCEPTED, IMPROVED
from .contact_sheet import COLOURS, FAINT, INK, PAPER
from .lettering import font, shortened, write

WIDTH, HEIGHT, MARGIN, BINS = 720, 320, 36, 32


def chart(calibration: Calibration) -> Tensor:
    """The histogram [1, H, W, 3] in 0..1; published percentiles, which have no drafts, are shown as lines alone."""
    drafts = [s for s in calibration.scores if math.isfinite(s)]
    teachers = [s for s in calibration.teacher_scores if math.isfinite(s)]
    marks = calibration.quantiles()
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(picture)
    write(pen, (MARGIN, 8), shortened(_title(calibration), WIDTH - 2 * MARGIN, 14), INK, 14)
    values = [*drafts, *teachers, *marks.values()]
    if values:
        room = (max(values) - min(values)) * 0.04 or 0.5
        low, high = min(values) - room, max(values) + room
        bars = [np.histogram(scores, BINS, (low, high))[0].tolist() for scores in (drafts, teachers)]
        most = max(max(counts) for counts in bars)
        _bars(pen, bars[0], most, COLOURS[ACCEPTED], filled=True)
        _bars(pen, bars[1], most, COLOURS[IMPROVED], filled=False)
        _marks(pen, marks, low, high)
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]


def _title(calibration: Calibration) -> str:
    what = f"{len(calibration)} drafts" if len(calibration) else "published percentiles"
    teacher = "; outlined: the teacher" if calibration.teacher_scores else ""
    return f"{calibration.name}: {what}, {calibration.oracle_name}{teacher}"


def _bars(
    pen: ImageDraw.ImageDraw, counts: Sequence[int], most: int, colour: tuple[int, int, int], filled: bool
) -> None:
    step, tall = (WIDTH - 2 * MARGIN) / BINS, HEIGHT - 3 * MARGIN
    for i, count in enumerate(counts):
        if count:
            left, top = MARGIN + i * step, HEIGHT - MARGIN - tall * count / most
            box = (left + 1, top, left + step - 1, HEIGHT - MARGIN)
            pen.rectangle(box, fill=colour if filled else None, outline=colour, width=2)


def _marks(pen: ImageDraw.ImageDraw, marks: dict[str, float], low: float, high: float) -> None:
    """Percentiles as lines; labels that would touch are left out."""
    small, free = font(11), -1.0
    pen.line((MARGIN, HEIGHT - MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN), FAINT)
    for k, score in marks.items():
        x = MARGIN + (score - low) / (high - low) * (WIDTH - 2 * MARGIN)
        pen.line((x, HEIGHT - MARGIN - 6, x, HEIGHT - MARGIN + 6), INK)
        label = f"k{k}: {score:.3g}"
        if x - pen.textlength(label, small) / 2 > free:
            pen.text((x, HEIGHT - MARGIN + 10), label, INK, small, anchor="ma")
            free = x + pen.textlength(label, small) / 2 + 4
