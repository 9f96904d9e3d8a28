"""What the simulated service is fed with: scores and CPU times of the tiny world, drawn once and kept in a small file.

Two students beside one teacher: those that ship ("near", as good as it), and one with noise on its weights ("far", behind it).
The gate's oracle scored everything; the judge, which no policy sees, says what was delivered.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from ..files import write_atomically
from ..world.recipe.concepts import held_out_prompts, training_prompts
from ..world.recipe.sampling import Drawn, World, unit_noise
from .explore_pictures import PLACES, REDRAWN, SPOILED, TEACHER_STEPS, spoil
from .figures import Array, machine

FILE = Path(__file__).with_name("results") / "fleet-scores.json"
STUDENTS = {"consistency": "consistency", "SiD": "sid", SPOILED: SPOILED}
WORLDS = {"near": ("consistency", "SiD"), "far": (SPOILED,)}
PROMPTS, TAUGHT, DRAFTS = 96, 24, 4
BATCHES, TURNS = (1, 2, 4, 8), 5
PARTS = ("evaluation", "decoding", "verdict")  # of a network; to pixels; by the gate's oracle


@dataclass(frozen=True)
class Scores:
    """One source's pictures of unseen prompts: the gate's and the judge's scores [rows, drafts]; rows of a prompt lie together.

    Attributes:
        evaluations: Network evaluations a picture.
        taught: The gate's scores on training prompts [rows, drafts]: what a calibration knows.
    """

    evaluations: float
    gate: Array
    judge: Array
    taught: Array


@dataclass(frozen=True)
class Drawings:
    """A student or two beside the teacher.

    Attributes:
        students: By name; the first is the cascade's.
        teacher: Its answers, one a row.
        places: Rows of one prompt.
    """

    students: dict[str, Scores]
    teacher: Scores
    places: int = PLACES

    @property
    def student(self) -> Scores:
        """The one that drafts for the cascade."""
        return next(iter(self.students.values()))


@dataclass(frozen=True)
class Seconds:
    """CPU seconds of a batch of b: ``fixed + each * b``, by least squares over ``BATCHES``."""

    fixed: float
    each: float

    @classmethod
    def fitted(cls, sizes: Array, seconds: Array) -> Seconds:
        """Neither part below 0."""
        each, fixed = np.polyfit(sizes, seconds, 1)
        return cls(max(float(fixed), 0.0), max(float(each), 0.0))


@dataclass(frozen=True)
class Measured:
    """What the file holds: the drawings of each world, and the seconds of a network evaluation, of decoding and of a verdict."""

    worlds: dict[str, Drawings]
    evaluation: Seconds
    decoding: Seconds
    verdict: Seconds
    provenance: dict[str, Any]


def load(path: Path = FILE) -> Measured:
    """Read what was measured.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no scores in {path}: draw them with 'apprentice bench fleet --draw {path}'.")
    body = json.loads(path.read_text(encoding="utf-8"))
    sources = {name: Scores(s["evaluations"], *(np.array(s[key]) for key in ("gate", "judge", "taught")))
               for name, s in body["sources"].items()}  # fmt: skip
    worlds = {world: Drawings({n: sources[n] for n in names}, sources[REDRAWN]) for world, names in WORLDS.items()}
    evaluation, decoding, verdict = (Seconds(**body["cpu_seconds"][part]) for part in PARTS)
    return Measured(worlds, evaluation, decoding, verdict, body["provenance"])


def draw(path: Path, say: Callable[[str], None] = print) -> None:
    """Draw every source on unseen and on training prompts, take the times, and write the file: about five CPU-minutes."""
    world = World()
    spoil(world)
    unseen, taught = ([p.text() for p in some for _ in range(PLACES)]
                      for some in (held_out_prompts()[:PROMPTS], training_prompts(TAUGHT, seed=77)))  # fmt: skip
    sources = {}
    for number, name in enumerate([*STUDENTS, REDRAWN]):
        say(f"{name}: {len(unseen)} rows of unseen prompts, {len(taught)} of training prompts")
        evaluations, gate, judge = _scores(world, name, unseen, 10_000 + 1000 * number)
        known = _scores(world, name, taught, 90_000 + 1000 * number)[1]
        sources[name] = {"evaluations": evaluations, "gate": _plain(gate), "judge": _plain(judge), "taught": _plain(known)}
    say("times")
    body = {
        "provenance": {
            "command": "apprentice bench fleet --draw benchmarks/results/fleet-scores.json", "machine": machine(),
            "pictures": f"of the tiny world: {PROMPTS} unseen and {TAUGHT} training prompts, {PLACES} rows of each; a row has "
                        f"{DRAFTS} drafts of each student in one step and one answer of the teacher in {TEACHER_STEPS} steps",
            "cpu_seconds": "of one network evaluation of a draft, of decoding a picture, and of its verdict; of a CPU, not a GPU",
        },
        "cpu_seconds": {part: vars(seconds) for part, seconds in _times(world, unseen).items()}, "sources": sources,
    }  # fmt: skip
    text = json.dumps(body) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def _scores(world: World, name: str, rows: list[str], seed: int) -> tuple[float, Array, Array]:
    """Evaluations a picture, and the scores of gate and judge [rows, drafts]."""

    def one(draft: int) -> Drawn:
        noise = unit_noise(len(rows), seed + draft)
        return world.draft(rows, noise, 1, 0, STUDENTS[name]) if name in STUDENTS else world.redraw(rows, noise, TEACHER_STEPS)

    drawn = [one(draft) for draft in range(DRAFTS if name in STUDENTS else 1)]
    pictures = [world.pictures(each.latents) for each in drawn]
    gate, judge = (np.stack([o.score(p, rows).double().numpy() for p in pictures], 1) for o in (world.oracle, world.judge))
    return float(drawn[0].nfe), gate, judge


def _plain(scores: Array) -> list[list[float]]:
    return [[round(float(score), 2) for score in row] for row in scores]


def _times(world: World, rows: list[str]) -> dict[str, Seconds]:
    """CPU time of this process, so that others on the machine count little; the least of a few turns."""
    taken: dict[str, list[float]] = {part: [] for part in PARTS}
    for size in BATCHES:
        noise, some, turns = unit_noise(size, 5), rows[:size], []
        for _ in range(TURNS):
            clock = [process_time()]
            latents = world.draft(some, noise, 1).latents
            clock.append(process_time())
            pictures = world.pictures(latents)
            clock.append(process_time())
            world.oracle.score(pictures, some)
            turns.append(np.diff([*clock, process_time()]))
        for part, seconds in zip(taken, np.min(turns, axis=0), strict=True):
            taken[part].append(float(seconds))
    return {part: Seconds.fitted(np.array(BATCHES), np.array(seconds)) for part, seconds in taken.items()}
