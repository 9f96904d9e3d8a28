"""``apprentice convert``."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
import typer
from comfyui_apprentice.cli.convert import convert
from comfyui_apprentice.weights import checkpoints
from comfyui_apprentice.weights.checkpoints import read_metadata, read_weights, sha256
from comfyui_apprentice.weights.edm_pickle import read_edm
from typer.testing import CliRunner

GOLDENS = Path(__file__).parents[1] / "data" / "sid"

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
    assert "which no network needs" in run(tmp_path / "b.pt", code=2)
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


def test_a_snapshot_keeps_its_weights_and_what_made_its_network(tmp_path):
    source, target = GOLDENS / "tiny_edm_snapshot.pkl", tmp_path / "a.safetensors"
    assert "tensors from tiny_edm_snapshot.pkl" in run(source, target)
    config, weights = read_edm(source)
    metadata = read_metadata(target)
    assert json.loads(metadata.pop("edm_config")) == config
    assert metadata == {"format": "pt", "kind": "edm", "source": source.name, "source_sha256": sha256(source)}
    again, same = read_edm(target)
    assert again == config
    assert sorted(same) == sorted(weights)
    for key, value in weights.items():
        assert same[key].dtype == value.dtype
        assert torch.equal(same[key], value), key


def test_a_diffusers_snapshot_keeps_its_own_kind_of_configuration(tmp_path):
    from diffusers import UNet2DConditionModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    unet = UNet2DConditionModel(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, **blocks)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": unet}))
    run(tmp_path / "a.pkl")
    metadata = read_metadata(tmp_path / "a.safetensors")
    assert metadata["kind"] == "diffusers"
    assert "edm_config" not in metadata
    config = json.loads(metadata["diffusers_config"])
    assert config["_class_name"] == "UNet2DConditionModel"
    UNet2DConditionModel.from_config(config).load_state_dict(read_edm(tmp_path / "a.safetensors")[1])


def test_a_hostile_snapshot_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in [("evil.pkl", "asks for posix.system"), ("bad_oob_tensor.pkl", "reaches past its memory")]:
        assert words in run(GOLDENS / name, tmp_path / "a.safetensors", code=2)
    assert list(tmp_path.iterdir()) == []
