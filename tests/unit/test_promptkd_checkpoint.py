"""PromptKD's published checkpoints, read as data."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_apprentice.cli import app
from comfyui_apprentice.files import UnsafeCheckpoint
from comfyui_apprentice.oracles.clip_files import ClipFile, load_clip
from comfyui_apprentice.oracles.tokenizers import open_clip_tokens
from comfyui_apprentice.training import critic as critics
from comfyui_apprentice.weights.checkpoints import read_metadata, to_safetensors
from comfyui_apprentice.weights.promptkd_checkpoint import read_official
from comfyui_apprentice.weights.torch_archive import read_checkpoint, read_script
from golden_clips import CLASSES, DATA, clip, golden
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner


class Scheduler:
    """Something that Dassl saves beside the weights, of a class that nobody else knows."""

    def __init__(self) -> None:
        self.epoch, self.history = 3, {0: [1.5]}


def clip_file(size: str) -> ClipFile:
    return ClipFile(f"a tiny {size}", clip(size), open_clip_tokens)


def save_teacher(path: Path, **more: Any) -> dict[str, Tensor]:
    """A teacher's checkpoint as Dassl saves it: everything in one dictionary."""
    tensors = golden("teacher_prompts")
    tensors |= {f"image_encoder.{k}": v.half() for k, v in clip("teacher").visual.state_dict().items()}
    tensors["prompt_learner.token_prefix"] = torch.zeros(7, 1, 64)
    torch.save({"state_dict": tensors, "epoch": 20, "val_result": np.float64(81.25), **more}, path)
    return tensors


def test_the_authors_student_is_read_without_running_anything(tmp_path: Path) -> None:
    found = read_official(DATA / "tiny_student.pth.tar")
    assert found.kind == "student"
    expected = {k: v for k, v in golden("stage2_common").items() if k.startswith("student_init/")}
    tokens, projector = found.tokens("image"), found.projector()
    assert tokens is not None
    assert (tokens.depth, tokens.count, tokens.width) == (3, 4, 64)
    assert projector.conv1[0].weight.shape == expected["student_init/VPT_image_trans.conv1.0.weight"].shape
    tower = clip("student").visual.state_dict()
    assert found.tower().keys() == {f"visual.{key}" for key in tower}


def test_the_authors_student_becomes_a_critic_with_its_teachers_words() -> None:
    checkpoint = read_official(DATA / "tiny_student.pth.tar")
    teacher = critics.load_teacher(clip_file("teacher"))
    critic = critics.official_critic(clip_file("student"), checkpoint, teacher, CLASSES)
    assert critic.probabilities(torch.rand(2, 50, 40, 3)).shape == (2, 7)
    with pytest.raises(ValueError, match="trained on another CLIP"):
        critics.official_critic(clip_file("teacher"), checkpoint, teacher, CLASSES)
    student = critics.load_teacher(clip_file("student"))
    with pytest.raises(ValueError, match="with 48 features, and a tiny student has 32"):
        critics.official_critic(clip_file("student"), checkpoint, student, CLASSES)


def test_what_a_checkpoint_holds_beside_tensors_is_inert(tmp_path: Path) -> None:
    tensors = save_teacher(tmp_path / "model.pth.tar-20", scheduler=Scheduler(), optimizer={"state": {0: {"step": 7}}})
    del sys.modules[__name__].__dict__["Scheduler"]  # whoever looked it up would fail
    found, facts = read_checkpoint(tmp_path / "model.pth.tar-20")
    assert facts["epoch"] == 20
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in tensors.items())


@torch.no_grad()
def test_the_authors_teacher_gives_their_features(tmp_path: Path) -> None:
    save_teacher(tmp_path / "model-best.pth.tar")
    teacher, expected = critics.load_teacher(clip_file("teacher"), tmp_path / "model-best.pth.tar"), golden("stage2_forward")
    torch.testing.assert_close(teacher.features(CLASSES), expected["text/features_normalized"], atol=1e-5, rtol=1e-5)
    pixels = golden("inputs")["train_images"][0]
    features = teacher.clip.encode_pictures(pixels)
    torch.testing.assert_close(features, expected["teacher/image_features_normalized"], atol=1e-5, rtol=1e-5)


def test_a_missing_prompt_layer_is_an_error_and_not_random(tmp_path: Path) -> None:
    tensors = save_teacher(tmp_path / "m.pth.tar")
    del tensors["image_encoder.transformer.resblocks.2.VPT_shallow"]
    torch.save({"state_dict": tensors}, tmp_path / "m.pth.tar")
    with pytest.raises(UnsafeCheckpoint, match="image tower's block 2"):
        critics.load_teacher(clip_file("teacher"), tmp_path / "m.pth.tar")


def test_a_hostile_checkpoint_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DATA / "evil.pth.tar", tmp_path / "evil.pth.tar")
    monkeypatch.chdir(tmp_path)
    assert critics.load_teacher(clip_file("teacher"), tmp_path / "evil.pth.tar").clip.picture_tokens is not None
    assert CliRunner().invoke(app, ["convert", "evil.pth.tar"]).exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"evil.pth.tar", "evil.safetensors"}


@pytest.mark.parametrize("damage", ["torn", "storage", "compressed"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.pth.tar"
    content = (DATA / "tiny_student.pth.tar").read_bytes()
    if damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    else:
        with (
            zipfile.ZipFile(DATA / "tiny_student.pth.tar") as old,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED) as new,
        ):
            for name in old.namelist():
                data = old.read(name)
                new.writestr(name, data[:-4] if damage == "storage" and name.endswith("data/3") else data)
    with pytest.raises(UnsafeCheckpoint, match=r"model\.pth\.tar"):
        read_official(path)


def test_converted_once_it_is_the_same(tmp_path: Path) -> None:
    save_teacher(tmp_path / "model-best.pth.tar")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "model-best.pth.tar")])
    assert result.exit_code == 0
    target = tmp_path / "model-best.safetensors"
    assert read_metadata(target)["promptkd"] == "teacher"
    before, after = read_official(tmp_path / "model-best.pth.tar").tensors, read_official(target).tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    features = [
        critics.load_teacher(clip_file("teacher"), path).features(CLASSES) for path in (tmp_path / "model-best.pth.tar", target)
    ]
    assert torch.equal(*features)


def test_something_else_is_refused_in_words(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.pth.tar")
    with pytest.raises(UnsafeCheckpoint, match="neither a PromptKD student nor a teacher"):
        read_official(tmp_path / "other.pth.tar")
    torch.save({"epoch": 3}, tmp_path / "empty.pth.tar")
    with pytest.raises(UnsafeCheckpoint, match="holds no tensors under 'state_dict'"):
        read_official(tmp_path / "empty.pth.tar")
    with pytest.raises(UnsafeCheckpoint, match="is a student, and a teacher is wanted"):
        critics.load_teacher(clip_file("student"), DATA / "tiny_student.pth.tar")


class Tower(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Parameter(torch.randn(3, 4))
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3)) @ self.proj.T


class Script(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Tower()
        self.register_buffer("input_resolution", torch.tensor(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x)


def test_a_script_archive_gives_its_state_dict_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Script().half()
    torch.jit.script(module).save(str(tmp_path / "ViT.pt"))
    found = read_script(tmp_path / "ViT.pt")
    expected = module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in expected.items())


def test_openais_archive_is_a_clip_after_conversion_and_before(tmp_path: Path) -> None:
    network = clip("student")
    holder = torch.nn.Module()
    for key, value in {**network.state_dict(), "input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)}.items():
        place, *path = holder, *key.split(".")
        for name in path[:-1]:
            if not hasattr(place, name):
                place.add_module(name, torch.nn.Module())
            place = getattr(place, name)
        place.register_buffer(path[-1], value.half() if value.is_floating_point() else value)
    torch.jit.script(holder).save(str(tmp_path / "ViT-T.pt"))
    to_safetensors(tmp_path / "ViT-T.pt", tmp_path / "ViT-T.safetensors")
    for name in ("ViT-T.pt", "ViT-T.safetensors"):
        found = load_clip(tmp_path / name).network
        assert torch.equal(found.visual.proj, network.visual.proj)
        assert "QuickGELU" in str(found.visual)


def test_official_tensors_in_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file(golden("teacher_prompts"), tmp_path / "t.safetensors")
    assert read_official(tmp_path / "t.safetensors").kind == "teacher"
    assert load_file(tmp_path / "t.safetensors").keys() == golden("teacher_prompts").keys()
