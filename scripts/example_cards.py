"""The square cards of the examples, as ComfyUI's template browser shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfyui_apprentice.charts.lettering import wrapped, write
from PIL import Image, ImageDraw, ImageOps

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
    squares = [picture for picture in pictures if picture.width == picture.height]
    if squares:
        rows = 1 if len(squares) <= 2 else 2
        columns = min(len(squares) // rows, 3)
        tiles = [(squares[n], n % columns, n // columns) for n in range(rows * columns)]
        size = (SIDE // columns + 1, (SIDE - STRIP) // rows)
    else:  # charts, which are wide, one below the other
        image.paste("#fafaf7", (0, 0, SIDE, SIDE - STRIP))
        tiles = [(picture, 0, row) for row, picture in enumerate(pictures[:2])]
        size = (SIDE, (SIDE - STRIP) // len(tiles))
    for picture, column, row in tiles:
        tile = ImageOps.fit(picture, size) if squares else ImageOps.contain(picture, size)
        image.paste(
            tile, (column * (size[0] - bool(squares)) + (size[0] - tile.width) // 2, row * size[1] + (size[1] - tile.height) // 2)
        )
    return image


def _loaded(nodes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is loaded, as (what it is, file)."""
    return [
        (LOADS[key], str(value))
        for node in nodes.values()
        for key, value in node["inputs"].items()
        if key in LOADS and (key != "name" or node["class_type"] == "ApprenticeLoadOracle")
    ]


def written_card(title: str, nodes: Mapping[str, Any], steps: Sequence[str] = ()) -> Image.Image:
    """The pipeline in words: nothing is drawn that these models haven't drawn.

    ``steps`` are the frames' titles, for a graph that loads nothing.
    """
    image, pen = _titled(title)
    loaded = list(dict.fromkeys(_loaded(nodes))) or [("step " + step.split()[0], step.split(maxsplit=1)[1]) for step in steps]
    step = min(84, (SIDE - STRIP - 2 * EDGE) // len(loaded))
    size = 22 if step > 66 else 17
    for row, (kind, file) in enumerate(loaded):
        top = EDGE + row * step
        pen.rounded_rectangle((EDGE, top, SIDE - EDGE, top + step - 12), 10, fill=(38, 42, 54))
        pen.rectangle((EDGE, top, EDGE + 5, top + step - 12), fill=ACCENT if kind == "judge" else (94, 146, 222))
        write(pen, (EDGE + 20, top + 3), kind, DIM, size - 6)
        name = wrapped(file.rsplit(".", 1)[0], SIDE - 2 * EDGE - 40, size, 1)[0]
        write(pen, (EDGE + 20, top + size), name, INK, size)
    return image
