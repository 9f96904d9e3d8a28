"""The artist's word against the gate's: pictures accepted, or sent to the teacher, by hand.

They are kept in the workflow by each picture's own name (``bridge.board.draft_keys``), so that they hold wherever the picture
stands in a batch, and for no other picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from .thresholds import Gate

ACCEPT, TEACHER = "accept", "teacher"
_VERSION = 1


def read_overrides(text: str) -> dict[str, str]:
    """``{key: "accept" or "teacher"}`` of a text as the Draft Board writes it: {"v": 1, "by": {key: word}}.

    A text that doesn't begin with "{" says nothing: files saved by version 0.4.0 may hold a node's progress text in its place.

    Raises:
        ValueError: It begins so and is something else.
    """
    if not text.lstrip().startswith("{"):
        return {}
    try:
        content = json.loads(text)
        by, version = content["by"], content["v"]
        good = version == _VERSION and all(re.fullmatch("[0-9a-f]{16}", k) and v in (ACCEPT, TEACHER) for k, v in by.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise ValueError(
            'overrides is what the Draft Board writes, {"v": 1, "by": {"0123456789abcdef": "accept" or "teacher"}}, and this is '
            "something else: empty it, and choose by hand on the board again."
        )
    return dict(by)


def decided(gate: Gate, keys: Sequence[str], overrides: Mapping[str, str]) -> tuple[tuple[bool, ...], tuple[str, ...]]:
    """Who is accepted after the artist's word, and that word ("" where there is none), one a picture."""
    words = tuple(overrides.get(key, "") for key in keys)
    accepted = tuple(word == ACCEPT if word else passes for word, passes in zip(words, gate.accepted, strict=True))
    return accepted, words
