"""What Keep Better remembers of a teacher, and what survives in its file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from comfyui_apprentice.gate.explored import in_words, order_of_evaluation
from comfyui_apprentice.gate.gains import lesson_of, pairs_of, remember
from comfyui_apprentice.samplers.explore import Search, Source, Teacher, Try

LESSON = lesson_of("oracle", "student", 18.0)


def test_pairs_are_kept_by_lesson_and_the_same_draft_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gains.json"
    assert pairs_of(path, LESSON) == ([], [])
    remember(path, LESSON, "teacher", {"a": (1.0, 2.0), "b": (3.0, math.nan)})
    remember(path, LESSON, "teacher", {"a": (1.0, 2.5), "c": (-1.0, 0.0)})
    remember(path, lesson_of("oracle", "student", 9.0), "teacher", {"a": (7.0, 7.0)})
    assert pairs_of(path, LESSON) == ([1.0, -1.0], [2.5, 0.0])
    assert "Delete this file" in json.loads(path.read_text())["about"]


def test_another_teacher_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "gains.json"
    remember(path, LESSON, "teacher, refine", {"a": (1.0, 2.0)})
    remember(path, LESSON, "teacher, regenerate", {"b": (1.0, 5.0)})
    assert pairs_of(path, LESSON) == ([1.0], [5.0])


def test_a_long_life_keeps_the_latest_pairs(tmp_path: Path) -> None:
    path = tmp_path / "gains.json"
    remember(path, LESSON, "t", {str(i): (float(i), 0.0) for i in range(600)})
    drafts, _ = pairs_of(path, LESSON)
    assert len(drafts) == 512 and drafts[-1] == 599


def test_a_damaged_file_teaches_nothing_and_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "gains.json"
    for content in ('{"format": "apprentice-gains"', '{"format": "apprentice-gains", "version": 1, "lessons": {"x": 3}}', "[]"):
        path.write_text(content)
        assert pairs_of(path, LESSON) == ([], [])
        remember(path, LESSON, "t", {"a": (1.0, 2.0)})
        assert pairs_of(path, LESSON) == ([1.0], [2.0])


def test_a_picture_that_was_tried_for_another_one_is_told() -> None:
    search = Search([Source(1.0)], [0, 0], budget=2.0)
    search.tell(search.wanted(), [5.0, -5.0])
    search.tell([Try(0, 0, 1, 0.0, 0.0)], [4.0])
    first, second = order_of_evaluation(search, ("a",), ("p", "p")).splitlines()[2:4]
    assert "tried for" not in first and "| 4 (tried for 0) |" in second


def test_a_search_is_told_in_its_order_with_indices_costs_and_price() -> None:
    rng = np.random.default_rng(0)
    search = Search([Source(1.0), Source(2.0)], [0, 1, 2], budget=6.0, teacher=Teacher(4.0))
    while tries := search.wanted():
        search.tell(tries, [float(rng.normal()) for _ in tries])
    text = order_of_evaluation(search, ("quick", "slow"), ("a | b", "c", "d"))
    rows = [line for line in text.splitlines() if line.startswith(("| 0", "| 1", "| 2"))]
    assert [row.count(" > ") + 1 for row in rows] == [int(n) for n in search.seen.sum(1)]
    assert "a / b" in rows[0] and "(new)" in rows[0] and "quick" in text and "slow" in text and "Prices, round by round" in text
    assert "of the weakest go to it" in in_words(search, ("quick", "slow"))
    assert in_words(Search([Source(1.0)], [], budget=1.0), ("quick",)) == ""
