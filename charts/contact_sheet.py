"""The contact sheet: every picture with its score and decision, before and after, and the scores' histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..gate.verdict import ACCEPTED, IMPROVED, KEPT, REJECTED, Judgement, Verdict, summary
from .lettering import Colour, font, missing_letters, width_of, wrapped, write

PAPER, INK, FAINT = (250, 250, 248), (34, 36, 40), (118, 120, 126)
COLOURS = {ACCEPTED: (46, 125, 80), REJECTED: (190, 60, 50), IMPROVED: (35, 95, 180), KEPT: (196, 130, 20)}
GAP, TEXT, CHART = 14, 15, 250  # sizes in pixels; CHART: the histogram's height
LARGEST, SMALLEST, ENLARGED = 512, 128, 256  # of a picture's longer side; ENLARGED: as far as a smaller one is blown up
AREA = 6_000_000  # pixels that the pictures of a sheet may have together: 64 of them are 306 wide


@dataclass(frozen=True)
class _Cell:
    """What is drawn of one picture: draft and picture, or the picture alone."""

    judgement: Judgement
    shown: list[Image.Image]

    @property
    def width(self) -> int:
        return sum(picture.width + GAP for picture in self.shown)


def contact_sheet(verdict: Verdict, images: Tensor, drafts: Tensor | None = None) -> Tensor:
    """The sheet [1, H, W, 3] in 0..1.

    Args:
        images: The final pictures [B, H, W, 3 or more] in 0..1, in the verdict's order.
        drafts: The drafts; then every picture that the teacher changed is shown as before and after.

    Raises:
        ValueError: The number of pictures differs from the verdict's.
    """
    verdict.require_batch(len(images), "images")
    if drafts is not None:
        verdict.require_batch(len(drafts), "draft_images")
    side = picture_side(images, sum(2 if drafts is not None and j.decision == IMPROVED else 1 for j in verdict))
    cells = [_cell(j, images[j.index], None if drafts is None else drafts[j.index], side) for j in verdict]
    body = _rows(cells)
    width = max(body.width, 640)
    lines = wrapped(f"{summary(verdict)} {missing_letters(verdict.prompts)}", width - 2 * GAP, TEXT)
    head = 2 * GAP + 22 * len(lines)
    sheet = Image.new("RGB", (width, head + body.height + CHART), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        write(pen, (GAP, GAP + 22 * i), line, INK, TEXT)
    sheet.paste(body, (0, head))
    sheet.paste(histogram(verdict, min(width, 1000), CHART), (0, head + body.height))
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


def picture_side(images: Tensor, count: int) -> int:
    """How long a picture's longer side is drawn: large enough to compare hands, as far as so many leave room for it."""
    room = min(LARGEST, max(SMALLEST, math.isqrt(AREA // max(count, 1))))
    return min(room, max(ENLARGED, *images.shape[1:3]))


def thumbnail(image: Tensor, side: int) -> Image.Image:
    """A picture [H, W, 3 or more] in 0..1 with its longer side ``side`` pixels long."""
    values = (image[..., :3].nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy()
    picture = Image.fromarray(values)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def _cell(judgement: Judgement, image: Tensor, draft: Tensor | None, side: int) -> _Cell:
    before = [] if draft is None or judgement.decision != IMPROVED else [thumbnail(draft, side)]
    return _Cell(judgement, [*before, thumbnail(image, side)])


def _draw_cell(pen: ImageDraw.ImageDraw, sheet: Image.Image, cell: _Cell, place: tuple[int, int], tall: int) -> None:
    """One picture, or draft and picture side by side, in the colour of the decision, with its words below ``tall``."""
    left, top = place
    colour = COLOURS.get(cell.judgement.decision, INK)
    x = left
    for picture in cell.shown:
        pen.rectangle((x - 3, top - 3, x + picture.width + 2, top + picture.height + 2), outline=colour, width=3)
        sheet.paste(picture, (x, top))
        x += picture.width + GAP
    if len(cell.shown) == 2:
        middle, height = left + cell.shown[0].width + GAP // 2, top + cell.shown[0].height // 2
        pen.polygon([(middle - 3, height - 6), (middle - 3, height + 6), (middle + 4, height)], fill=colour)
    size = TEXT if cell.shown[0].width >= 200 else TEXT - 2
    y = top + tall + 6.0
    for text, ink, smaller, most in _caption(cell.judgement, colour):
        for line in wrapped(text, cell.width - GAP, size - smaller, most):
            write(pen, (left, y), line, ink, size - smaller)
            y += 1.4 * (size - smaller)


def _caption(judgement: Judgement, colour: Colour) -> list[tuple[str, Colour, int, int]]:
    """Number and score, before it the draft's where the teacher's picture is shown; what was decided; the prompt.

    Each with its colour, by how much its letters are smaller, and in how many lines at most.
    """
    score = "no score" if math.isnan(judgement.score) else f"{judgement.score:.3g}"
    if judgement.draft_score is not None and judgement.decision == IMPROVED:
        score = f"{judgement.draft_score:.3g} → {score}".replace("nan", "no score")
    head = f"#{judgement.index}: {score}"
    decision = judgement.decision + " by hand" * bool(judgement.override)
    return [(head, INK, 0, 2), (decision, colour, 0, 1), (judgement.prompt, FAINT, 1, 2)]


def _rows(cells: Sequence[_Cell]) -> Image.Image:
    """The cells from left to right, in lines that make the whole about three wide and two high."""
    if not cells:
        return Image.new("RGB", (1, 1), PAPER)
    words = 7 * TEXT
    area = sum(cell.width * (max(p.height for p in cell.shown) + words + GAP) for cell in cells)
    total, widest = sum(cell.width for cell in cells), max(cell.width for cell in cells)
    rows = max(1, round(total / math.sqrt(area * 1.3)))
    limit = max(total / rows, widest)
    lines: list[list[_Cell]] = [[] for _ in range(rows)]
    before = 0.0
    for cell in cells:  # into the line that its middle falls into
        lines[min(int((before + cell.width / 2) / limit), rows - 1)].append(cell)
        before += cell.width
    lines = [line for line in lines if line]
    heights = [max(p.height for cell in line for p in cell.shown) for line in lines]
    width = max(sum(cell.width for cell in line) for line in lines) + GAP
    body = Image.new("RGB", (width, sum(heights) + len(lines) * (words + GAP)), PAPER)
    pen, top = ImageDraw.Draw(body), 4
    for line, tall in zip(lines, heights, strict=True):
        left = GAP
        for cell in line:
            _draw_cell(pen, body, cell, (left, top), tall)
            left += cell.width
        top += tall + words + GAP
    return body


# -------------------------------------------------------------------------------------------------------- histogram


def histogram(verdict: Verdict, width: int, height: int, bins: int = 24) -> Image.Image:
    """How the drafts scored, stacked by what became of them, with the threshold as a line; below, how many of each."""
    chart = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(chart)
    scores = {word: [s for j in verdict if j.decision == word and math.isfinite(s := _draft_score(j))] for word in COLOURS}
    every = [score for group in scores.values() for score in group]
    thresholds = {j.threshold for j in verdict}
    threshold = thresholds.pop() if len(thresholds) == 1 else math.nan  # every picture its own: no line
    write(pen, (GAP, 2), f"scores of the drafts{_about(threshold, len(verdict))}", INK, TEXT)
    left, right, top, bottom = 2 * GAP, width - 2 * GAP, 56, height - 62
    pen.line((left, bottom, right, bottom), FAINT)
    _legend(pen, verdict, (left, height - 32), right)
    if not every:
        return chart
    values = [*every, threshold] if math.isfinite(threshold) else every
    room = (max(values) - min(values)) * 0.04 or 0.5
    low, high = min(values) - room, max(values) + room
    groups = [(COLOURS[word], np.histogram(group, bins, (low, high))[0]) for word, group in scores.items()]
    _stacks(pen, groups, (left, right, top, bottom))
    pen.text((left, bottom + 5), f"{low:.3g}", FAINT, font(TEXT - 3), anchor="la")
    pen.text((right, bottom + 5), f"{high:.3g}", FAINT, font(TEXT - 3), anchor="ra")
    if math.isfinite(threshold):
        x = left + (threshold - low) / (high - low) * (right - left)
        pen.line((x, top - 8, x, bottom + 4), INK, 2)
        label, half = f"{threshold:.4g}", font(TEXT - 1).getlength(f"{threshold:.4g}") / 2
        pen.text((min(max(x, left + half), right - half), top - 10), label, INK, font(TEXT - 1), anchor="ms")
    return chart


def _about(threshold: float, pictures: int) -> str:
    if not pictures:
        return ""
    if math.isnan(threshold):
        return "; each picture has its own threshold"
    if math.isinf(threshold):
        return "; every one passes" if threshold < 0 else "; none passes"
    return ", and the threshold"


def _stacks(
    pen: ImageDraw.ImageDraw, groups: Sequence[tuple[Colour, np.ndarray[Any, Any]]], box: tuple[int, int, int, int]
) -> None:
    """A bar a bin, the groups on top of each other."""
    left, right, top, bottom = box
    total = np.sum([counts for _, counts in groups], axis=0)
    step, unit = (right - left) / len(total), (bottom - top) / max(int(total.max()), 1)
    under = np.zeros_like(total)
    for colour, counts in groups:
        for i in np.flatnonzero(counts):
            lower, upper = bottom - under[i] * unit, bottom - (under[i] + counts[i]) * unit
            pen.rectangle((left + i * step + 1, upper, left + (i + 1) * step - 1, lower - 1), fill=colour)
        under = under + counts


def _legend(pen: ImageDraw.ImageDraw, verdict: Verdict, place: tuple[int, int], right: int) -> None:
    """How many of each decision, and how many have no score; what doesn't fit its line is left to the summary above."""
    x, y = place
    unscored = sum(not math.isfinite(_draft_score(j)) for j in verdict)
    entries = [(f"{count} {word}", COLOURS[word]) for word in COLOURS if (count := sum(j.decision == word for j in verdict))]
    entries += [(f"{unscored} without a score", PAPER)] if unscored else []
    for words, colour in entries:
        wide = 20 + width_of(words, TEXT - 1)
        if x + wide > right:
            break
        pen.rectangle((x, y + 3, x + 12, y + 15), fill=colour, outline=FAINT if colour == PAPER else colour)
        write(pen, (x + 20, y), words, INK, TEXT - 1)
        x += round(wide) + 2 * GAP


def _draft_score(judgement: Judgement) -> float:
    return judgement.score if judgement.draft_score is None else judgement.draft_score
