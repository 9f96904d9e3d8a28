"""A job's folder in an object store, too: what gets there, what a failed upload costs, and how another machine goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from comfyui_apprentice.bulk.job import Job, run
from comfyui_apprentice.bulk.manifest import LINES, Manifest
from comfyui_apprentice.bulk.mirror import Mirror
from drawing import FACTS, items, stopping, toy
from fsspec.core import url_to_fs


def mirrored(
    folder: Path, address: str, said: list[str], calls: list[list[str]] | None = None, stop_after: int = 10**6
) -> Mirror:
    """Run the usual job with its folder in a store, too."""
    mirror, (draw, stopped) = Mirror(address, folder, said.append), stopping(toy(calls=calls), stop_after)
    mirror.fetch(4)
    manifest = Manifest(folder, FACTS)
    with manifest.held(), mirror.kept(manifest) as kept:
        run(Job(items(7), 3, 3, 4), draw, manifest, lambda *_: kept(), stopped)
    return mirror


def in_store(address: str) -> dict[str, bytes]:
    files, root = url_to_fs(address)
    return {path.removeprefix(root).lstrip("/"): files.cat_file(path) for path in files.find(root)}


def in_folder(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "job.lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(params=["memory", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory:/{tmp_path}/store" if request.param == "memory" else f"file://{tmp_path}/store"


def test_a_job_is_in_the_store_too_and_goes_on_from_there_on_another_machine(tmp_path: Path, address: str) -> None:
    manifest = Manifest(tmp_path / "whole", FACTS)
    with manifest.held():
        run(Job(items(7), 3, 3, 4), toy(), manifest, lambda *_: None)
    said, calls = list[str](), list[list[str]]()
    mirrored(tmp_path / "first", address, said, stop_after=3)
    assert in_store(address) == in_folder(tmp_path / "first") and not said
    mirrored(tmp_path / "second", address, said, calls)
    assert len(calls) == 2 and said == [f"{address} has 3 pictures of this job; it goes on from there."]
    assert in_store(address) == in_folder(tmp_path / "whole")


def test_uploads_that_fail_are_told_tried_again_and_lose_nothing(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyui_apprentice.bulk.mirror._WAITS", (0.0,))
    kind = type(url_to_fs(address)[0])
    pipe, put, broken = kind.pipe, list[str](), [True]

    def flaky(self: object, contents: dict[str, bytes]) -> None:
        if broken[0]:
            raise OSError("the network is down")
        put.extend(contents)
        pipe(self, contents)

    monkeypatch.setattr(kind, "pipe", flaky)
    said: list[str] = []
    late = mirrored(tmp_path / "job", address, said).late
    assert {name for name in in_folder(tmp_path / "job") if name != LINES} == set(late) and in_store(address) == {}
    assert len(said) == 1 and "the network is down" in said[0] and "tried again" in said[0]
    broken[0] = False
    assert mirrored(tmp_path / "job", address, said).late == [] and len(said) == 1
    assert in_store(address) == in_folder(tmp_path / "job") and len(put) == len(set(put)) == 11


def test_the_manifest_in_the_store_names_no_picture_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"memory:/{tmp_path}/store"
    monkeypatch.setattr("comfyui_apprentice.bulk.mirror._OFTEN", 0.0)
    kind = type(url_to_fs(address)[0])
    pipe, looks = kind.pipe, list[int]()

    def watched(self: object, contents: dict[str, bytes]) -> None:
        pipe(self, contents)
        there = in_store(address)
        named = [json.loads(line)["file"] for line in there.get(LINES, b"").splitlines()]
        looks.append(len(named))
        assert set(named) <= set(there)

    monkeypatch.setattr(kind, "pipe", watched)
    assert mirrored(tmp_path / "job", address, []).late == [] and looks[-1] == 7


def test_a_store_of_another_job_or_that_nobody_knows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"memory:/{tmp_path}/store"
    mirrored(tmp_path / "job", address, [])
    manifest = Manifest(tmp_path / "other", {"seed": 4})
    with pytest.raises(ValueError, match="holds another job"), Mirror(address, manifest.folder, print).kept(manifest):
        pass
    url_to_fs(address)[0].pipe(f"{tmp_path}/mine/holiday.png", b"x")
    with pytest.raises(ValueError, match="is not empty"), Mirror(f"memory:/{tmp_path}/mine", tmp_path, print).kept(manifest):
        pass
    for wrong, says in (("night", "is no address"), ("nobody://night", "fsspec can't use nobody://night")):
        with pytest.raises(ValueError, match=says):
            Mirror(wrong, tmp_path, print)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ValueError, match="--also needs fsspec: pip install fsspec"):
        Mirror("memory://night", tmp_path, print)
