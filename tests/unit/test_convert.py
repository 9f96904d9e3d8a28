"""``apprentice convert``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from comfyui_apprentice.cli.convert import convert
from comfyui_apprentice.oracles import checkpoints
from comfyui_apprentice.oracles.checkpoints import read_metadata, read_weights, sha256
from typer.testing import CliRunner

app = typer.Typer()
app.command()(convert)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shared = torch.arange(6.0)
    tensors = {"a": shared, "tied": shared, "part": shared[:2], "half": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    torch.save({"state_dict": tensors}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_tensors_keep_their_names_values_and_types(source):
    run(source)
    written, read = read_weights(source.with_suffix(".safetensors")), read_weights(source)
    assert sorted(written) == sorted(read) == ["a", "half", "n", "part", "tied"]
    for key, value in read.items():
        assert written[key].dtype == value.dtype
        assert torch.equal(written[key], value), key


def test_the_metadata_say_where_it_came_from(source, tmp_path):
    run(source, tmp_path / "b.safetensors")
    assert read_metadata(tmp_path / "b.safetensors") == {"format": "pt", "source": "model.pt", "source_sha256": sha256(source)}


def test_it_overwrites_only_when_told_to(source):
    target = source.with_suffix(".safetensors")
    target.write_bytes(b"mine")
    assert "--force" in run(source, code=2)
    assert target.read_bytes() == b"mine"
    run(source, "--force")
    assert len(read_weights(target)) == 5


def test_it_never_writes_over_its_source(source):
    target = source.with_suffix(".safetensors")
    run(source)
    before = target.read_bytes()
    assert "already" in run(target, "--force", code=2)
    assert target.read_bytes() == before


def test_what_cannot_be_read_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"<html>")
    assert "is a web page" in run(tmp_path / "a.pt", code=2)
    torch.save({"weight": torch.eye(2).to_sparse()}, tmp_path / "b.pt")
    assert "safetensors cannot store" in run(tmp_path / "b.pt", code=2)
    assert "There is no file" in run(tmp_path / "c.pt", code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt"]


def test_the_target_must_be_safetensors(source, tmp_path):
    assert "must end in .safetensors" in run(source, tmp_path / "b.pt", code=2)


def test_a_crash_while_writing_leaves_no_half_file(source, monkeypatch):
    def crash(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_safetensors_atomically", crash)
    assert "No space left" in run(source, code=2)
    assert not source.with_suffix(".safetensors").exists()
