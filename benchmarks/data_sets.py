"""The splits of the eleven data sets that PromptKD's field measures on, laid out as CoOp's DATASETS.md says; and one's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import UnreadableFile, read_json, reading
from ..training.domain_data import Item, labelled_folder, pictures_in


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
    names = {line[0]: line[1] for line in lines if len(line) == 2}
    folders = sorted(names)

    def part(which: str) -> tuple[Item, ...]:
        return tuple(
            Item(path, i, names[name])
            for i, name in enumerate(folders)
            for path in pictures_in(folder / spec.pictures / which / name)
        )

    return Split(tuple(names[name] for name in folders), part("train"), part("val"))


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
