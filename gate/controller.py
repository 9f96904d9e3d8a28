"""A controller that keeps the share of rejected drafts at a target while prompts drift, and the file it remembers in.

Adaptive conformal inference (Gibbs and Candes, arXiv 2106.00170): the threshold is the level-quantile of the last scores,
and every decision moves the level (eq. 2), level <- level + gamma (target - rejected). Whatever the scores do, after T
pictures |rejected / T - target| <= (max(level_1, 1 - level_1) + gamma) / (gamma T) (Proposition 4.1). With gamma = 1/8 that
is below five points from the 180th picture on, for every target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..files import locked
from .records import damaged, number, plain, read_record, write_record
from .thresholds import Gate, of_hundred, quantile, with_thresholds

GAIN = 0.125  # gamma
WINDOW = 100  # scores that the quantile is of
FEW = 10  # with fewer scores than this, the batch's own help
REMEMBERED = 1024  # pictures whose threshold is remembered

KIND, VERSION = "apprentice-controller", 1
_REMEDY = "delete it to start anew"


@dataclass(frozen=True)
class State:
    """Where the controller is.

    Attributes:
        target: The share of drafts that shall be rejected.
        level: The quantile of ``recent`` that is the threshold; at 0 or below all pass, at 1 or above none.
        pictures: Pictures judged since this target was set.
        rejected: How many of them were rejected.
        recent: The last scores.
        judged: Picture -> (threshold, target) that it was judged by, so that judging it again moves nothing.
        latest: The pictures that the last step counted, and ``before``: the state it started from.
        oracle, oracle_name: Whose scores these are.
    """

    target: float = math.nan
    level: float = math.nan
    pictures: int = 0
    rejected: int = 0
    recent: tuple[float, ...] = ()
    judged: dict[str, tuple[float, float]] = field(default_factory=dict)
    latest: tuple[str, ...] = ()
    before: State | None = None
    oracle: str = ""
    oracle_name: str = ""

    @property
    def share(self) -> float:
        """The share of rejected pictures; NaN before the first."""
        return self.rejected / self.pictures if self.pictures else math.nan

    def threshold(self, others: Sequence[float] = ()) -> float:
        """What the next score must reach. ``others`` help while there are few scores."""
        if math.isnan(self.level) or self.level <= 0:
            return -math.inf
        if self.level >= 1:
            return math.inf
        scores = self.recent if len(self.recent) >= FEW else (*self.recent, *(s for s in others if math.isfinite(s)))
        return quantile(scores, self.level) if scores else -math.inf


def step(state: State, scores: Sequence[float], keys: Sequence[str], target: float) -> tuple[State, Gate]:
    """Judge a batch, one picture after the other, and move on.

    Pure: the file is ``FileController``'s affair. A picture that was judged before is judged the same again and moves
    nothing. If the last batch comes again with another target, its step is taken back and done anew with that target; an
    older picture is then judged by today's threshold, without being counted again. A score that is NaN is rejected and
    moves nothing, because no threshold could have let it pass.

    Args:
        keys: One a score: names the picture.
        target: Share of pictures to reject, 0..1.

    Raises:
        ValueError: The target is not in 0..1.
    """
    if not 0 <= target <= 1:
        raise ValueError(f"The share to reject is a number from 0 (nobody) to 1 (everybody), not {target:g}{of_hundred(target)}.")
    if state.before is not None and target != state.target and set(state.latest) <= set(keys):
        judged = {key: seen for key, seen in state.judged.items() if key not in state.latest}
        state = replace(state.before, judged=judged)
    start = state
    thresholds: list[float] = []
    counted: list[str] = []
    for score, key in zip(scores, keys, strict=True):
        seen = state.judged.get(key)
        if seen is not None:
            thresholds.append(seen[0] if seen[1] == target else state.threshold(scores))
            continue
        state = _aimed(state, target)
        thresholds.append(state.threshold(scores))
        state = _moved(state, score, thresholds[-1], key)
        counted.append(key)
    if counted:
        state = replace(state, latest=tuple(counted), before=replace(start, judged={}, before=None, latest=()))
    return state, with_thresholds(scores, thresholds)


def _aimed(state: State, target: float) -> State:
    """The state with this target: what was learned (level minus target) is kept, the counts begin again."""
    if state.target == target:
        return state
    learned = 0.0 if math.isnan(state.target) else state.level - state.target
    return replace(state, target=target, level=min(max(target + learned, 0.0), 1.0), pictures=0, rejected=0)


def _moved(state: State, score: float, threshold: float, key: str) -> State:
    judged = {**state.judged, key: (threshold, state.target)}
    while len(judged) > REMEMBERED:
        judged.pop(next(iter(judged)))
    if math.isnan(score):
        return replace(state, judged=judged)
    rejected = not score >= threshold
    return replace(
        state,
        level=state.level + GAIN * (state.target - rejected),
        pictures=state.pictures + 1,
        rejected=state.rejected + rejected,
        recent=(*state.recent, score)[-WINDOW:],
        judged=judged,
    )


class FileController:
    """The controller whose state is a JSON file that people can read; deleting the file starts it anew.

    Args:
        trial: Judge as the controller would, and remember nothing.
    """

    def __init__(self, path: Path, trial: bool = False) -> None:
        self.path, self.trial = path, trial

    def judge(
        self, scores: Sequence[float], keys: Sequence[str], target: float, oracle: str = "", oracle_name: str = "",
        first: Sequence[float] = (),
    ) -> Gate:  # fmt: skip
        """Judge a batch and save what was learned; the note tells how the controller stands.

        Args:
            oracle, oracle_name: Fingerprint and name of who gave the scores.
            first: Scores to begin with (a calibration's), for a controller that has seen none.

        Raises:
            ValueError: The file can't be read, or it followed another oracle.
        """
        with locked(_lock(self.path)):  # else two processes would count from the same state, and one would be lost
            after, gate = self._step(scores, keys, target, oracle, oracle_name, first)
        return replace(gate, note=self._note(after, target))

    def _step(
        self, scores: Sequence[float], keys: Sequence[str], target: float, oracle: str, oracle_name: str, first: Sequence[float]
    ) -> tuple[State, Gate]:
        state = load(self.path) if self.path.exists() else State(recent=tuple(s for s in first if math.isfinite(s))[-WINDOW:])
        if state.oracle and oracle and state.oracle != oracle:
            raise ValueError(
                f"The controller '{self.path.stem}' has followed the scores of {state.oracle_name} ({state.oracle}), but the "
                f"judge uses {oracle_name} ({oracle}); choose another controller name, or delete '{self.path.name}'."
            )
        after, gate = step(state, scores, keys, target)
        if after != state and not self.trial:
            save(replace(after, oracle=oracle, oracle_name=oracle_name), self.path)
        return after, gate

    def _note(self, state: State, target: float) -> str:
        if not state.pictures:
            return f"The controller '{self.path.stem}' has not counted a picture yet."
        return (
            f"The controller '{self.path.stem}' has rejected {state.rejected} of {state.pictures} pictures "
            f"({state.share:.1%}, target {target:.1%}); its threshold is now {state.threshold():.4g}."
        )


def reset(path: Path) -> bool:
    """Start the controller anew; whether there was anything to forget."""
    with locked(_lock(path)):
        existed = path.exists()
        path.unlink(missing_ok=True)
    return existed


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def save(state: State, path: Path) -> None:
    """Write the state, atomically."""
    content = {
        "about": "Keeps the share of rejected drafts at the target. Delete this file to start anew.",
        "oracle": {"name": state.oracle_name, "fingerprint": state.oracle},
        "reject_share": plain(state.share),
        "threshold": plain(state.threshold()),
        **_numbers(state),
        "judged": {key: [plain(value) for value in seen] for key, seen in state.judged.items()},
        "latest": list(state.latest),
        "before": None if state.before is None else _numbers(state.before),
    }
    write_record(path, KIND, VERSION, content)


def _numbers(state: State) -> dict[str, Any]:
    return {
        "target": plain(state.target), "level": plain(state.level), "pictures": state.pictures, "rejected": state.rejected,
        "recent_scores": [plain(score) for score in state.recent],
    }  # fmt: skip


def load(path: Path) -> State:
    """The state in a file.

    Raises:
        ValueError: It can't be read: damaged, of another kind, or newer than this Apprentice.
    """
    content = read_record(path, KIND, VERSION, _REMEDY)
    try:
        before = None if content["before"] is None else State(**_fields(content["before"]))
        return State(
            **_fields(content),
            judged={str(key): (number(seen[0]), number(seen[1])) for key, seen in content["judged"].items()},
            latest=tuple(str(key) for key in content["latest"]), before=before,
            oracle=str(content["oracle"]["fingerprint"]), oracle_name=str(content["oracle"]["name"]),
        )  # fmt: skip
    except KeyError as error:
        raise damaged(path, f"it has no {error}", _REMEDY) from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise damaged(path, f"an entry is not as it should be ({error})", _REMEDY) from error


def _fields(content: dict[str, Any]) -> dict[str, Any]:
    pictures, rejected = int(content["pictures"]), int(content["rejected"])
    if not 0 <= rejected <= pictures:
        raise ValueError(f"{rejected} of {pictures} pictures were rejected")
    return {
        "target": number(content["target"]), "level": number(content["level"]), "pictures": pictures, "rejected": rejected,
        "recent": tuple(number(score) for score in content["recent_scores"]),
    }  # fmt: skip
