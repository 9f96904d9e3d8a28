"""Stage ``card``: the honest sample sheet of ``CARD.md``: the first held-out prompts, nothing picked."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...files import write_atomically
from ..weights import FOLDER
from .concepts import BACKGROUNDS, CONCEPTS, GATE_SETS, STYLES, Prompt, held_out_prompts
from .data import BACKGROUND_COLOURS, Icons, on_background
from .sampling import World, unit_noise

COUNT, CELL, LEFT, TOP = 16, 96, 150, 48


def run(work: Path) -> None:
    """Draw ``world/sheet.png``."""
    prompts = held_out_prompts()[:COUNT]
    words, noise, world = [p.text() for p in prompts], unit_noise(COUNT, 11), World()
    rows = {
        "teacher, 16 steps\n(32 evaluations)": world.pictures(world.redraw(words, noise, 16).latents),
        "student, 4 steps": world.pictures(world.draft(words, noise, 4).latents),
        "student, 1 step": world.pictures(world.draft(words, noise, 1).latents),
        "the vendor's own icon\n(on that background:\nnot in the training)": _real(work, prompts),
    }
    picture = draw(words, rows)
    write_atomically(FOLDER.parent / "sheet.png", lambda part: picture.save(part, format="PNG", optimize=True))


def _real(work: Path, prompts: list[Prompt]) -> Tensor:
    """The icons that the prompts name, on the backgrounds they name: [B, 64, 64, 3] in 0..1."""
    icons, names = Icons.load(work, GATE_SETS), list(BACKGROUNDS)
    pictures = []
    for p in prompts:
        rgba = icons.rgba[STYLES.index(p.style), CONCEPTS.index(p.concept), 0]
        pictures.append(on_background(rgba[None], BACKGROUND_COLOURS[names.index(p.background)][None])[0])
    return torch.stack(pictures).movedim(1, -1)


def draw(words: list[str], rows: dict[str, Tensor]) -> Image.Image:
    """The rows as a picture in two halves, prompts above, names at the left."""
    half = (len(words) + 1) // 2
    block = TOP + len(rows) * (CELL + 4) + 10
    canvas = Image.new("RGB", (LEFT + half * (CELL + 4), 2 * block), "white")
    pen, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(13), ImageFont.load_default(11)
    for i, text in enumerate(words):
        x, y = LEFT + (i % half) * (CELL + 4), (i // half) * block
        first, _, second = text.partition(" on ")
        style, _, thing = first.partition(" ")
        for line, (part, colour) in enumerate(((style, "gray"), (thing, "black"), (f"on {second}", "gray"))):
            pen.text((x, y + 2 + 14 * line), part, colour, small)
        for number, pictures in enumerate(rows.values()):
            pixels = (pictures[i].clamp(0, 1) * 255).round().byte().numpy()
            shown = Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC)
            canvas.paste(shown, (x, y + TOP + number * (CELL + 4)))
    for top in (0, block):
        for number, name in enumerate(rows):
            pen.multiline_text((6, top + TOP + number * (CELL + 4) + 20), name, "black", font)
    return canvas
