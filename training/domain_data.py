"""Pictures of a domain, from folders with or without classes."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from ..files import UnreadableFile
from ..oracles.preprocess import normalise, resize_and_crop, round_half_even

# Left by macOS and Jupyter beside pictures, like everything whose name begins with a dot.
_NOT_PICTURES = ("__MACOSX",)
_TEXT_LIMIT = 256 * 2**20  # bytes of text in one PNG
_DECODED_BYTES = 2**30  # of pictures that are kept in memory: 1,700 of 224 pixels


@dataclass(frozen=True)
class Item:
    """A picture and its class."""

    path: Path
    label: int
    name: str


# ---------------------------------------------------------------------------------------------------------- folders


def pictures_in(folder: Path) -> list[Path]:
    """All pictures below ``folder``, sorted by path.

    Raises:
        ValueError: There is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; give one with pictures of your domain.")
    extensions = picture_extensions()
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in extensions and not _hidden(p, folder) and p.is_file())
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(extensions)}).")
    return paths


def picture_extensions() -> list[str]:
    """Extensions of the files that are taken for pictures: all raster formats that the installed Pillow reads."""
    kinds = Image.registered_extensions()
    return sorted(e for e, kind in kinds.items() if kind in Image.OPEN and kind not in ("PDF", "EPS", "MPEG", "HDF5", "WMF"))


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part in _NOT_PICTURES for part in path.relative_to(folder).parts)


def captions(paths: Sequence[Path]) -> list[str]:
    """What each picture was asked to show: the text beside it, ``a.txt`` beside ``a.png``, as sets for training are kept.

    Raises:
        ValueError: There is none, or it is empty; the picture is named.
    """
    texts = []
    for path in paths:
        beside = path.with_suffix(".txt")
        text = beside.read_text(encoding="utf-8", errors="replace")[:10_000].strip() if beside.is_file() else ""
        if not text:
            raise ValueError(f"{path.name} has no prompt: write what it was asked to show into {beside.name} beside it.")
        texts.append(text)
    return texts


def labelled_folder(folder: Path) -> tuple[tuple[str, ...], list[Item]]:
    """Class names and pictures of a folder with one subfolder a class, in the order of the names.

    Raises:
        ValueError: There is no such folder, or it has no class with pictures.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; give one with a subfolder for each class.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not _hidden(p, folder))
    if not names:
        raise ValueError(f"{folder} has no subfolders: put the pictures of each class in a folder of the class's name.")
    return tuple(names), [Item(p, i, name) for i, name in enumerate(names) for p in pictures_in(folder / name)]


def few_shot(items: Sequence[Item], shots: int, seed: int) -> list[Item]:
    """At most ``shots`` pictures of every class, chosen by ``seed``."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    left: dict[int, int] = {}
    chosen = []
    for i in order:
        label = items[i].label
        left[label] = left.get(label, 0) + 1
        if left[label] <= shots:
            chosen.append(items[i])
    return chosen


# --------------------------------------------------------------------------------------------------------- pictures


def read_picture(path: Path, mode: str = "RGB") -> Image.Image:
    """A picture in ``mode`` ("RGB" or "L"), upright, eight bits a channel; a PNG of any amount of text.

    Raises:
        ValueError: It is missing, no picture, or damaged.
    """
    try:
        # All of it first: Pillow would make room for as many bytes as a damaged file says that it has.
        with _any_text(), Image.open(io.BytesIO(path.read_bytes())) as opened:
            upright: Image.Image = _eight_bits(ImageOps.exif_transpose(opened)).convert(mode)
            return upright
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers fail in a dozen ways
        raise UnreadableFile(f"{path} is missing, no picture, or damaged: delete it, or put a good one in its place.") from error


def picture(path: Path) -> Tensor:
    """A picture as judges see it: [1, H, W, 3] in 0..1.

    Raises:
        ValueError: See ``read_picture``.
    """
    return _pixels(read_picture(path))


@contextmanager
def _any_text() -> Iterator[None]:
    """Have Pillow read PNGs with more text than its own limits, such as a long workflow.

    The text is no larger than the limits set here, which keeps a stranger's file from filling the memory.
    """
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _TEXT_LIMIT
    try:
        yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey scaled to eight bits; Pillow's own conversion would clip it to white."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))


def crop_box(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of torchvision's ``RandomResizedCrop``: area 8 to 100 %, ratio 3/4 to 4/3, ten tries."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area, ratio, x, y = torch.rand(4, generator=generator).tolist()
        area, ratio = width * height * (0.08 + 0.92 * area), math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


class DomainPictures:
    """Pictures from files, as ``training.promptkd`` draws them.

    Args:
        paths: The files.
        size: Side of the squares that the CLIPs see.
        augment: The published random crops and mirrorings; otherwise open_clip's evaluation transform.
        seed: Decides, with the epoch and the picture's index, how it is augmented.
    """

    def __init__(self, paths: Sequence[Path], size: int, augment: bool, seed: int = 0) -> None:
        self.paths, self.size, self.augment, self.seed = list(paths), size, augment, seed
        self._decoded: dict[int, Tensor] = {}  # where nothing is augmented: looked at in every epoch

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int], epoch: int) -> Tensor:
        """Normalised pictures [B, 3, S, S].

        Raises:
            ValueError: A file can't be read; it is named.
        """
        return torch.cat([self._augmented(i, epoch) if self.augment else self._plain(i) for i in indices])

    def sources(self) -> list[str]:
        """What tells each file from any other and from its earlier self: for stored features.

        Raises:
            ValueError: A file is gone.
        """
        try:
            return [f"{p}|{(s := p.stat()).st_size}|{s.st_mtime_ns}|{self.size}" for p in self.paths]
        except OSError as error:
            raise ValueError(f"{error.filename} is gone; put it back, or begin another run.") from error

    def _plain(self, index: int) -> Tensor:
        if index in self._decoded:
            return self._decoded[index]
        pixels = resize_and_crop(_pixels(read_picture(self.paths[index])), self.size, round_half_even)
        if (len(self._decoded) + 1) * pixels.nbytes <= _DECODED_BYTES:
            self._decoded[index] = pixels
        return pixels

    def _augmented(self, index: int, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(((self.seed * 10_007 + epoch) * 1_000_000_007 + index) & 0x7FFFFFFFFFFFFFFF)
        picture = read_picture(self.paths[index])
        left, top, width, height = crop_box(*picture.size, generator)
        box = (left, top, left + width, top + height)
        # Cropped first, as torchvision does: with resize's own box the filter would look beyond the edges.
        picture = picture.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC)
        if torch.rand((), generator=generator) < 0.5:
            picture = ImageOps.mirror(picture)
        return normalise(_pixels(picture).movedim(-1, 1))


class FixedPictures:
    """Pictures that are in memory already, as ``training.promptkd`` draws them; without augmentation.

    Args:
        batches: Each [N, H, W, 3] in 0..1, of any size.
        size: Side of the squares that the CLIPs see.
    """

    def __init__(self, batches: Sequence[Tensor], size: int) -> None:
        parts = [part for images in batches for part in images.split(32)]
        self.pixels = torch.cat([resize_and_crop(part, size, round_half_even) for part in parts])

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Sequence[int], epoch: int) -> Tensor:
        """Normalised pictures [B, 3, S, S]."""
        return self.pixels[list(indices)]

    def sources(self) -> list[str]:
        """What tells these pictures from others: for stored features."""
        return [hashlib.sha256(self.pixels.numpy().tobytes()).hexdigest()]


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).float()[None] / 255
