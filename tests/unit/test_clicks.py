"""The file of clicks: it only grows, survives what crashes leave, and believes no stranger."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comfyui_apprentice.files import UnreadableFile
from comfyui_apprentice.training.click_origins import Origin
from comfyui_apprentice.training.clicks import ClickedPicture, ClickFile

A, B, C = "a" * 16, "b" * 16, "c" * 16


def picture(value: int = 0, side: int = 8) -> ClickedPicture:
    return ClickedPicture(np.full((side, side, 3), value, dtype=np.uint8), f"prompt {value}", bool(value))


@pytest.fixture
def file(tmp_path: Path) -> ClickFile:
    return ClickFile(tmp_path / "deep" / "mine.jsonl")


def test_clicks_pictures_and_undo_come_back(file: ClickFile) -> None:
    assert file.read().pairs == [] and not file.path.exists()
    file.add({A: picture(1), B: picture(2)}, A, B)
    assert file.add({C: picture(3)}, C, A).pairs == [(A, B), (C, A)], "a picture is kept once"
    assert file.path.read_text().count('"kind": "picture"') == 3
    assert file.undo().pairs == [(A, B)]
    there = file.read()
    assert there.pairs == [(A, B)] and there.pictures[A].prompt == "prompt 1" and there.pictures[A].improved
    assert (there.pictures[B].pixels == 2).all()
    assert file.undo().pairs == [] and file.undo().pairs == []
    file.delete()
    assert not file.path.exists() and file.read().pictures == {}


def test_large_pictures_are_kept_small(file: ClickFile) -> None:
    file.add({A: picture(1, 600), B: picture(2)}, A, B)
    assert file.read().pictures[A].pixels.shape == (256, 256, 3)


def test_features_are_kept_by_network(file: ClickFile) -> None:
    file.add({A: picture(), B: picture(1)}, A, B)
    file.remember(C, {A: np.array([1.0, -2.5])})
    assert file.read().features[C][A].tolist() == [1.0, -2.5]


def test_a_line_that_a_crash_cut_off_costs_that_line_alone(file: ClickFile) -> None:
    file.add({A: picture(), B: picture(1)}, A, B)
    with file.path.open("ab") as torn:
        torn.write(b'{"kind": "click", "bet')
    assert file.read().unread == 1
    there = file.add({C: picture(2)}, C, B)
    assert there.pairs == [(A, B), (C, B)] and there.unread == 1


@pytest.mark.parametrize(
    "line",
    ["[]", "null", "{}", '{"kind": "click", "better": "../../etc", "worse": "b"}', '{"kind": "picture", "key": "x", "png": ""}',
     json.dumps({"kind": "picture", "key": C, "prompt": "p", "png": base64.b64encode(b"GIF89a").decode()}),
     json.dumps({"kind": "features", "key": A, "of": C, "values": base64.b64encode(np.float32("nan").tobytes()).decode()}),
     "{" * 100_000, '{"kind": "run", "command": "x"}'],
)  # fmt: skip
def test_a_strangers_line_is_left_out_and_counted(file: ClickFile, line: str) -> None:
    file.add({A: picture(), B: picture(1)}, A, B)
    with file.path.open("a") as more:
        more.write(line + "\n")
    there = file.read()
    assert there.pairs == [(A, B)] and there.unread >= 1 and there.features == {}


def test_a_file_of_something_else_is_refused(file: ClickFile) -> None:
    file.path.parent.mkdir()
    file.path.write_text("hello\nworld\n")
    with pytest.raises(UnreadableFile, match="no file of clicks"):
        file.read()


NAMELESS = [(A, A, "two different"), ("x", B, "two different"), (A, C, f"{C} is not there")]


@pytest.mark.parametrize(("better", "worse", "words"), NAMELESS)
def test_clicks_that_name_no_two_pictures_are_refused(file: ClickFile, better: str, worse: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        file.add({A: picture(), B: picture(1)}, better, worse)
    assert not file.path.exists()


def test_two_writers_lose_nothing(file: ClickFile) -> None:
    keys = [f"{i:016x}" for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: ClickFile(file.path).add({keys[i]: picture(), A: picture(1)}, keys[i], A), range(40)))
    there = file.read()
    assert len(there.pairs) == 40 and len(there.pictures) == 41 and there.unread == 0


def test_clicks_and_undo_change_its_state_and_features_do_not(file: ClickFile) -> None:
    states = [file.state()]
    file.add({A: picture(), B: picture(1)}, A, B)
    states.append(file.state())
    file.remember(C, {A: np.array([1.0])})
    assert file.state() == states[-1], "a taste that has been worked out is not another one in the next run"
    file.undo()
    states.append(file.state())
    assert len(set(states)) == 3


def test_a_full_file_is_refused_before_it_can_no_longer_be_read(file: ClickFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.add({A: picture(), B: picture(1)}, A, B)
    monkeypatch.setattr("comfyui_apprentice.training.clicks._FILE_BYTES", file.path.stat().st_size + 200)
    with pytest.raises(ValueError, match=r"'mine.jsonl' is full.*another name"):
        file.add({C: picture(2)}, C, B)
    assert file.read().pairs == [(A, B)]


def test_a_click_does_not_wait_for_all_pictures_to_be_unpacked(file: ClickFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.add({A: picture(), B: picture(1)}, A, B)
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("a picture is unpacked"))
    assert file.add({C: picture(2)}, C, B).pairs == [(A, B), (C, B)]
    assert len(file.read(pixels=False).pictures) == 3


# ---------------------------------------------------------------------------------------- where a picture came from


def latents(side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, side, side)).astype(np.float16)


def test_latents_seed_and_place_come_back_and_old_lines_have_none(file: ClickFile) -> None:
    origin = Origin(latents(), 2**63 + 1, 5)
    file.add({A: replace(picture(1), origin=origin), B: picture(2)}, A, B)
    there = file.read().pictures
    assert there[A].origin is not None and (there[A].origin.latents == origin.latents).all()
    assert (there[A].origin.seed, there[A].origin.place) == (2**63 + 1, 5)
    assert there[B].origin is None and file.read(pixels=False).pictures[A].origin is None


def test_latents_that_a_line_cant_hold_are_left_out(file: ClickFile) -> None:
    flux = Origin(np.zeros((16, 128, 128), dtype=np.float16), 1, 0)
    noisy = ClickedPicture(np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8), "long " * 2000, origin=flux)
    large = replace(noisy, origin=Origin(np.zeros((16, 192, 128), dtype=np.float16), 1, 0))
    file.add({A: noisy, B: large}, A, B)
    there = file.read()
    assert there.unread == 0 and there.pictures[A].origin is not None and there.pictures[B].origin is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": [4, 8, 9]}, {"shape": [4, -8, -8]}, {"shape": [2**40, 8, 8]}, {"shape": []}, {"seed": -1}, {"seed": "1"},
        {"seed": True}, {"place": 1.5}, {"place": 10**9}, {"latents": "!"}, {"latents": "AH4=" * 128, "shape": [2, 8, 8]},
        {"shape": 3},
    ],
)  # fmt: skip
def test_a_strangers_origin_is_not_believed(file: ClickFile, wrong: dict[str, object]) -> None:
    file.add({A: replace(picture(1), origin=Origin(latents(), 1, 0)), B: picture(2)}, A, B)
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    lines[0]["origin"] |= wrong
    file.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    there = file.read()
    assert there.unread == 1 and there.pairs == []
