"""Pictures of a domain: folders, the field's splits, and augmentation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.benchmarks.data_sets import DATA_SETS, folder_split, read_split, read_split_file
from comfyui_apprentice.oracles.preprocess import CLIP_MEAN, CLIP_STD
from comfyui_apprentice.training.domain_data import (
    DomainPictures,
    Item,
    crop_box,
    few_shot,
    labelled_folder,
    pictures_in,
)
from comfyui_apprentice.training.templates import TEMPLATES
from PIL import Image


def picture(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def test_pictures_are_found_at_any_depth_in_a_fixed_order(tmp_path: Path) -> None:
    expected = [picture(tmp_path / name) for name in ("a/1.png", "a/b/2.JPG", "c.webp")]
    (tmp_path / "notes.txt").write_text("no picture")
    assert pictures_in(tmp_path) == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        pictures_in(tmp_path / "empty")
    with pytest.raises(ValueError, match="There is no folder"):
        pictures_in(tmp_path / "missing")


def test_a_subfolder_is_a_class(tmp_path: Path) -> None:
    for name, count in (("dog", 3), ("cat", 2)):
        for i in range(count):
            picture(tmp_path / name / f"{i}.png")
    names, items = labelled_folder(tmp_path)
    assert names == ("cat", "dog")
    assert [item.label for item in items] == [0, 0, 1, 1, 1]
    assert len(few_shot(items, 1, seed=0)) == 2
    assert few_shot(items, 2, seed=3) == few_shot(items, 2, seed=3)
    assert {i.label for i in few_shot(items, 5, seed=0)} == {0, 1}
    with pytest.raises(ValueError, match="no subfolders"):
        labelled_folder(tmp_path / "cat")


def test_a_folder_with_train_and_test_is_a_data_set(tmp_path: Path) -> None:
    for part, name in (("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")):
        picture(tmp_path / part / name / "1.png")
    split = folder_split(tmp_path)
    assert split.classes == ("cat", "dog")
    assert [item.path.parent.parent.name for item in (*split.train, *split.test)] == ["train"] * 2 + ["test"] * 2
    picture(tmp_path / "test" / "emu" / "1.png")
    with pytest.raises(ValueError, match="'emu' is in one of them only"):
        folder_split(tmp_path)


def test_published_figures_average_as_in_the_paper() -> None:
    base, novel = (sum(d.published[i] for d in DATA_SETS.values()) / len(DATA_SETS) for i in (0, 1))
    assert (round(base, 2), round(novel, 2)) == (86.96, 80.73)
    assert round(2 * base * novel / (base + novel), 2) == 83.73


def split_file(path: Path, rows: list[list[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"train": rows, "val": [], "test": rows}), encoding="utf-8")
    return path


def test_a_split_of_the_field_is_read_by_name(tmp_path: Path) -> None:
    split_file(tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json", [["b.jpg", 1, "beagle"], ["a.jpg", 0, "abyssinian"]])
    split = read_split(tmp_path, "oxford_pets")
    assert split.classes == ("abyssinian", "beagle")
    assert split.test[0] == Item(tmp_path / "oxford_pets" / "images" / "b.jpg", 1, "beagle")
    with pytest.raises(ValueError, match=r"split_zhou_Food101\.json is missing"):
        read_split(tmp_path, "food101")
    with pytest.raises(ValueError, match="no data set 'mnist'"):
        read_split(tmp_path, "mnist")


def test_the_first_half_of_the_classes_is_base_and_the_middle_one_too(tmp_path: Path) -> None:
    path = split_file(tmp_path / "s.json", [[f"{i}.jpg", i, f"c{i}"] for i in range(5)])
    assert read_split_file(path, tmp_path).halves() == (range(3), range(3, 5))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "no valid JSON"),
        ('{"train": []}', "not a split in CoOp's form"),
        ('{"train": [["a.jpg", 1, "x"]], "test": []}', "not 0 to 0"),
        ('{"train": [["a.jpg", "one", "x"]], "test": []}', "not a split in CoOp's form"),
        ('{"train": [["../../secret.jpg", 0, "x"]], "test": []}', "outside"),
    ],
)
def test_a_bad_split_is_refused_in_words(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ValueError, match=told):
        read_split_file(tmp_path / "s.json", tmp_path / "images")


def test_aircraft_and_imagenet_have_their_own_files(tmp_path: Path) -> None:
    aircraft = tmp_path / "fgvc_aircraft"
    aircraft.mkdir()
    (aircraft / "variants.txt").write_text("707-320\nBoeing 717\n")
    for part in ("train", "test"):
        (aircraft / f"images_variant_{part}.txt").write_text("0012 Boeing 717\n0034 707-320\n")
    split = read_split(tmp_path, "fgvc_aircraft")
    assert [item.label for item in split.train] == [1, 0]
    assert split.test[0].path == aircraft / "images" / "0012.jpg"
    imagenet = tmp_path / "imagenet"
    imagenet.mkdir()
    (imagenet / "classnames.txt").write_text("n02 goldfish\nn01 great white shark\n")
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            picture(imagenet / "images" / part / name / "x.jpeg")
    split = read_split(tmp_path, "imagenet")
    assert split.classes == ("great white shark", "goldfish")
    assert [item.name for item in split.test] == ["great white shark", "goldfish"]


def test_the_eleven_data_sets_have_the_published_weights() -> None:
    assert len(DATA_SETS) == 11
    assert {name for name, spec in DATA_SETS.items() if spec.weight == 200} == {"oxford_flowers", "fgvc_aircraft", "dtd"}


def test_there_are_sixty_templates_each_with_one_place_for_the_name() -> None:
    assert len(set(TEMPLATES)) == 60
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_pictures_are_prepared_as_open_clip_does(tmp_path: Path) -> None:
    from open_clip.transform import image_transform

    path = picture(tmp_path / "a.png", (61, 40))
    ours = DomainPictures([path], 32, augment=False).batch([0], 0)
    theirs = image_transform(32, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)(Image.open(path))
    torch.testing.assert_close(ours[0], theirs, atol=1e-5, rtol=1e-5)


def test_an_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    pictures = DomainPictures(paths, 16, augment=True, seed=5)
    first = pictures.batch([0, 1, 2], 4)
    assert first.shape == (3, 3, 16, 16)
    assert torch.equal(pictures.batch([2], 4), first[2:])
    assert not torch.equal(pictures.batch([2], 5), first[2:])
    assert not torch.equal(DomainPictures(paths, 16, True, seed=6).batch([2], 4), first[2:])


def test_crops_lie_inside_and_have_the_published_sizes_and_ratios() -> None:
    rng = torch.Generator().manual_seed(0)
    areas, ratios = [], []
    for _ in range(300):
        left, top, width, height = crop_box(400, 300, rng)
        assert left >= 0
        assert top >= 0
        assert left + width <= 400
        assert top + height <= 300
        areas.append(width * height / 120_000)
        ratios.append(width / height)
    assert 0.07 < min(areas) < 0.15
    assert max(areas) > 0.85
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.35
    left, top, width, height = crop_box(1000, 10, rng)  # no crop of these ratios is large enough: the middle
    assert (height, width) == (10, 13)
    assert math.isclose(left, (1000 - 13) // 2)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"torn\.png is missing, no picture, or damaged"):
        DomainPictures([tmp_path / "torn.png"], 16, augment=False).batch([0], 0)


def test_a_changed_file_is_another_source(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    pictures = DomainPictures([path], 16, augment=False)
    before = pictures.sources()
    picture(path, (50, 50), seed=1)
    assert pictures.sources() != before
    path.unlink()
    with pytest.raises(ValueError, match="is gone"):
        pictures.sources()
