"""CALIBRATION: a student's score distribution on a set of prompts, so that a percentile means the same in every batch.

A calibration is a JSON file that people can read. Its schema, version 1:

    format, version    "apprentice-calibration", 1
    name, note         for people
    oracle             {name, fingerprint}: who scored; an empty fingerprint stands for any oracle of that name
    student            {name, fingerprint}: who drew; empty where it is not known (published percentiles)
    schedule           the student's noise levels and guidance, in words; likewise
    teacher            {name, fingerprint, settings}: who drew the paired pictures; null without
    settings           size, negative prompt, and whatever else is worth keeping
    count              the number of drafts
    quantiles          percentile -> score: derived from the drafts, or, where there are none, the calibration itself
    baselines          prompt -> {drafts, mean, teacher_mean} for prompts with several drafts; derived
    drafts             [{prompt, score, teacher_score, first_score}], null for a score that is not a number
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .first_step import told
from .records import damaged, number, plain, read_record, write_record
from .thresholds import is_worse, quantile

KIND, VERSION = "apprentice-calibration", 1
PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
SHIPPED = Path(__file__).parent / "calibrations"
_REMEDY = "delete it and calibrate again"
_OF_ALL_DRAFTS = ("size", "negative_prompt", "first_step")  # settings that are those of every draft


@dataclass(frozen=True)
class Maker:
    """A model that drew: its name for people, its fingerprint, and for a teacher how it was set."""

    name: str = ""
    fingerprint: str = ""
    settings: str = ""

    def __str__(self) -> str:
        return ", ".join(part for part in (f"{self.name} {self.fingerprint}".strip(), self.settings) if part) or "none"


@dataclass(frozen=True)
class Baseline:
    """What pictures of one prompt score.

    Attributes:
        drafts: How many drafts the mean is of.
        mean: Of the student's drafts.
        teacher_mean: Of the teacher's pictures, where there are any.
    """

    drafts: int
    mean: float
    teacher_mean: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Scores of drafts by one student under one oracle.

    Attributes:
        scores: One a draft; NaN where the oracle could not tell.
        oracle: Fingerprint of the oracle that gave them; empty for published percentiles, which hold for its name.
        oracle_name: Its name.
        prompts: One a score, or none at all.
        teacher_scores: Of the teacher's picture for each draft; empty without a teacher.
        student, schedule, teacher: What drew; empty where it is not known.
        settings: Size, negative prompt and the like, for people and for ``require_same``.
        first_scores: Of what each draft was after its first step; empty where nobody looked.
        published: (percentile, score), rising, of a calibration that is known by its percentiles alone.
        name, note: For people.
    """

    scores: tuple[float, ...]
    oracle: str
    oracle_name: str = ""
    prompts: tuple[str, ...] = ()
    teacher_scores: tuple[float, ...] = ()
    student: Maker = Maker()
    schedule: str = ""
    teacher: Maker = Maker()
    settings: dict[str, Any] = field(default_factory=dict)
    published: tuple[tuple[float, float], ...] = ()
    name: str = ""
    note: str = ""
    first_scores: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    # ------------------------------------------------------------------------------------------- what it tells

    def percentile(self, k: float) -> tuple[float, str]:
        """The k-th percentile (0..100) of the student's scores, and a note where that is not exactly what was asked for.

        Published percentiles are joined by straight lines; outside of their range the nearest one is taken and said.

        Raises:
            ValueError: There is no finite score.
        """
        if not self.published:
            return quantile(self.scores, k / 100), ""
        points = self.published
        if k < points[0][0] or k > points[-1][0]:
            nearest, score = points[0] if k < points[0][0] else points[-1]
            return score, (
                f"The percentiles of '{self.name}' reach from {points[0][0]:g} to {points[-1][0]:g}, "
                f"so {k:g} was taken as {nearest:g}."
            )
        if k in dict(points):
            return dict(points)[k], ""
        i = next(i for i, (percentile, _) in enumerate(points) if percentile > k)
        (low, below), (high, above) = points[i - 1], points[i]
        return below + (k - low) / (high - low) * (above - below), ""

    def quantiles(self) -> dict[str, float]:
        """The percentiles as the file has them; none where no score is finite."""
        if self.published:
            return {f"{k:g}": score for k, score in self.published}
        if not any(math.isfinite(score) for score in self.scores):
            return {}
        return {str(k): quantile(self.scores, k / 100) for k in PERCENTILES}

    def baselines(self) -> dict[str, Baseline]:
        """What pictures of each prompt score, for the prompts with at least two scored drafts."""
        drafts: dict[str, list[float]] = {}
        teachers: dict[str, list[float]] = {}
        for i, prompt in enumerate(self.prompts):
            if math.isfinite(self.scores[i]):
                drafts.setdefault(prompt, []).append(self.scores[i])
            if self.teacher_scores and math.isfinite(self.teacher_scores[i]):
                teachers.setdefault(prompt, []).append(self.teacher_scores[i])
        return {
            prompt: Baseline(len(scores), _mean(scores), _mean(teachers[prompt]) if prompt in teachers else None)
            for prompt, scores in drafts.items()
            if len(scores) >= 2
        }

    def pairs(self) -> tuple[list[float], list[float]]:
        """Scores of draft and teacher, one pair a prompt: drafts of one prompt are not independent of each other.

        Raises:
            ValueError: The calibration was made without a teacher.
        """
        if not self.teacher_scores:
            raise ValueError(
                f"The calibration '{self.name}' has no pictures of a teacher to compare with: calibrate again with the teacher "
                f"connected."
            )
        first: dict[str, int] = {}
        for i, prompt in enumerate(self.prompts):
            if math.isfinite(self.scores[i]):
                first.setdefault(prompt, i)
        return [self.scores[i] for i in first.values()], [self.teacher_scores[i] for i in first.values()]

    # ------------------------------------------------------------------------------------------ what it is for

    def require_oracle(self, fingerprint: str, name: str = "") -> None:
        """Check that scores of that oracle may be compared with these.

        Raises:
            ValueError: Another oracle gave these scores.
        """
        if not self.oracle:
            if not _is_called(name, self.oracle_name):
                raise ValueError(
                    f"The calibration '{self.name}' holds for the oracle {self.oracle_name}, but the judge uses "
                    f"{name or fingerprint}; connect that oracle, or calibrate with yours."
                )
        elif fingerprint != self.oracle:
            raise ValueError(
                f"This calibration was made with oracle {self.oracle}, but the judge uses {fingerprint}; calibrate again "
                f"with the judge's oracle."
            )

    def require_student(self, student: str, schedule: str) -> None:
        """Check that drafts by that student at that schedule may be compared with these; what isn't known is not checked.

        Raises:
            ValueError: The student or its schedule is another; the sentence names which.
        """
        if self.student.fingerprint and student and self.student.fingerprint != student:
            raise ValueError(
                f"This calibration was made with another student ({self.student}; these drafts are by {student}); calibrate "
                f"again with this student, or connect its own calibration."
            )
        if self.schedule and schedule and self.schedule != schedule:
            raise ValueError(
                f"This calibration was made with another schedule ({self.schedule}; these drafts: {schedule}); set the student "
                f"sampler as it was for the calibration, or calibrate again."
            )

    def require_same(self, other: Calibration) -> None:
        """Check that drafts made as ``other`` was may be added.

        Raises:
            ValueError: They would not be of one distribution; the sentence names everything that differs.
        """
        changes = differences(self, other)
        if changes:
            raise ValueError(
                f"The calibration '{self.name}' was made with {'; and with '.join(changes)}; choose another name, or delete the "
                f"file to start again."
            )

    def joined(self, other: Calibration) -> Calibration:
        """These drafts, then those of ``other``.

        Raises:
            ValueError: See ``require_same``; or one of the two has no drafts of its own, only percentiles.
        """
        self.require_same(other)
        if self.published or other.published:
            raise ValueError(f"The calibration '{self.name}' consists of published percentiles; drafts can't be added to it.")
        return replace(
            self, scores=self.scores + other.scores, prompts=self.prompts + other.prompts,
            teacher_scores=self.teacher_scores + other.teacher_scores, first_scores=self.first_scores + other.first_scores,
        )  # fmt: skip


def differences(a: Calibration, b: Calibration) -> list[str]:
    """What made ``a`` and not ``b``, as phrases "another X (this; not that)"."""
    pairs = [
        ("oracle", f"{a.oracle_name} {a.oracle}".strip(), f"{b.oracle_name} {b.oracle}".strip()),
        ("student", str(a.student), str(b.student)),
        ("schedule", a.schedule, b.schedule),
        ("teacher", str(a.teacher), str(b.teacher)),
        *((key.replace("_", " "), str(a.settings.get(key)), str(b.settings.get(key))) for key in _OF_ALL_DRAFTS),
    ]
    return [f"another {what} ({one or 'none'}; now {two or 'none'})" for what, one, two in pairs if one != two]


def report(calibration: Calibration) -> str:
    """The calibration in words and one table."""
    c = calibration
    lines = [f"Calibration '{c.name}': {len(c)} drafts of {len(set(c.prompts))} prompts, scored by {c.oracle_name or c.oracle}."]
    if c.published:
        lines = [f"Calibration '{c.name}': published percentiles for {c.student.name} with {c.oracle_name}."]
    unscored = sum(math.isnan(score) for score in c.scores)
    if unscored:
        lines.append(f"Scores that are not numbers, and are left out: {unscored}.")
    lines += [f"{what}: {value}." for what, value in (("Student", c.student), ("Schedule", c.schedule or "none"))
              if str(value) != "none"]  # fmt: skip
    if c.teacher_scores:
        drafts, teachers = c.pairs()
        worse = sum(is_worse(d, t) for d, t in zip(drafts, teachers, strict=True))
        lines.append(f"Teacher: {c.teacher}. Of {len(drafts)} pairs, one a prompt, {worse} drafts are worse than the teacher's.")
    if c.first_scores:
        lines.append(told(c.first_scores, c.scores, c.prompts, int(c.settings.get("steps") or 1)))
    baselines = c.baselines()
    if baselines:
        lines.append(f"{len(baselines)} prompts have a baseline of their own.")
    table = c.quantiles()
    if table:
        cells = [("percentile", *table), ("score", *(f"{score:.4f}" for score in table.values()))]
        lines += ["", *("| " + " | ".join(row) + " |" for row in (cells[0], ["---"] * len(cells[0]), cells[1]))]
    return "\n".join([*lines, *(["", c.note] if c.note else [])])


# ------------------------------------------------------------------------------------------------------- files


def save(calibration: Calibration, path: Path) -> None:
    """Write a calibration, atomically."""
    c = calibration
    teacher, first = (scores or (None,) * len(c) for scores in (c.teacher_scores, c.first_scores))
    prompts = c.prompts or ("",) * len(c)
    content = {
        "name": c.name,
        "note": c.note,
        "oracle": {"name": c.oracle_name, "fingerprint": c.oracle},
        "student": {"name": c.student.name, "fingerprint": c.student.fingerprint},
        "schedule": c.schedule,
        "teacher": None if c.teacher == Maker() else vars(c.teacher),
        "settings": c.settings,
        "count": len(c),
        "quantiles": {k: plain(score) for k, score in c.quantiles().items()},
        "baselines": {prompt: vars(baseline) for prompt, baseline in c.baselines().items()},
        "drafts": [
            {
                "prompt": prompt, "score": plain(score), **({} if other is None else {"teacher_score": plain(other)}),
                **({} if early is None else {"first_score": plain(early)}),
            }
            for prompt, score, other, early in zip(prompts, c.scores, teacher, first, strict=True)
        ],
    }
    write_record(path, KIND, VERSION, content)


def load(path: Path) -> Calibration:
    """The calibration in a file.

    Raises:
        ValueError: It is missing, damaged, of another kind, or newer than this Apprentice; one sentence says which.
    """
    content = read_record(path, KIND, VERSION, _REMEDY)
    try:
        return _parsed(content)
    except KeyError as error:
        raise damaged(path, f"it has no {error}", _REMEDY) from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise damaged(path, f"an entry is not as it should be ({error})", _REMEDY) from error


def _parsed(content: dict[str, Any]) -> Calibration:
    drafts = content["drafts"]
    if content["count"] != len(drafts):
        raise ValueError(f"count is {content['count']}, but there are {len(drafts)} drafts")
    paired, early = (_those_with(key, drafts) for key in ("teacher_score", "first_score"))
    published = () if drafts else tuple((float(k), number(score)) for k, score in content["quantiles"].items())
    if list(published) != sorted(set(published)) or any(a[1] > b[1] for a, b in zip(published, published[1:], strict=False)):
        raise ValueError("the quantiles don't rise")
    teacher = content["teacher"] or {}
    return Calibration(
        scores=tuple(number(draft["score"]) for draft in drafts),
        oracle=_text(content["oracle"]["fingerprint"]),
        oracle_name=_text(content["oracle"]["name"]),
        prompts=tuple(_text(draft["prompt"]) for draft in drafts),
        teacher_scores=tuple(number(draft["teacher_score"]) for draft in paired),
        student=Maker(_text(content["student"]["name"]), _text(content["student"]["fingerprint"])),
        schedule=_text(content["schedule"]),
        teacher=Maker(**{key: _text(teacher[key]) for key in ("name", "fingerprint", "settings")}) if teacher else Maker(),
        settings=dict(content["settings"]),
        published=published,
        name=_text(content["name"]),
        note=_text(content["note"]),
        first_scores=tuple(number(draft["first_score"]) for draft in early),
    )


def _those_with(key: str, drafts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    having = [draft for draft in drafts if key in draft]
    if having and len(having) != len(drafts):
        raise ValueError(f"{len(having)} of {len(drafts)} drafts have a {key}; all or none should")
    return having


def shipped() -> dict[str, Path]:
    """The calibrations that come with Apprentice, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.json"))}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{repr(value)[:40]} should be a text")
    return value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _is_called(name: str, wanted: str) -> bool:
    """Whether an oracle's name is ``wanted``, give or take spelling and a version number."""
    squeeze = lambda text: re.sub(r"[\W_]+", "", text.casefold())  # noqa: E731
    return re.fullmatch(re.escape(squeeze(wanted)) + r"(v?\d+)?", squeeze(name)) is not None
