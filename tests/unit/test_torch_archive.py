"""Our own reader of PyTorch's checkpoints gives what ``torch.load`` gives, for whatever honest files hold."""

from __future__ import annotations

import io
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.files import UnsafeCheckpoint
from comfyui_apprentice.weights.torch_archive import read_tree
from torch import nn

KINDS = "bfloat16 bool complex64 complex128 float16 float32 float64 int8 int16 int32 int64 uint8"
NEWER = "float8_e4m3fn float8_e5m2 float8_e8m0fnu uint16 uint32 uint64"


def some(dtype: str) -> torch.Tensor:
    return (torch.arange(32, dtype=torch.uint8) % (2 if dtype == "bool" else 64)).view(getattr(torch, dtype))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2).bfloat16())


def trained() -> dict[str, Any]:
    """A checkpoint as trainers write them, with an optimiser that has a state."""
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return {"model": model.state_dict(), "optimizer": optimiser.state_dict(), "epoch": 3, "best": 0.5, "note": None}


def contents() -> dict[str, Any]:
    tied, base = nn.Parameter(torch.ones(2, 3)), torch.arange(24.0)
    return {
        "kinds": {name: some(name) for name in KINDS.split()},
        "newer kinds": {name: some(name) for name in NEWER.split()},
        "network": network().state_dict(),
        "wrapped": {"state_dict": OrderedDict(network().state_dict()), "args": ["a", (1, 2.5), {"b": {3: True}}]},
        "trained": trained(),
        "tied": {"a": tied, "b": tied, "c": tied.data},
        "tied fp8": dict.fromkeys(("a", "b"), some("float8_e4m3fn")),
        "views": {"turned": base.view(4, 6).t(), "part": base[3:9], "one": base[5], "steps": base[::2], "empty": base[:0]},
        "shapes": {"scalar": torch.tensor(7), "none": torch.empty(0), "flat": torch.zeros(2, 0, 3)},
        "beside": {"size": torch.Size([1, 2]), "count": Counter(a=2), "names": {"a", "b"}, "bytes": b"\xff\0"},
    }


def bits(tensor: torch.Tensor) -> list[int]:
    found: list[int] = tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()
    return found


def assert_same(actual: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert (actual.dtype, actual.shape, actual.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert bits(actual) == bits(expected)  # since NaN differs from itself
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    else:
        assert actual == expected


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", contents())
def test_what_is_read_is_what_torch_load_gives(tmp_path: Path, what: str, zipped: bool, protocol: int) -> None:
    path, value = tmp_path / "a.pt", contents()[what]
    torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_tree(path)
    unknown = not zipped and what in ("newer kinds", "tied fp8")  # torch.load fails on those
    assert_same(found, value if unknown else torch.load(path, weights_only=False))
    if "tied" in what:
        assert found["a"].data_ptr() == found["b"].data_ptr()


def test_what_is_read_of_an_archive_is_a_view_of_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(50_000_000, dtype=torch.uint8)}, tmp_path / "a.pt")
    before = resident()
    found = read_tree(tmp_path / "a.pt")["a"]
    assert resident() - before < 20e6
    assert not found[-10:].any()
    found[0] = 1  # a private one: the file stays
    assert not read_tree(tmp_path / "a.pt")["a"][0]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("value", "words"), [
    ({"a": torch.eye(2).to_sparse()}, "_rebuild_sparse_tensor"),
    ({"a": torch.ones(2, device="meta")}, "_rebuild_meta_tensor"),
    ({"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, "_rebuild_qtensor"),
    ({"a": nn.Linear(1, 1)}, "torch.nn.modules.linear.Linear"),
    ({(1, 2): torch.ones(1)}, "neither names nor numbers"),
])  # fmt: skip
def test_what_is_more_than_tensors_is_refused_by_name(tmp_path: Path, value: Any, words: str, zipped: bool) -> None:
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpoint, match=words):
        read_tree(tmp_path / "a.pt")


def test_a_repacked_archive_is_read_too(tmp_path: Path) -> None:
    held = io.BytesIO()
    torch.save({"a": torch.arange(5.0)}, held)
    with zipfile.ZipFile(held) as old, zipfile.ZipFile(tmp_path / "a.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert read_tree(tmp_path / "a.pt")["a"].tolist() == [0, 1, 2, 3, 4]
