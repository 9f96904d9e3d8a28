"""``apprentice distill promptkd``: from folders to a critic, stopped and resumed, in one process or two."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.cli import app
from comfyui_apprentice.oracles.clip_files import load_clip
from comfyui_apprentice.oracles.promptkd import load_critic
from comfyui_apprentice.training import promptkd_runs as stages
from comfyui_apprentice.training.run_folder import RunFolder
from comfyui_apprentice.world.domain import domain_names
from comfyui_apprentice.world.weights import CLIPS_FOLDER
from icons import save_icons
from safetensors.torch import load_file
from typer.testing import CliRunner

LARGE, SMALL = (str(CLIPS_FOLDER / f"tiny world {size}.safetensors") for size in ("large", "small"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of icons in subfolders, and the list of their names."""
    return save_icons(tmp_path_factory.mktemp("domain"))


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["distill", *arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


def distil(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "promptkd", LARGE, SMALL, str(folder / "pictures"), "--words", str(folder / "words.txt"), "--out", str(out),
        "--epochs", "3", "--weight", "100", *more,
    ]  # fmt: skip


def test_a_teacher_and_its_critic_from_folders(folder: Path, tmp_path: Path) -> None:
    tokens, out = tmp_path / "tokens.safetensors", tmp_path / "critic.safetensors"
    said = run("promptkd-teacher", LARGE, str(folder / "pictures"), "--out", str(tokens), "--epochs", "2", "--shots", "2")
    assert "6 classes from 12 pictures" in said
    assert "6 classes from 24 pictures" in run(*distil(folder, out, "--tokens", str(tokens), "--no-augment"))
    critic = load_critic(out, load_clip(SMALL).network)
    assert critic.classes == domain_names()[:6]
    assert [entry["pictures"] for entry in RunFolder(tmp_path / "critic.run").losses()][-1] == 72
    assert (tmp_path / "critic.run" / "features.safetensors").exists()
    assert "already" in run(*distil(folder, out), code=2)
    assert "another" in run(*distil(folder, out, "--force", "--seed", "1"), code=2)


def test_a_critic_for_the_gate_reads_the_prompts_beside_the_pictures(folder: Path, tmp_path: Path) -> None:
    out, pictures = tmp_path / "critic.safetensors", tmp_path / "pictures"
    shutil.copytree(folder / "pictures", pictures)
    more = ["--no-augment", "--target", "odds", "--start", "words", "--blocks", "1", "--tower-rate", "0.001"]
    command = [str(pictures) if word == str(folder / "pictures") else word for word in distil(folder, out, *more)]
    command += ["--held-out", "0.25"]
    assert "has no prompt" in run(*command, code=2)
    for path in pictures.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"{path.parent.name} on white", encoding="utf-8")
    assert "6 classes from 24 pictures" in run(*command)
    log = RunFolder(tmp_path / "critic.run").losses()
    assert log[-1]["held_out"] > 0
    assert {key.split(".")[0] for key in load_file(out)} == {"projector", "text_features", "logit_scale", "tower"}
    assert load_critic(out, load_clip(SMALL).network).classes == domain_names()[:6]
    assert "another" in run(*[("classes" if word == "odds" else word) for word in command], "--force", code=2)


def test_a_stopped_run_goes_on_to_the_same_critic(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*distil(folder, tmp_path / "whole.safetensors"))
    real, taken = stages.distill_step, []

    def interrupted(*arguments: object, **options: object) -> float:
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "distill_step", interrupted)
    said = run(*distil(folder, tmp_path / "stopped.safetensors", "--save-every", "2"), code=130)
    assert "Stopped: 2 of 9 steps are saved" in said
    monkeypatch.setattr(stages, "distill_step", real)
    run(*distil(folder, tmp_path / "stopped.safetensors", "--save-every", "2"))
    whole, stopped = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_what_is_wrong_is_told_in_words(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = str(tmp_path / "c.safetensors")
    words = ["--words", str(folder / "words.txt"), "--out", out]
    assert "holds no pictures" in run("promptkd", LARGE, SMALL, str(tmp_path / "empty"), *words, code=2)
    (tmp_path / "one.txt").write_text("panda\n", encoding="utf-8")
    said = run("promptkd", LARGE, SMALL, str(folder / "pictures"), "--words", str(tmp_path / "one.txt"), "--out", out, code=2)
    assert "two names or more" in said
    assert "has no subfolders" in run("promptkd-teacher", LARGE, str(tmp_path / "empty"), "--out", out, code=2)
    assert "must end in .safetensors" in run(*distil(folder, tmp_path / "c.pt"), code=2)
