"""Weights are read as data; nothing else is ever run, and whatever else a file is gets its own sentence."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.weights import checkpoints
from comfyui_apprentice.weights.checkpoints import UnsafeCheckpoint, read_metadata, read_weights, sha256
from safetensors.torch import save_file


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(3, 5, generator=generator),
        "layer.bias": torch.randn(3, generator=generator).half(),
        "steps": torch.tensor(7),
    }


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(actual) == sorted(expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype
        assert torch.equal(actual[key], value), key


def sentence(path: Path) -> str:
    with pytest.raises(UnsafeCheckpoint) as caught:
        read_weights(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert text.endswith(".")
    return text


class Hostile:
    """Unpickling this runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch '{self.trace}'",)


def test_safetensors_are_read_as_they_are(tmp_path):
    save_file(weights(), tmp_path / "a.safetensors", {"source": "here"})
    assert_same(read_weights(tmp_path / "a.safetensors"), weights())
    assert read_metadata(tmp_path / "a.safetensors") == {"source": "here"}


@pytest.mark.parametrize("suffix", checkpoints.PICKLED)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_state_dicts_are_read_in_both_of_torchs_formats(tmp_path, suffix, zipped):
    path = tmp_path / f"a{suffix}"
    torch.save(OrderedDict(weights()), path, _use_new_zipfile_serialization=zipped)
    assert_same(read_weights(path), weights())
    assert read_metadata(path) == {}


@pytest.mark.parametrize("wrap", [
    lambda w: {"state_dict": w, "epoch": 3},
    lambda w: {"model": w, "optimizer": {"lr": 0.1}},
    lambda w: {"model": {"state_dict": w}},
    lambda w: {f"module.{key}": value for key, value in w.items()},
    lambda w: {"model_state_dict": {f"module.{key}": value for key, value in w.items()}},
])  # fmt: skip
def test_the_usual_wrappings_come_off(tmp_path, wrap):
    torch.save(wrap(weights()), tmp_path / "a.pt")
    assert_same(read_weights(tmp_path / "a.pt"), weights())


def test_only_a_prefix_of_every_name_is_a_wrapping(tmp_path):
    mixed = {"module.weight": torch.ones(1), "weight": torch.zeros(1)}
    torch.save(mixed, tmp_path / "a.pt")
    assert_same(read_weights(tmp_path / "a.pt"), mixed)


def test_parameters_come_out_as_plain_tensors(tmp_path):
    torch.save({"weight": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pt")
    tensor = read_weights(tmp_path / "a.pt")["weight"]
    assert not tensor.requires_grad
    assert torch.equal(tensor, torch.ones(2))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["alone", "inside"])
def test_a_hostile_checkpoint_does_nothing_and_is_refused(tmp_path, zipped, where):
    trace, path = tmp_path / "trace", tmp_path / "hostile.pt"
    hostile = Hostile(trace)
    torch.save(hostile if where == "alone" else {**weights(), "extra": hostile}, path, _use_new_zipfile_serialization=zipped)
    assert "could run code, so it was not loaded" in sentence(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap works: a general unpickler walks into it
    assert trace.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_hostile_pickle_does_nothing(tmp_path, protocol):
    trace, path = tmp_path / "trace", tmp_path / "hostile.bin"
    path.write_bytes(pickle.dumps(Hostile(trace), protocol=protocol))
    sentence(path)
    assert not trace.exists()


def test_a_hostile_pickle_called_safetensors_does_nothing(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "hostile.safetensors"
    torch.save(Hostile(trace), path)
    assert "rename it to .pt" in sentence(path)
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_truncated_checkpoint_is_called_cut_short(tmp_path, zipped, share):
    path = tmp_path / "a.pt"
    tensors = {"weight": torch.randn(4000, generator=torch.Generator().manual_seed(0))}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "cut short or damaged" in sentence(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_safetensors_are_called_cut_short(tmp_path, share):
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(4000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "cut short or damaged" in sentence(path)
    with pytest.raises(UnsafeCheckpoint, match="cut short"):
        read_metadata(path)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.pt", b"", "is empty"),
    ("a.safetensors", b"", "is empty"),
    ("a.pt", b"\n <!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    ("a.safetensors", b"<html>Sign in</html>", "is a web page"),
    ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
    ("a.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
    ("a.pt", b"Entry not found", "is not a PyTorch checkpoint"),
    ("a.gguf", b"GGUF", "must end in .safetensors"),
])  # fmt: skip
def test_what_failed_downloads_leave_behind_gets_its_own_sentence(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in sentence(tmp_path / name)


def test_a_torchscript_archive_gives_its_weights_and_its_program_is_left_alone(tmp_path):
    module = torch.nn.Linear(2, 2)
    torch.jit.script(module).save(str(tmp_path / "a.pt"))
    found = read_weights(tmp_path / "a.pt")
    assert found.keys() == {"weight", "bias"}
    assert torch.equal(found["weight"], module.weight)


@pytest.mark.parametrize(("value", "words"), [
    (torch.ones(2), "no dictionary of tensors"),
    ([torch.ones(2)], "no dictionary of tensors"),
    ({}, "no dictionary of tensors"),
    ({"weight": torch.ones(2), "epoch": 3}, "(epoch)"),
    ({0: torch.ones(2)}, "(0)"),
])  # fmt: skip
def test_data_that_is_no_state_dict_is_refused(tmp_path, value, words):
    torch.save(value, tmp_path / "a.pt")
    assert words in sentence(tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nothing\.pt\."):
        read_weights(tmp_path / "nothing.pt")


def test_the_hash_is_the_published_one_of_a_known_text(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    read: list[int] = []
    assert sha256(tmp_path / "a", read.append) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sum(read) == 3
