"""What a saved picture says of itself, and ``apprentice inspect``; strangers' pictures included."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from comfyui_apprentice.cli import app
from comfyui_apprentice.files import UnreadableFile
from comfyui_apprentice.gate.story import CHUNK, NoStory, in_words, read_story, story_of
from comfyui_apprentice.gate.verdict import IMPROVED, Judgement, Verdict
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

JUDGEMENT = Judgement(
    2, 0.8125, 0.5, False, "a red  heart\non blue", 99, 18.0, IMPROVED, 0.25, override="teacher", key="0123456789abcdef"
)
VERDICT = Verdict((JUDGEMENT,), "ImageReward", "f" * 16, "worst share", 0.3, student="a" * 16, teacher="b" * 16)
PROMPT = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/turbo.safetensors"}},
    "2": {"class_type": "LoraLoader", "inputs": {"lora_name": "mine.safetensors", "model": ["1", 0], "strength_model": 1.0}},
    "3": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/turbo.safetensors"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a file.txt"}},
}


def picture(path: Path, **chunks: str) -> Path:
    info = PngInfo()
    for key, text in chunks.items():
        info.add_text(key, text)
    Image.new("RGB", (64, 48)).save(path, pnginfo=info)
    return path


def saved(path: Path, **changes: object) -> Path:
    return picture(path, prompt="{}", **{CHUNK: json.dumps({**story_of(JUDGEMENT, VERDICT, PROMPT), **changes})})


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    story = read_story(saved(tmp_path / "a.png"))
    assert [story[key] for key in ("score", "decision", "seed", "nfe", "override")] == [0.8125, IMPROVED, 99, 18.0, "teacher"]
    hashes = {who: story[f"{who}_fingerprint"] for who in ("student", "teacher", "oracle")}
    assert hashes == {"student": "a" * 16, "teacher": "b" * 16, "oracle": "f" * 16}
    assert story["files"] == ["sd/turbo.safetensors", "mine.safetensors"]
    assert (story["width"], story["height"], story["workflow"]) == (64, 48, True)


def test_the_command_tells_it_in_words_a_row_a_fact(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(saved(tmp_path / "a.png"))])
    rows = {line[2:14].strip(): line[15:] for line in done.output.splitlines()[1:]}
    assert done.exit_code == 0 and rows == {
        "prompt": "a red heart on blue", "size": "64 x 48, with its workflow: drag it onto ComfyUI's canvas",
        "decision": "improved (sent to the teacher by hand)", "score": "0.8125; its draft had 0.25",
        "threshold": "0.5 (worst share 0.3)", "seed": "99, place 2 in its batch", "evaluations": "18",
        "oracle": "ImageReward ffffffffffffffff", "student": "a" * 16, "teacher": "b" * 16,
        "files": "sd/turbo.safetensors, mine.safetensors",
    }  # fmt: skip


def test_json_is_for_programs(tmp_path: Path) -> None:
    paths = [str(saved(tmp_path / "a.png")), str(saved(tmp_path / "b.png", seed=None))]
    done = CliRunner().invoke(app, ["inspect", "--json", *paths])
    first, second = json.loads(done.stdout)
    assert done.exit_code == 0 and first["file"].endswith("a.png") and first["seed"] == 99 and second["seed"] is None


def test_scores_that_are_none_survive_json(tmp_path: Path) -> None:
    nan = Judgement(0, math.nan, -math.inf, False)
    story = json.loads(json.dumps(story_of(nan, VERDICT, None), allow_nan=False))
    assert dict(in_words({**story, "width": 1, "height": 1, "workflow": False}))["score"] == "nan"


@pytest.mark.parametrize(("chunks", "words"), [
    ({}, "has no verdict in it: only 'Save Images (with verdict)'"),
    ({"workflow": "{}"}, "it holds its workflow, but only"),
])  # fmt: skip
def test_a_picture_without_a_verdict_says_what_it_lacks(tmp_path: Path, chunks: dict[str, str], words: str) -> None:
    path = picture(tmp_path / "plain.png", **chunks)
    with pytest.raises(NoStory, match=words.replace("(", r"\(").replace(")", r"\)")):
        read_story(path)
    done = CliRunner().invoke(app, ["inspect", str(path), str(saved(tmp_path / "a.png")), str(tmp_path / "gone.png")])
    assert done.exit_code == 1 and "plain.png has no verdict" in done.output and "There is no file" in done.output
    assert "improved" in done.output, "the others are told all the same"


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": ' * 100_000, "null"])
def test_a_damaged_story_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnreadableFile, match=r"^a\.png is damaged or another kind of file") as caught:
        read_story(picture(tmp_path / "a.png", **{CHUNK: text}))
    assert "\n" not in str(caught.value)


def test_what_is_no_picture_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(UnreadableFile, match=r"^a\.png is no picture\.$"):
        read_story(tmp_path / "a.png")


def test_a_strangers_story_neither_breaks_the_terminal_nor_the_command(tmp_path: Path) -> None:
    hostile = saved(tmp_path / "a.png", prompt="\x1b[2J\x07 x", score=[1], seed={"a": "\x1b"}, files=3, nfe="many", mode=None)
    done = CliRunner().invoke(app, ["inspect", str(hostile)])
    assert done.exit_code == 0 and "\x1b" not in done.output and "not known" in done.output
