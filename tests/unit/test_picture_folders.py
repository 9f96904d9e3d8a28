"""Folders of pictures as users have them: other systems' leftovers, every format, deep and wordy files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.training.domain_data import labelled_folder, picture_extensions, pictures_in, read_picture
from comfyui_apprentice.training.edm_task import RealPictures
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def test_leftovers_of_other_systems_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a/good.png", "a/._good.png", "__MACOSX/a/good.png", "a/.ipynb_checkpoints/good-checkpoint.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert pictures_in(tmp_path) == RealPictures(tmp_path, 3, 8).files == [tmp_path / "a/good.png"]
    assert labelled_folder(tmp_path)[0] == ("a",)


def test_a_folder_below_a_hidden_one_is_read(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / ".cache/a.png")
    assert len(pictures_in(tmp_path / ".cache")) == 1


@pytest.mark.parametrize("extension", [".jfif", ".tif", ".TIFF", ".gif", ".avif", ".webp", ".bmp"])
def test_every_format_that_pillow_reads(extension: str, tmp_path: Path) -> None:
    if extension.lower() not in picture_extensions():
        pytest.skip("this Pillow does not read it")
    Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / f"a{extension}")
    (tmp_path / "notes.txt").write_text("no picture")
    for channels in (1, 3):
        real = RealPictures(tmp_path, channels, 4)
        assert real(torch.Generator(), 1).shape == (1, channels, 4, 4)
    assert np.asarray(read_picture(tmp_path / f"a{extension}")).mean() > 250


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    found = np.asarray(read_picture(tmp_path / "deep.png"))
    assert (found == np.arange(256).reshape(16, 16, 1)).all()
    assert (np.asarray(read_picture(tmp_path / "deep.png", "L")) == np.arange(256).reshape(16, 16)).all()


def test_a_png_with_megabytes_of_text(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("workflow", "x" * 5_000_000, zip=True)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "wordy.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"[Tt]oo large"), Image.open(tmp_path / "wordy.png") as opened:
        opened.load()
    assert read_picture(tmp_path / "wordy.png").getpixel((0, 0)) == (9, 9, 9)


def test_the_culprit_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad one.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ValueError, match=r"bad one\.png"):
        read_picture(tmp_path / "bad one.png")
    with pytest.raises(ValueError, match=r"bad one\.png"):
        RealPictures(tmp_path, 3, 8)(torch.Generator(), 1)
