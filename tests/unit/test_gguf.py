"""GGUF's header: what it says, and that no spoilt one costs more than a sentence."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from comfyui_apprentice.files import UnreadableFile
from comfyui_apprentice.weights.gguf import is_gguf, read_gguf_header
from gguf_files import header_bytes, list_fact, write

SHAPES = {"img_in.weight": (3072, 64), "norm.scale": (128,)}


def test_names_shapes_and_size_are_read_and_no_weight_is(tmp_path: Path) -> None:
    file = write(tmp_path / "flux.gguf", "flux", SHAPES, nbytes=1 << 40)  # which no memory holds
    told = read_gguf_header(file)
    assert is_gguf(file) and (told.architecture, told.shapes, told.nbytes) == ("flux", SHAPES, 1 << 40)


def test_joined_sides_are_told_apart_and_other_facts_are_passed_over(tmp_path: Path) -> None:
    shape = list_fact("comfy.gguf.orig_shape.conv.weight", 5, struct.pack("<4i", 320, 4, 3, 3), 4)
    words = list_fact("tokenizer.ggml.tokens", 8, struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 2) + b"bc", 2)
    scores = list_fact("tokenizer.ggml.scores", 6, struct.pack("<9f", *range(9)), 9)
    file = tmp_path / "sd1.gguf"
    file.write_bytes(header_bytes("sd1", {"conv.weight": (1280, 9)}, shape + words + scores, 3))
    assert read_gguf_header(file).shapes == {"conv.weight": (320, 4, 3, 3)}


def test_a_header_that_is_cut_short_anywhere_is_told_in_a_sentence(tmp_path: Path) -> None:
    whole, file = header_bytes("flux", SHAPES), tmp_path / "cut.gguf"
    for length in range(4, len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(UnreadableFile, match=r"^cut\.gguf is a GGUF file, cut short or damaged: delete it"):
            read_gguf_header(file)


@pytest.mark.parametrize("at", [8, 16, 24])
def test_counts_and_lengths_beyond_the_file_are_not_believed(at: int, tmp_path: Path) -> None:
    """Of tensors, of facts, of the first name's letters."""
    spoilt, file = bytearray(header_bytes("flux", SHAPES)), tmp_path / "large.gguf"
    spoilt[at : at + 8] = struct.pack("<Q", 2**60)
    file.write_bytes(spoilt)
    with pytest.raises(UnreadableFile, match=r"large\.gguf"):
        read_gguf_header(file)


@pytest.mark.parametrize(("version", "sides"), [(1, 2), (9, 2), (3, 10**6)])
def test_other_versions_and_tensors_of_a_million_sides_are_refused(version: int, sides: int, tmp_path: Path) -> None:
    spoilt, file = bytearray(header_bytes("flux", {"w": (4, 4)})), tmp_path / "other.gguf"
    spoilt[4:8] = struct.pack("<I", version)
    spoilt[-32:-28] = struct.pack("<I", sides)
    file.write_bytes(spoilt)
    with pytest.raises(UnreadableFile, match=r"other\.gguf"):
        read_gguf_header(file)
