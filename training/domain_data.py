"""Pictures of a domain: folders with or without classes, and the splits of the eleven data sets that the field measures on."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from ..files import UnreadableFile, read_json, reading
from ..oracles.preprocess import normalise, resize_and_crop, round_half_even

# Left by macOS and Jupyter beside pictures, like everything whose name begins with a dot.
_NOT_PICTURES = ("__MACOSX",)
_TEXT_LIMIT = 256 * 2**20  # bytes of text in one PNG


@dataclass(frozen=True)
class Item:
    """A picture and its class."""

    path: Path
    label: int
    name: str


@dataclass(frozen=True)
class Split:
    """A data set: class names in the order of their labels, and the pictures of each part."""

    classes: tuple[str, ...]
    train: tuple[Item, ...]
    test: tuple[Item, ...]

    def halves(self) -> tuple[range, range]:
        """The classes of base-to-novel: the first ceil(n / 2) labels are base, the others novel (as in CoOp's code)."""
        middle = math.ceil(len(self.classes) / 2)
        return range(middle), range(middle, len(self.classes))


# ---------------------------------------------------------------------------------------------------------- folders


def pictures_in(folder: Path) -> list[Path]:
    """All pictures below ``folder``, sorted by path.

    Raises:
        ValueError: There is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; give one with pictures of your domain.")
    known = picture_extensions()
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in known and not _hidden(p, folder) and p.is_file())
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(known)}).")
    return found


def picture_extensions() -> list[str]:
    """Extensions of the files that are taken for pictures: all raster formats that the installed Pillow reads."""
    known = Image.registered_extensions()
    return sorted(e for e, kind in known.items() if kind in Image.OPEN and kind not in ("PDF", "EPS", "MPEG", "HDF5", "WMF"))


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part in _NOT_PICTURES for part in path.relative_to(folder).parts)


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


# ----------------------------------------------------------------------------------------------------------- splits


@dataclass(frozen=True)
class DataSet:
    """Where a data set of the field lies below the root, and how PromptKD was run on it.

    Attributes:
        published: Base and novel accuracy in percent of PromptKD with ViT-B/16 (arXiv 2403.02781, table 1), not measured here.
        weight: Of the loss, in the published runs.
    """

    folder: str
    pictures: str
    split: str
    published: tuple[float, float]
    weight: float = 1000.0


DATA_SETS: dict[str, DataSet] = {
    "imagenet": DataSet("imagenet", "images", "classnames.txt", (80.83, 74.66)),
    "caltech101": DataSet("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", (98.91, 96.65)),
    "oxford_pets": DataSet("oxford_pets", "images", "split_zhou_OxfordPets.json", (96.3, 98.01)),
    "stanford_cars": DataSet("stanford_cars", "", "split_zhou_StanfordCars.json", (82.8, 83.37)),
    "oxford_flowers": DataSet("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", (99.42, 82.62), 200.0),
    "food101": DataSet("food-101", "images", "split_zhou_Food101.json", (92.43, 93.68)),
    "fgvc_aircraft": DataSet("fgvc_aircraft", "images", "variants.txt", (49.12, 41.81), 200.0),
    "sun397": DataSet("sun397", "SUN397", "split_zhou_SUN397.json", (83.69, 81.54)),
    "dtd": DataSet("dtd", "images", "split_zhou_DescribableTextures.json", (85.84, 71.37), 200.0),
    "eurosat": DataSet("eurosat", "2750", "split_zhou_EuroSAT.json", (97.54, 82.08)),
    "ucf101": DataSet("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", (89.71, 82.27)),
}


def read_split(root: Path, name: str) -> Split:
    """A data set of the field by its name, laid out below ``root`` as CoOp's instructions say.

    Raises:
        ValueError: There is no data set of that name, or a file is missing or not in its form.
    """
    if name not in DATA_SETS:
        raise ValueError(f"There is no data set '{name}'; choose one of: {', '.join(DATA_SETS)}.")
    spec = DATA_SETS[name]
    folder = root / spec.folder
    if not (folder / spec.split).is_file():
        raise ValueError(f"{folder / spec.split} is missing; lay {name} out as CoOp's DATASETS.md says.")
    if name == "imagenet":
        return _imagenet(folder, spec)
    if name == "fgvc_aircraft":
        return _aircraft(folder, spec)
    return read_split_file(folder / spec.split, folder / spec.pictures)


def read_split_file(path: Path, pictures: Path) -> Split:
    """A split in CoOp's form: JSON with ``train``, ``val`` and ``test``, each a list of [path, label, class name].

    Raises:
        ValueError: It is not in that form, or a picture lies outside ``pictures``.
    """
    with reading(path.name):
        return _read_split(path, pictures)


def _read_split(path: Path, pictures: Path) -> Split:
    try:
        content = read_json(path)
        parts = {part: [_item(row, pictures) for row in content[part]] for part in ("train", "test")}
    except (OSError, LookupError, TypeError, AttributeError, RecursionError) as error:
        form = "train, val and test, each of [path, label, class]"
        raise UnreadableFile(f"{path} is not a split in CoOp's form ({form}).") from error
    names = {item.label: item.name for part in parts.values() for item in part}
    if sorted(names) != list(range(len(names))):
        raise UnreadableFile(f"{path} has labels that are not 0 to {len(names) - 1}; it is damaged.")
    return Split(tuple(names[i] for i in range(len(names))), tuple(parts["train"]), tuple(parts["test"]))


def _item(row: Any, pictures: Path) -> Item:
    if not isinstance(row, list) or [type(value) for value in row] != [str, int, str]:
        raise TypeError(f"{str(row)[:60]} is not [path, label, class name]")  # told of the whole file by the caller
    relative, label, name = row
    path = pictures / relative
    if not path.resolve().is_relative_to(pictures.resolve()):
        raise UnreadableFile(f"{pictures.name}'s split names '{relative}', which lies outside {pictures}.")
    return Item(path, label, name)


def _aircraft(folder: Path, spec: DataSet) -> Split:
    names = [line.strip() for line in (folder / spec.split).read_text(encoding="utf-8").splitlines() if line.strip()]
    labels = {name: i for i, name in enumerate(names)}

    def part(which: str) -> tuple[Item, ...]:
        path = folder / f"images_variant_{which}.txt"
        if not path.is_file():
            raise ValueError(f"{path} is missing; lay fgvc_aircraft out as CoOp's DATASETS.md says.")
        rows = (line.strip().split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        try:
            return tuple(Item(folder / spec.pictures / f"{picture}.jpg", labels[name], name) for picture, name in rows)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} names a variant that {spec.split} lacks, or is damaged.") from error

    return Split(tuple(names), part("train"), part("test"))


def _imagenet(folder: Path, spec: DataSet) -> Split:
    lines = [
        line.strip().split(" ", 1) for line in (folder / spec.split).read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    known = {line[0]: line[1] for line in lines if len(line) == 2}
    folders = sorted(known)

    def part(which: str) -> tuple[Item, ...]:
        return tuple(
            Item(path, i, known[name])
            for i, name in enumerate(folders)
            for path in pictures_in(folder / spec.pictures / which / name)
        )

    return Split(tuple(known[name] for name in folders), part("train"), part("val"))


def folder_split(root: Path) -> Split:
    """A data set of one's own: ``train/<class>`` and ``test/<class>`` below ``root``.

    Raises:
        ValueError: A part is missing, or the two don't have the same classes.
    """
    (names, train), (tested, test) = (labelled_folder(root / part) for part in ("train", "test"))
    if names != tested:
        other = sorted(set(names) ^ set(tested))
        raise ValueError(f"train and test in {root} must have the same classes; '{other[0]}' is in one of them only.")
    return Split(names, tuple(train), tuple(test))


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
        return resize_and_crop(_pixels(read_picture(self.paths[index])), self.size, round_half_even)

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
