"""The VERDICT: what the oracle said of each picture of a batch, in the batch's order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .overrides import ACCEPT, TEACHER

# How a picture ended. "accepted" and "rejected" are the gate's words; the rest come after the teacher.
ACCEPTED, REJECTED, IMPROVED, KEPT = "accepted", "rejected", "improved", "draft kept"


@dataclass(frozen=True)
class Judgement:
    """One picture.

    Attributes:
        index: Place in the batch, from 0.
        score: The oracle's score; NaN when it could not be told.
        threshold: What the score was compared with.
        accepted: Whether the draft passed the gate.
        prompt: What the picture was asked to show.
        seed: Seed of the run that drew it, where known; with the index it names the noise.
        nfe: Network evaluations spent on it so far, where known (one CFG step counts two).
        decision: "accepted", "rejected", "improved" (the teacher's picture replaced the draft), or "draft kept" (the
            teacher's picture was not better).
        draft_score: The draft's score, once the teacher has had its turn.
        override: The artist's own word, where it stands above the gate's: "accept", "teacher", or "".
        key: Sixteen hex digits that name the draft, where known: by its seed, place, prompt and model.
    """

    index: int
    score: float
    threshold: float
    accepted: bool
    prompt: str = ""
    seed: int | None = None
    nfe: float | None = None
    decision: str = ""
    draft_score: float | None = None
    override: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if not self.decision:
            object.__setattr__(self, "decision", ACCEPTED if self.accepted else REJECTED)


@dataclass(frozen=True)
class Verdict:
    """All judgements of a batch, with what made them.

    Attributes:
        judgements: One a picture, in the batch's order.
        oracle: Name of the oracle.
        fingerprint: The oracle's fingerprint.
        mode: How the threshold was found: one of ``thresholds.MODES``.
        value: The artist's number for that mode.
        stopped: Whether the artist wants to look before the teacher works.
        student: The fingerprint of the model that drew the drafts, where known.
        teacher: Likewise of the one that improved the rejected; empty before its turn.
        lesson: What Keep Better remembers its pairs under (``gate.gains``); empty where nobody wants to know.
        asked: Places of the drafts that a cascade's heavy oracle has scored itself.
    """

    judgements: tuple[Judgement, ...]
    oracle: str
    fingerprint: str
    mode: str
    value: float
    note: str = ""
    stopped: bool = False
    student: str = ""
    teacher: str = ""
    lesson: str = ""
    asked: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.judgements)

    def __iter__(self) -> Iterator[Judgement]:
        return iter(self.judgements)

    @property
    def rejected(self) -> list[int]:
        """Indices of the drafts that the teacher should improve."""
        return [j.index for j in self.judgements if not j.accepted]

    @property
    def prompts(self) -> list[str]:
        """The prompt of each picture."""
        return [j.prompt for j in self.judgements]

    @property
    def mean_nfe(self) -> float | None:
        """Average network evaluations a picture, where all are known."""
        costs = [j.nfe for j in self.judgements if j.nfe is not None]
        return sum(costs) / len(costs) if costs and len(costs) == len(self) else None

    def with_judgements(self, judgements: Sequence[Judgement]) -> Verdict:
        """The same verdict over other judgements."""
        return replace(self, judgements=tuple(judgements))

    def require_batch(self, count: int, what: str) -> None:
        """Check that a batch belongs to this verdict.

        Raises:
            ValueError: It has another number of pictures.
        """
        if count != len(self):
            raise ValueError(
                f"The verdict is about {len(self)} pictures, but {what} has {count}; "
                f"connect the same batch to the judge and to this node."
            )


def table(verdict: Verdict) -> str:
    """The verdict as a Markdown table, a line a picture, then the totals."""
    rows: list[tuple[str, ...]] = [("picture", "score", "threshold", "decision", "NFE", "seed", "prompt")]
    for j in verdict:
        nfe, seed = "?" if j.nfe is None else f"{j.nfe:g}", "?" if j.seed is None else str(j.seed)
        limit = "-" if math.isinf(j.threshold) else f"{j.threshold:.4g}"  # nobody, or everybody, passes
        decision = j.decision + " (by hand)" * bool(j.override)
        rows.append((str(j.index), f"{j.score:.4g}", limit, decision, nfe, seed, " ".join(j.prompt.split())))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([*lines, "", summary(verdict)])


def summary(verdict: Verdict) -> str:
    """The totals in one line."""
    counts = {word: sum(j.decision == word for j in verdict) for word in (ACCEPTED, REJECTED, IMPROVED, KEPT)}
    parts = [f"{count} {word}" for word, count in counts.items() if count]
    text = f"{len(verdict)} picture{'s' * (len(verdict) != 1)}: " + (", ".join(parts) or "none")
    text += _by_hand(verdict) + f"; {verdict.oracle}, {verdict.mode} {verdict.value:g}"
    if verdict.mean_nfe is not None:
        text += f"; {verdict.mean_nfe:.4g} network evaluations a picture"
    return f"{text}. {verdict.note}".strip() if verdict.note else f"{text}."


def _by_hand(verdict: Verdict) -> str:
    counts = {"accepted": ACCEPT, "sent to the teacher": TEACHER}
    parts = [f"{n} {words}" for words, word in counts.items() if (n := sum(j.override == word for j in verdict))]
    return f" ({' and '.join(parts)} by hand)" if parts else ""
