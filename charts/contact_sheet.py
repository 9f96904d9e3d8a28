"""The contact sheet: every picture with its score and decision, before and after, and the scores' histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..gate.verdict import ACCEPTED, IMPROVED, KEPT, REJECTED, Judgement, Verdict, summary

PAPER, INK, FAINT = (250, 250, 248), (34, 36, 40), (150, 152, 156)
COLOURS = {ACCEPTED: (46, 125, 80), REJECTED: (190, 60, 50), IMPROVED: (35, 95, 180), KEPT: (196, 130, 20)}
PICTURE, GAP, CAPTION, CHART = 160, 14, 56, 210  # sizes in pixels
COLUMNS = 6


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
    cells = [_cell(j, images[j.index], None if drafts is None else drafts[j.index]) for j in verdict]
    body = _rows(cells)
    width = max(body.width, 3 * PICTURE + 4 * GAP)
    lines = _wrapped(summary(verdict), width - 2 * GAP, font(14))
    height = 2 * GAP + 20 * len(lines) + body.height + CHART
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        pen.text((GAP, GAP + 20 * i), line, INK, font(14))
    sheet.paste(body, (0, GAP + 20 * len(lines)))
    sheet.paste(histogram(verdict, width, CHART), (0, height - CHART))
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that sheets look alike everywhere."""
    return ImageFont.load_default(size)


def thumbnail(image: Tensor) -> Image.Image:
    """A picture [H, W, 3 or more] in 0..1 with its longer side ``PICTURE`` pixels long."""
    values = (image[..., :3].nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy()
    picture = Image.fromarray(values)
    scale = PICTURE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def _cell(judgement: Judgement, image: Tensor, draft: Tensor | None) -> Image.Image:
    """One picture, or draft and picture side by side, in the colour of the decision, with a caption below."""
    shown = [thumbnail(image)]
    if judgement.decision == IMPROVED and draft is not None:
        shown.insert(0, thumbnail(draft))
    width = len(shown) * PICTURE + (len(shown) - 1) * GAP
    cell = Image.new("RGB", (width + GAP, PICTURE + CAPTION + GAP), PAPER)
    pen = ImageDraw.Draw(cell)
    colour = COLOURS.get(judgement.decision, INK)
    for i, picture in enumerate(shown):
        left = GAP // 2 + i * (PICTURE + GAP)
        pen.rectangle((left - 3, 4, left + picture.width + 2, 9 + picture.height), outline=colour, width=3)
        cell.paste(picture, (left, 7))
    if len(shown) == 2:
        middle, height = GAP // 2 + PICTURE + GAP // 2, PICTURE // 2
        pen.polygon([(middle - 4, height), (middle - 4, height + 12), (middle + 5, height + 6)], fill=colour)
    score = f"{judgement.score:.3g}"
    if judgement.draft_score is not None and judgement.decision == IMPROVED:
        score = f"{judgement.draft_score:.3g} to {score}"
    lines = [f"#{judgement.index}  {score}", judgement.decision]
    for i, line in enumerate(lines):
        pen.text((GAP // 2 - 2, PICTURE + 12 + 15 * i), line, colour if i else INK, font(13))
    prompt = shortened(judgement.prompt, width, font(11))
    pen.text((GAP // 2 - 2, PICTURE + 43), prompt, FAINT, font(11))
    return cell


def _rows(cells: Sequence[Image.Image]) -> Image.Image:
    """The cells from left to right in lines of about ``COLUMNS`` pictures."""
    limit = COLUMNS * (PICTURE + GAP) + GAP
    lines: list[list[Image.Image]] = [[]]
    for cell in cells:
        if lines[-1] and sum(c.width for c in lines[-1]) + cell.width > limit:
            lines.append([])
        lines[-1].append(cell)
    width = max((sum(c.width for c in line) for line in lines), default=0) + GAP
    height = PICTURE + CAPTION + GAP
    body = Image.new("RGB", (max(width, 1), height * len(lines) + GAP), PAPER)
    for row, line in enumerate(lines):
        left = GAP // 2
        for cell in line:
            body.paste(cell, (left, row * height + GAP))
            left += cell.width
    return body


def histogram(verdict: Verdict, width: int, height: int, bins: int = 24) -> Image.Image:
    """How the drafts scored, with the threshold as a line; scores that are not numbers are left out."""
    chart = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(chart)
    scores = [s for s in (_draft_score(j) for j in verdict) if math.isfinite(s)]
    thresholds = {j.threshold for j in verdict}
    threshold = thresholds.pop() if len(thresholds) == 1 else math.nan  # every picture its own: no line, no sides
    left, right, top, bottom = 2 * GAP, width - 2 * GAP, 34, height - 34
    pen.text((GAP, 8), "scores of the drafts, and the threshold", INK, font(13))
    pen.line((left, bottom, right, bottom), FAINT)
    if not scores:
        return chart
    values = [*scores, threshold] if math.isfinite(threshold) else scores
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or 0.5
    low, high = low - room, high + room
    counts, _ = np.histogram(scores, bins, (low, high))
    step = (right - left) / bins
    for i, count in enumerate(counts):
        if count:
            middle = low + (i + 0.5) * (high - low) / bins
            colour = FAINT if math.isnan(threshold) else COLOURS[ACCEPTED if not middle < threshold else REJECTED]
            tall = (bottom - top) * count / counts.max()
            pen.rectangle((left + i * step + 1, bottom - tall, left + (i + 1) * step - 1, bottom), fill=colour)
    for text, value in ((f"{low:.3g}", low), (f"{high:.3g}", high)):
        x = left + (value - low) / (high - low) * (right - left)
        pen.text((min(x, right - pen.textlength(text, font(11))), bottom + 6), text, FAINT, font(11))
    if math.isfinite(threshold):
        x = left + (threshold - low) / (high - low) * (right - left)
        pen.line((x, top - 4, x, bottom + 4), INK, 2)
        pen.text((min(x + 5, right - 60), bottom + 6), f"{threshold:.4g}", INK, font(12))
    return chart


def _draft_score(judgement: Judgement) -> float:
    return judgement.score if judgement.draft_score is None else judgement.draft_score


def shortened(text: str, width: float, face: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """``text`` in one line of at most ``width`` pixels, with "…" where something was left out."""
    line = " ".join(text.split())
    if face.getlength(line) <= width:
        return line
    while line and face.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def _wrapped(text: str, width: float, face: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
