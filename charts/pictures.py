"""Pictures as PNG files."""

from __future__ import annotations

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
    pixels = np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)
    info = PngInfo()
    for key, text in chunks.items():
        info.add_text(key, text)
    write_atomically(path, lambda part: Image.fromarray(pixels).save(part, format="PNG", pnginfo=info, compress_level=4))


def read_picture(path: Path) -> Tensor:
    """A picture [H, W, 3] in 0..1."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255)
