"""Names of drafts, and pictures for the board, on latents of several families."""

from __future__ import annotations

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny

tiny.start()

from comfyui_apprentice.bridge import board  # noqa: E402
from comfyui_apprentice.bridge.drafts import draw_drafts  # noqa: E402
from comfyui_apprentice.bridge.drawing import Drawing  # noqa: E402
from comfyui_apprentice.gate.decision import judge  # noqa: E402
from comfyui_apprentice.gate.thresholds import absolute  # noqa: E402
from families import judges  # noqa: E402


def drafts_of(family: str, count: int, places: list[int] | None = None, seed: int = 5):
    model, text, latent = tiny.model(family), tiny.text(family), tiny.empty(family, count)
    if places:
        latent = {**latent, "batch_index": places}
    with torch.inference_mode():
        return draw_drafts(model, text, text, latent, "custom", Drawing(1, 1.0, "euler", "simple", seed))


def names(drafts, prompts: list[str]) -> list[str]:
    return board.draft_keys([drafts], [torch.zeros(2, 2, 3)] * len(prompts), prompts, "oracle")


@pytest.mark.parametrize("family", ["sdxl", "qwen"])
def test_a_drafts_name_follows_seed_place_prompt_and_model(family: str) -> None:
    whole = names(drafts_of(family, 3), ["a", "b", "c"])
    assert len(set(whole)) == 3
    assert names(drafts_of(family, 2, [1, 2]), ["b", "c"]) == whole[1:], "the same places in a smaller batch"
    for others in (names(drafts_of(family, 3, seed=6), ["a", "b", "c"]), names(drafts_of(family, 3), ["x", "y", "z"])):
        assert not set(others) & set(whole)


def test_batches_of_a_list_that_differ_in_what_was_drawn_alone_have_names_of_their_own() -> None:
    one, pictures = drafts_of("sdxl", 1), [torch.full((2, 2, 3), value) for value in (0.1, 0.2, 0.1)]
    first, second, third = board.draft_keys([one, one, one], pictures, ["a"] * 3, "oracle")
    assert first == third != second, "one picture twice is one picture"


def test_drafts_of_which_nothing_is_known_go_by_their_pixels() -> None:
    pictures = [torch.full((2, 2, 3), value) for value in (0.1, 0.2, 0.1)]
    latent = {"samples": torch.zeros(3, 4, 8, 8)}
    first, second, third = board.draft_keys([latent], pictures, ["a"] * 3, "oracle")
    assert first == third != second


@pytest.mark.parametrize(("size", "ending"), [((64, 48), "png"), ((600, 900), "jpg")])
def test_large_pictures_get_a_thumbnail_and_small_ones_are_kept_to_the_bit(size, ending) -> None:
    picture = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    file = board.Board(board.JUDGED, 1).save(picture)
    assert file["filename"].endswith(ending) and (file["height"], file["width"]) == size
    folder = board.Path(board.folder_paths.get_temp_directory()) / file["subfolder"]
    with board.Image.open(folder / file["thumb"]) as thumb:
        assert max(thumb.size) == min(256, max(size))


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_pictures_and_those_with_alpha_are_shown_too(channels: int) -> None:
    assert board.Board(board.JUDGED, 1).save(torch.full((8, 8, channels), float("nan")))["width"] == 8


def test_a_full_disk_costs_the_board_its_picture_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board, "_write", full)
    assert board.Board(board.JUDGED, 1).save(torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0))) is None


def test_what_was_shown_is_remembered_small_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_REMEMBERED", 2)
    pictures = [torch.full((300, 600, 3), value / 4) for value in range(3)]
    board.Board(board.JUDGED, 3).remember(["a", "b", "c"], pictures, ["x", "y", "z"], [0.0, 1.0, 2.0], "oracle")
    assert board.shown("a") is None and board.shown("c").picture.shape == (128, 256, 3)
    assert (board.shown("b").prompt, board.shown("b").score, board.shown("b").oracle) == ("y", 1.0, "oracle")


def test_the_teachers_pictures_get_files_however_many_the_drafts_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_FILES", 3)
    monkeypatch.setattr(board, "_save", lambda image: {"filename": "x"})
    gate = absolute([0.0] * 3, 1.0)
    verdict = judge(gate, [0.0] * 3, ["a"] * 3, oracle="o", fingerprint="f", mode="absolute", value=1.0, keys=["1", "2", "3"])
    shown = board.ComparingBoard(verdict, torch.zeros(3, 2, 2, 3))
    shown.compare(judges.Brightness(), torch.zeros(3, 2, 2, 3))
    assert all(row["draft"] and row["improved"] for row in shown.rows)
