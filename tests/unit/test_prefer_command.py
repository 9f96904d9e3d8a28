"""``apprentice prefer``: an EDM network taught by a file of clicks, stopped and resumed, and told in words what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.cli import app
from comfyui_apprentice.training import preference
from comfyui_apprentice.training.click_origins import Origin
from comfyui_apprentice.training.clicks import ClickedPicture, ClickFile
from comfyui_apprentice.weights.checkpoints import read_metadata
from comfyui_apprentice.weights.edm_pickle import read_edm
from comfyui_apprentice.world.weights import EDM_FOLDER
from typer.testing import CliRunner

TEACHER = EDM_FOLDER / "coloured digits teacher.safetensors"
QUICK = ["--updates", "3", "--batch", "2", "--steps", "4", "--save-every", "1", "--lr", "1e-3"]


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """Four clicks, on pictures of which half are kept whole, with their seed."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"digit {n}" for n in range(10)), encoding="utf-8")
    header = read_edm(TEACHER)[0]
    side, rng = int(header["img_resolution"]), np.random.default_rng(0)
    shown = {}
    for i in range(4):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        latents = (pixels.transpose(2, 0, 1) / 127.5 - 1).astype(np.float16)
        shown[f"{i:016x}"] = ClickedPicture(pixels, f"digit {i}", origin=Origin(latents, 5, i) if i % 2 else None)
    keys = list(shown)
    for i in range(4):
        ClickFile(tmp_path / "mine.jsonl").add(shown, keys[i], keys[(i + 1) % 4])
    return tmp_path / "mine.jsonl"


def run(clicks: Path, out: str, *more: str, code: int = 0) -> str:
    folder = clicks.parent
    arguments = [str(TEACHER), str(clicks), "--prompts", str(folder / "prompts.txt"), "--out", str(folder / out), *QUICK, *more]
    result = CliRunner().invoke(app, ["prefer", *arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


def test_a_stopped_run_goes_on_to_the_same_network(clicks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "taught by 4 clicks, 2 pictures by their own noise" in run(clicks, "whole.safetensors")
    real, taken = preference._gradients, []

    def interrupted(*arguments: object) -> object:
        taken.append(1)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(preference, "_gradients", interrupted)
    assert "Stopped: 2 of 3 steps" in run(clicks, "cut.safetensors", code=130)
    monkeypatch.setattr(preference, "_gradients", real)
    run(clicks, "cut.safetensors")
    files = (TEACHER, clicks.with_name("whole.safetensors"), clicks.with_name("cut.safetensors"))
    before, whole, cut = (read_edm(path)[1] for path in files)
    assert all(torch.equal(whole[key], cut[key]) for key in whole) and any(not torch.equal(before[key], cut[key]) for key in cut)
    assert read_metadata(clicks.parent / "cut.safetensors")["clicks"] == "4"


def test_what_is_wrong_is_told_in_words(clicks: Path) -> None:
    prompts = clicks.with_name("prompts.txt")
    prompts.write_text("\n".join(["digit 0"] * 10), encoding="utf-8")
    assert "There are clicks on 'digit 1', which is no line of the prompts" in run(clicks, "x.safetensors", code=2)
    prompts.write_text("one\n", encoding="utf-8")
    assert "There are 1 prompts, and the network has 10 classes" in run(clicks, "x.safetensors", code=2)
    assert "holds no clicks" in run(clicks.with_name("none.jsonl"), "x.safetensors", code=2)
    assert "is a folder; give a file" in run(clicks.parent, "x.safetensors", code=2)
    prompts.unlink()
    told = run(clicks, "x.safetensors", code=2).replace(" ", "")  # a terminal breaks long names
    assert re.search(r"Thereisnofileorfolder\S*prompts\.txt", told)


def test_pictures_of_another_family_are_refused_before_work_and_told_of_where_some_are(clicks: Path) -> None:
    """By their channels, and by their family's name where the channels are the same."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    whole = np.zeros((3, 32, 32), np.float16)
    for number, origin in enumerate([Origin(np.zeros((4, 8, 8), np.float16), 1), Origin(whole, 1, family="Tiny")]):
        other = clicks.with_name(f"other {number}.jsonl")
        shown = {f"{9 + i:016x}": ClickedPicture(pixels + i, f"digit {i}", origin=origin) for i in range(2)}
        ClickFile(other).add(shown, *shown)
        said = run(other, "x.safetensors", code=2)
        assert f"were drawn by another family of models (latents of {len(origin.latents)} channels" in said
        assert not clicks.with_name("x.run").exists()
    ClickFile(clicks).add(shown, *shown)
    assert "2 of 6 pictures are another model's (latents of 3 channels, Tiny)" in run(clicks, "mixed.safetensors")
