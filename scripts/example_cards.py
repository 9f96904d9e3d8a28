"""The square cards of the examples, as ComfyUI's template browser shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from comfyui_apprentice.charts.lettering import wrapped, write

SIDE, STRIP, EDGE = 512, 116, 24
INK, PAPER, DIM, ACCENT = (240, 240, 244), (24, 26, 34), (150, 156, 172), (255, 184, 76)
LOADS = {"ckpt_name": "checkpoint", "unet_name": "model", "lora_name": "LoRA", "control_net_name": "ControlNet", "name": "judge"}


def _titled(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(image)
    lines = wrapped(title, SIDE - 2 * EDGE, 30, 2)
    for row, line in enumerate(lines):
        write(pen, (EDGE, SIDE - STRIP + 16 + 40 * row + 20 * (2 - len(lines))), line, INK, 30)
    pen.rectangle((0, SIDE - STRIP, SIDE, SIDE - STRIP + 4), fill=ACCENT)
    return image, pen


def drawn_card(title: str, pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures of a run, as large as they fit; charts where there are no pictures.

    Raises:
        ValueError: The run has saved nothing.
    """
    if not pictures:
        raise ValueError("This example saves no pictures; a card needs some.")
    image, _pen = _titled(title)
    shown = [p for p in pictures if max(p.size) <= 256] or list(pictures)
    rows = 1 if len(shown) <= 2 else 2
    columns = min(len(shown), 4 if rows == 2 else 2) if len(shown) <= 8 else 4
    columns = (len(shown[: rows * columns]) + rows - 1) // rows
    width, height = SIDE // columns, (SIDE - STRIP) // rows
    for number, picture in enumerate(shown[: rows * columns]):
        scale = max(width / picture.width, height / picture.height) if picture.width == picture.height else min(
            width / picture.width, height / picture.height
        )
        tile = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
        left, top = (tile.width - width) // 2, (tile.height - height) // 2
        image.paste(tile.crop((left, top, left + width, top + height)), (number % columns * width, number // columns * height))
    return image


def _loaded(nodes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is loaded, as (what it is, file)."""
    return [
        (LOADS[key], str(value))
        for node in nodes.values()
        for key, value in node["inputs"].items()
        if key in LOADS and (key != "name" or node["class_type"] == "ApprenticeLoadOracle")
    ]


def written_card(title: str, nodes: Mapping[str, Any]) -> Image.Image:
    """The pipeline in words: nothing is drawn that these models haven't drawn."""
    image, pen = _titled(title)
    loaded = list(dict.fromkeys(_loaded(nodes)))
    step = min(84, (SIDE - STRIP - 2 * EDGE) // len(loaded))
    for row, (kind, file) in enumerate(loaded):
        top = EDGE + row * step
        pen.rounded_rectangle((EDGE, top, SIDE - EDGE, top + step - 12), 10, fill=(38, 42, 54))
        pen.rectangle((EDGE, top, EDGE + 5, top + step - 12), fill=ACCENT if kind == "judge" else (94, 146, 222))
        write(pen, (EDGE + 20, top + 4), kind, DIM, 15)
        name = wrapped(file.rsplit(".", 1)[0], SIDE - 2 * EDGE - 40, 21, 1)[0]
        write(pen, (EDGE + 20, top + 24), name, INK, 21)
    return image
