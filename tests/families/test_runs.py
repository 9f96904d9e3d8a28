"""Runs of the training nodes under one name: other settings, a folder that is held, stale and damaged files in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import family_training as training
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.files import locked
from comfyui_apprentice.nodes import distill, finetune

NAME = "flux"  # the cheapest


@pytest.fixture(autouse=True)
def folder() -> Any:
    with training.folders() as folder:
        yield folder


def killed(*_: Any, **__: Any) -> Any:
    raise SystemExit(9)


def run_folder(folder: Path, name: str) -> Path:
    return folder / "apprentice" / "training" / name


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        (training.distil, {"another prompts": {"text": "a road"}, "another alpha": {"alpha": 1.2}}),
        (training.tune, {"another prompts": {"text": "a road"}, "another steps": {"steps": 5}, "another value": {"value": 0.2}}),
    ],
)
def test_a_run_killed_before_its_first_checkpoint_refuses_other_settings(
    call: Any, refused: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(distill, "distil", killed)
        patched.setattr(finetune, "finetune", killed)
        with pytest.raises(SystemExit):
            call(tiny.model(NAME), NAME)
    for words, changes in refused.items():
        with pytest.raises(ValueError, match=words):
            call(tiny.model(NAME), NAME, **changes)
    call(tiny.model(NAME), NAME)


def test_other_texts_or_pictures_from_the_same_prompts_are_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another CLIP or VAE."""
    training.tune(tiny.model(NAME), NAME)
    monkeypatch.setattr(finetune, "part_fingerprint", lambda part: type(part).__name__)
    with pytest.raises(ValueError, match="another clip and vae"):
        training.tune(tiny.model(NAME), NAME)


def test_a_run_that_works_holds_its_name_and_frees_it_however_it_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it works in this ComfyUI or in another one with the same output folder."""
    with locked(run_folder(folder, "student") / ".lock"), pytest.raises(ValueError, match="Another process works on the run"):
        training.distil(tiny.model(NAME), NAME)
    with monkeypatch.context() as patched:
        patched.setattr(distill, "distil", killed)
        with pytest.raises(SystemExit):
            training.distil(tiny.model(NAME), NAME)
    with locked(run_folder(folder, "student") / ".lock", "it is held"):
        pass


def tuned(settings: dict[str, Any]) -> Any:
    made = tiny.model(NAME), training.Encoder(NAME), training.vae(NAME), training.Red()
    with torch.inference_mode():
        return finetune.ApprenticeRewardFinetune.execute(*made, **settings).result


def curve(name: str) -> Any:
    with torch.inference_mode():
        return finetune.ApprenticeRewardCurve.execute(name).result


def test_the_reward_curve_shows_only_what_its_run_has_drawn(folder: Path) -> None:
    """After a folder that was emptied by half, of another size, with damaged lines and pictures."""
    side, place = tiny.FAMILIES[NAME].side * 8, run_folder(folder, "tuned")
    training.tune(tiny.model(NAME), NAME, updates=2)
    for gone in (place / "run.json", place / "checkpoint.pt", folder / "loras" / "tuned.safetensors"):
        gone.unlink()
    shutil.copy(place / "album_000000.png", place / "album_000001.png")
    settings = {**training.REWARD, "updates": 2, "save_every": 2, "width": side, "height": side * 2, "name": "tuned"}
    tuned(settings)
    with (place / "album.jsonl").open("ab") as album, (place / "loss.jsonl").open("ab") as log:
        for file in (album, log):
            file.write(b'{"step": 3\n7\nnull\n\xff\n{"step": 1, "reward": 1.0, "spread": 9.0, "run": "another"}\n')
    _image, pictures, table = curve("tuned")
    assert pictures.shape[0] == 2 and table.count("\n") == 3
    (place / "album_000000.png").write_bytes(b"torn")
    assert curve("tuned")[1].shape[0] == 1
    (place / "loss.jsonl").unlink()
    assert "while it learned" not in tuned(settings)[3] and curve("tuned")[1].shape[0] == 1
    (place / "album_000002.png").unlink()
    with pytest.raises(ValueError, match="There is no run 'tuned'"):
        curve("tuned")
