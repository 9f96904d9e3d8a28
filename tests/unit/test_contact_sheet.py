"""The contact sheet: defined for every batch, and it shows what it should."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from comfyui_apprentice.charts.contact_sheet import COLOURS, contact_sheet, histogram, picture_side
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


def column_colours(verdict: Verdict) -> list[set[tuple[int, ...]]]:
    """The decisions' colours in each column of the histogram's bars, from left to right."""
    chart = np.asarray(histogram(verdict, 400, 250))[57:187]
    columns = [{tuple(int(c) for c in p) for p in chart[:, x]} & set(COLOURS.values()) for x in range(chart.shape[1])]
    return [column for column in columns if column]


def test_bars_have_the_colours_of_the_decisions_however_the_scores_lie() -> None:
    # A rejected picture that scores as high as an accepted one: worst share rejects by count, and a hand may reject anything.
    judgements = [Judgement(0, 0.9, 0.5, False), Judgement(1, 0.9, 0.5, True), Judgement(2, 0.1, 0.5, True)]
    columns = column_colours(Verdict(tuple(judgements), "oracle", "f", "worst share", 0.3))
    assert columns[0] == {COLOURS["accepted"]} and columns[-1] == {COLOURS["accepted"], COLOURS["rejected"]}


def test_a_bar_is_as_high_as_its_pictures_are_many() -> None:
    judgements = [Judgement(i, s, 0.5, s >= 0.5) for i, s in enumerate([0.1, 0.9, 0.9])]
    chart = np.asarray(histogram(Verdict(tuple(judgements), "oracle", "f", "absolute", 0.5), 400, 250))[50:188]
    heights = {word: int((chart == COLOURS[word]).all(-1).any(1).sum()) for word in ("rejected", "accepted")}
    assert abs(heights["accepted"] - 2 * heights["rejected"]) <= 2


@pytest.mark.parametrize("threshold", [math.inf, -math.inf, math.nan])
def test_a_threshold_that_is_no_number_has_no_line(threshold: float) -> None:
    judgements = [Judgement(i, s, threshold, True) for i, s in enumerate([0.1, 0.9])]
    chart = np.asarray(histogram(Verdict(tuple(judgements), "oracle", "f", "running", 0.5), 400, 250))
    assert not (chart[60:180] == (34, 36, 40)).all(-1).any()


def test_pictures_are_as_large_as_so_many_leave_room_for() -> None:
    sides = [picture_side(torch.empty(1, 1024, 1024, 3), count) for count in (1, 12, 64, 1000)]
    assert sides[:2] == [512, 512] and 300 <= sides[2] < 512 and sides[3] == 128
    assert picture_side(torch.empty(1, 64, 64, 3), 1) == 256  # a small one isn't blown up beyond use


def test_a_large_batch_makes_no_giant_of_the_sheet() -> None:
    assert contact_sheet(verdict([0.3, 0.8] * 32), torch.rand(64, 96, 64, 3)).numel() < 3 * 12e6


def test_the_drafts_score_stands_beside_the_new_one() -> None:
    images = torch.zeros(1, 64, 64, 3)
    with_draft = keep_better(verdict([0.123]), {0: 0.456}, 0.0)
    without = with_draft.with_judgements([Judgement(0, 0.456, 0.5, False, decision="improved", prompt=with_draft.prompts[0])])
    assert not torch.equal(contact_sheet(with_draft, images)[:, :-250], contact_sheet(without, images)[:, :-250])


def test_prompts_of_ten_thousand_letters_take_no_longer() -> None:
    judgements = [Judgement(i, 0.7, 0.5, True, prompt="word, " * 2000 + "x" * 10000) for i in range(4)]
    before = time.process_time()
    contact_sheet(Verdict(tuple(judgements), "oracle", "f", "absolute", 0.5), torch.rand(4, 64, 64, 3))
    assert time.process_time() - before < 2  # it was 9 seconds a picture
