"""Two oracles' opinions of one batch as a picture: every picture at its two scores, and where they differ most."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..gate.selection import Agreement
from .contact_sheet import FAINT, GAP, INK, PAPER, thumbnail
from .lettering import font, shortened, width_of, write

PLOT, EDGE, DOT, PICTURE = 620, 56, 40, 160  # sizes in pixels: the plot, room for its axes, a picture in it and beside it
ACCENT = (190, 60, 50)


def comparison_chart(
    images: Sequence[Tensor], scores: tuple[Sequence[float], Sequence[float]], names: tuple[str, str], agreement: Agreement
) -> Tensor:
    """The chart [1, H, W, 3] in 0..1: a scatter plot of thumbnails at the left, the largest disagreements at the right.

    Args:
        images: The pictures [H, W, 3 or more] in 0..1, each of its own size.
        scores: Each oracle's scores, one a picture.
        names: The oracles' names.
    """
    odd = agreement.disagreements(3)
    sheet = Image.new("RGB", (PLOT + 2 * (PICTURE + 3 * GAP), PLOT + EDGE), PAPER)
    pen = ImageDraw.Draw(sheet)
    title = f"Spearman {agreement.spearman:.3f}, Kendall {agreement.kendall:.3f}, {len(images)} pictures"
    pen.text((GAP, 10), title, INK, font(15))
    _axes(pen, names)
    places = _places(scores)
    # The disagreements last, so that they lie on top.
    for i in sorted(places, key=lambda i: i in odd):
        x, y = places[i]
        small = thumbnail(images[i], PICTURE).resize((DOT, DOT), Image.Resampling.LANCZOS)
        sheet.paste(small, (x - DOT // 2, y - DOT // 2))
        box = (x - DOT // 2 - 2, y - DOT // 2 - 2, x + DOT // 2 + 1, y + DOT // 2 + 1)
        pen.rectangle(box, outline=ACCENT if i in odd else FAINT, width=2)
    _disagreements(sheet, pen, images, scores, names, agreement, odd)
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


def _axes(pen: ImageDraw.ImageDraw, names: tuple[str, str]) -> None:
    pen.line((EDGE, EDGE, EDGE, PLOT), FAINT)
    pen.line((EDGE, PLOT, PLOT, PLOT), FAINT)
    pen.polygon([(EDGE - 4, EDGE), (EDGE + 4, EDGE), (EDGE, EDGE - 8)], FAINT)
    pen.polygon([(PLOT, PLOT - 4), (PLOT, PLOT + 4), (PLOT + 8, PLOT)], FAINT)
    name = shortened(names[0], 400, 13)
    write(pen, (PLOT - width_of(name, 13), PLOT + 12), name, INK, 13)
    write(pen, (EDGE + 10, EDGE - 18), shortened(names[1], 400, 13), INK, 13)


def _places(scores: tuple[Sequence[float], Sequence[float]]) -> dict[int, tuple[int, int]]:
    """Where each picture that both scored lies in the plot."""
    both = [i for i, pair in enumerate(zip(*scores, strict=True)) if all(math.isfinite(s) for s in pair)]
    low, high = EDGE + DOT, PLOT - DOT // 2 - 6
    places = {}
    for i in both:
        parts = []
        for values in scores:
            scored = [values[j] for j in both]
            spread = max(scored) - min(scored)
            parts.append((values[i] - min(scored)) / spread if spread else 0.5)
        places[i] = (round(low + parts[0] * (high - low)), round(high - parts[1] * (high - low)))
    return places


def _disagreements(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, images: Sequence[Tensor], scores: tuple[Sequence[float], Sequence[float]],
    names: tuple[str, str], agreement: Agreement, odd: Sequence[int],
) -> None:  # fmt: skip
    left = PLOT + 2 * GAP
    pen.text((left, 10), "where they differ most" if odd else "they rank all alike", INK, font(15))
    for row, i in enumerate(odd):
        top = 40 + row * (PICTURE + 3 * GAP)
        picture = thumbnail(images[i], PICTURE)
        sheet.paste(picture, (left, top))
        pen.rectangle((left - 2, top - 2, left + picture.width + 1, top + picture.height + 1), outline=ACCENT, width=2)
        x = left + PICTURE + GAP
        pen.text((x, top), f"#{i}", INK, font(15))
        for line, (name, values, ranks) in enumerate(zip(names, scores, (agreement.ranks_a, agreement.ranks_b), strict=True)):
            y = top + 28 + 56 * line
            write(pen, (x, y), shortened(name, PICTURE + GAP, 12), FAINT, 12)
            pen.text((x, y + 18), f"{values[i]:.3g}", INK, font(14))
            pen.text((x + 62, y + 18), f"rank {ranks[i]:g} of {len(images)}", INK, font(13))
