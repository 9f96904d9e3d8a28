"""The artist's word against the gate's."""

from __future__ import annotations

import json
import math

import pytest
from comfyui_apprentice.gate.decision import judge, keep_better
from comfyui_apprentice.gate.overrides import decided, read_overrides
from comfyui_apprentice.gate.thresholds import absolute
from comfyui_apprentice.gate.verdict import Verdict, summary, table

KEYS = [f"{i:016x}" for i in range(4)]


def verdict_of(scores: list[float], overrides: dict[str, str]) -> Verdict:
    gate = absolute(scores, 0.5)
    return judge(
        gate, scores, ["a"] * len(scores), oracle="o", fingerprint="f", mode="absolute", value=0.5, keys=KEYS, overrides=overrides
    )


def test_the_artists_word_stands_above_the_gates() -> None:
    words = {KEYS[1]: "accept", KEYS[2]: "teacher", KEYS[3]: "accept", "f" * 16: "accept"}
    verdict = verdict_of([0.9, 0.1, 0.9, math.nan], words)
    assert [j.decision for j in verdict] == ["accepted", "accepted", "rejected", "accepted"]
    assert [j.override for j in verdict] == ["", "accept", "teacher", "accept"] and verdict.rejected == [2]
    assert "(2 accepted and 1 sent to the teacher by hand)" in summary(verdict)
    assert table(verdict).count("(by hand)") == 3


def test_without_a_word_the_gate_decides_alone() -> None:
    assert decided(absolute([0.9, 0.1], 0.5), KEYS[:2], {}) == ((True, False), ("", ""))
    assert "by hand" not in summary(verdict_of([0.9, 0.1, 0.2, 0.7], {}))


def test_what_was_sent_by_hand_is_replaced_only_by_something_better() -> None:
    after = keep_better(verdict_of([0.9, 0.8, 0.9, 0.9], {KEYS[0]: "teacher", KEYS[1]: "teacher"}), {0: 0.7, 1: 0.95}, 0.0)
    assert [j.decision for j in after] == ["draft kept", "improved", "accepted", "accepted"]
    assert [j.override for j in after] == ["teacher", "teacher", "", ""]


@pytest.mark.parametrize("text", ["", "  ", "8 pictures: 4 accepted, 4 rejected; oracle, worst share 0.5.", "[1, 2]", "null"])
def test_what_does_not_begin_as_the_board_writes_says_nothing(text: str) -> None:
    """Files of version 0.4.0 may hold a node's progress text in this place."""
    assert read_overrides(text) == {}


def test_what_the_board_writes_is_read() -> None:
    assert read_overrides(json.dumps({"v": 1, "by": {KEYS[1]: "teacher"}})) == {KEYS[1]: "teacher"}


@pytest.mark.parametrize(
    "content",
    ["{", {"v": 1}, {"v": 2, "by": {}}, {"v": 1, "by": []}, {"v": 1, "by": {"x": "accept"}}, {"v": 1, "by": {KEYS[0]: "yes"}},
     {"v": 1, "by": {KEYS[0]: ["accept"]}}, "{" * 100_000],
)  # fmt: skip
def test_other_texts_are_refused_in_one_sentence(content: object) -> None:
    with pytest.raises(ValueError, match=r"overrides is what the Draft Board writes.*empty it"):
        read_overrides(content if isinstance(content, str) else json.dumps(content))
