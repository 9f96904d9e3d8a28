"""The contact sheet: defined for every batch, and it shows what it should."""

from __future__ import annotations

import math

import pytest
import torch
from comfyui_apprentice.charts.contact_sheet import COLOURS, contact_sheet
from comfyui_apprentice.gate.decision import keep_better
from comfyui_apprentice.gate.verdict import Judgement, Verdict


def verdict(scores: list[float], threshold: float = 0.5) -> Verdict:
    judgements = [Judgement(i, s, threshold, s >= threshold, prompt=f"a prompt {i} " * 9) for i, s in enumerate(scores)]
    return Verdict(tuple(judgements), "oracle", "f", "absolute", threshold)


def has_colour(sheet: torch.Tensor, colour: tuple[int, int, int]) -> bool:
    return bool(((sheet[0] * 255).round().int() == torch.tensor(colour)).all(-1).sum() > 50)


@pytest.mark.parametrize("scores", [[], [0.7], [0.1, 0.9], [math.nan] * 3, [0.3] * 40, [math.inf, 0.1]])
def test_every_batch_has_a_sheet(scores: list[float]) -> None:
    sheet = contact_sheet(verdict(scores), torch.rand(len(scores), 20, 30, 3))
    assert sheet.ndim == 4 and sheet.shape[0] == 1 and sheet.shape[-1] == 3
    assert sheet.min() >= 0 and sheet.max() <= 1 and sheet.shape[2] >= 480


def test_colours_tell_what_became_of_each_picture() -> None:
    images = torch.rand(3, 64, 64, 3)
    after = keep_better(verdict([0.9, 0.1, 0.2]), {1: 0.8, 2: 0.0}, 0.0)
    sheet = contact_sheet(after, images, images)
    assert all(has_colour(sheet, COLOURS[word]) for word in ("accepted", "improved", "draft kept"))
    assert not has_colour(contact_sheet(verdict([0.9, 0.8, 0.7]), images), COLOURS["rejected"])


def test_before_and_after_make_the_sheet_wider() -> None:
    images = torch.rand(4, 64, 64, 3)
    after = keep_better(verdict([0.1] * 4), dict.fromkeys(range(4), 0.8), 0.0)
    assert contact_sheet(after, images, images).shape[1] > contact_sheet(after, images).shape[1]


def test_a_wrong_number_of_pictures_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="The verdict is about 2 pictures, but images has 3"):
        contact_sheet(verdict([0.1, 0.9]), torch.rand(3, 8, 8, 3))
