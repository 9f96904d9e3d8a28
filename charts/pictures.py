"""Pictures as PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..files import write_atomically


def save_picture(image: Tensor, path: Path, chunks: Mapping[str, str]) -> None:
    """Write a picture [H, W, C] in 0..1 with text chunks, atomically; pixels as the stock Save Image rounds them."""
    content = as_png(image, chunks)
    write_atomically(path, lambda part: part.write_bytes(content))


def as_png(image: Tensor, chunks: Mapping[str, str]) -> bytes:
    """The same as a file's content."""
    pixels, info, file = np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8), PngInfo(), io.BytesIO()
    for key, text in chunks.items():
        info.add_text(key, text)
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=info, compress_level=4)
    return file.getvalue()


def read_picture(path: Path) -> Tensor:
    """A picture [H, W, 3] in 0..1."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255)
