"""A job: batches of pictures, drawn and judged one after the other, each written to disk while the next one is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..charts.contact_sheet import contact_sheet
from ..charts.pictures import read_picture, save_picture
from ..gate.story import CHUNK, story_of
from ..gate.verdict import REJECTED, Judgement, Verdict
from .items import Item, batches
from .manifest import FAILED, Manifest, Record, finite


@dataclass(frozen=True)
class Drawn:
    """A batch as it came out.

    Attributes:
        pictures: [B, H, W, 3] in 0..1, in the batch's order.
        verdict: What became of each.
        prompt: The workflow in API format that drew them, for the files; None for none.
    """

    pictures: Tensor
    verdict: Verdict
    prompt: Mapping[str, Any] | None = None


STAND_IN = "a picture"  # in the place of prompts that can't be drawn
Draw = Callable[[Sequence[Item], int], Drawn]
"""Draws a batch with a seed; the noise of a picture goes by this seed and its place in the batch."""
Progress = Callable[[int, int, float], None]
"""Told of pictures done, pictures in all, and the mean cost of a picture in network evaluations so far (NaN: unknown)."""


class PictureError(RuntimeError):
    """A batch could not be drawn; people are told the sentence. Anything else stops the job."""


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        items: In the order of their numbers.
        batch: Pictures at a time.
        seed: Of the first batch; every other one has this plus the number of its first picture.
        sheet: Pictures of a contact sheet; 0 for no sheets.
    """

    items: Sequence[Item]
    batch: int
    seed: int = 0
    sheet: int = 0

    def seed_of(self, part: Sequence[Item]) -> int:
        """Of a batch."""
        return (self.seed + part[0].number) % 2**64

    def todo(self, manifest: Manifest) -> Iterator[list[Item]]:
        """The batches that lack a picture."""
        for part in batches(self.items, self.batch):
            if any(item.number not in manifest.records for item in part):
                yield part


def run(
    job: Job, draw: Draw, manifest: Manifest, progress: Progress, stopped: Callable[[], bool] = lambda: False, at_once: int = 1
) -> bool:
    """Draw what is missing, in the order of the batches. Whether everything is there afterwards.

    Args:
        at_once: Batches in work at a time, each in a thread of its own; files and lines are written by this one alone.

    Raises:
        PictureError: Not even a plain prompt can be drawn.
    """
    save_sheets(job, manifest, list(manifest.records))  # a kill may have come between a line and its sheet
    progress(len(manifest.records), len(job.items), mean_cost(manifest))
    todo, working = job.todo(manifest), dict[Future[tuple[Drawn, dict[int, str]]], list[Item]]()
    failed: BaseException | None = None
    with ThreadPoolExecutor(at_once) as threads:

        def begin() -> None:
            while len(working) < at_once and not (failed or stopped()) and (part := next(todo, None)):
                working[threads.submit(with_poison, draw, part, job.seed_of(part))] = part

        begin()
        while working:
            for future in wait(working, return_when=FIRST_COMPLETED).done:
                part, error = working.pop(future), future.exception()
                failed = failed or error  # what others are at is kept before it is told
                begin()  # before this one is written, so that nobody waits for PNGs
                if error is None:
                    finish(job, manifest, part, job.seed_of(part), *future.result())
            progress(len(manifest.records), len(job.items), mean_cost(manifest))
    if failed:
        raise failed
    return next(todo, None) is None


def with_poison(draw: Draw, part: Sequence[Item], seed: int) -> tuple[Drawn, dict[int, str]]:
    """A batch, and by its number what is wrong with each picture that can't be drawn.

    A workflow of its own is to blame as a whole.

    Where drawing fails, the batch is tried with another prompt in the place of some of its own, until it is known which ones are
    to blame: places, and so the noise of the others, stay. Where it fails with none of its own, no picture is to blame.

    Raises:
        PictureError: That is so.
    """
    try:
        return _whole(draw(part, seed), len(part)), {}
    except PictureError as error:
        stand_in = draw(_without(part, {item.number for item in part}), seed)
        if part[0].workflow:
            return stand_in, {item.number: str(error) for item in part}
    bad: dict[int, str] = {}
    _blame(draw, part, part, seed, bad)
    return draw(_without(part, set(bad)), seed), bad


def _whole(drawn: Drawn, count: int) -> Drawn:
    if len(drawn.pictures) != count:
        raise PictureError(f"{len(drawn.pictures)} pictures came, not {count}: type the number into the workflow's empty latent.")
    return drawn


def _blame(draw: Draw, part: Sequence[Item], suspects: Sequence[Item], seed: int, bad: dict[int, str]) -> None:
    """Find who among ``suspects`` can't be drawn, halving."""
    innocent = {item.number for item in part} - {item.number for item in suspects}
    try:
        draw(_without(part, innocent), seed)
    except PictureError as error:
        if len(suspects) == 1:
            bad[suspects[0].number] = str(error)
            return
        middle = len(suspects) // 2
        _blame(draw, part, suspects[:middle], seed, bad)
        _blame(draw, part, suspects[middle:], seed, bad)


def _without(part: Sequence[Item], numbers: set[int]) -> list[Item]:
    return [replace(item, prompt=STAND_IN, workflow="") if item.number in numbers else item for item in part]


# ------------------------------------------------------------------------------------------------------ what is kept


def file_of(number: int) -> str:
    """A picture's, from the job's folder; a thousand a folder."""
    return f"pictures/{number // 1000:04d}/{number:07d}.png"


def finish(
    job: Job, manifest: Manifest, part: Sequence[Item], seed: int, drawn: Drawn, bad: Mapping[int, str]
) -> None:
    """Write the pictures of a batch that aren't there yet, their lines, and the sheets that are full now."""
    records, chunks = [], {} if drawn.prompt is None else {"prompt": json.dumps(drawn.prompt)}
    for place, (item, picture, judgement) in enumerate(zip(part, drawn.pictures, drawn.verdict, strict=True)):
        if item.number in manifest.records:
            continue
        error = bad.get(item.number, fault_of(picture))
        record = record_of(item, place, seed, judgement, drawn.verdict, error)
        if record.file:
            story = json.dumps(story_of(judgement, drawn.verdict, drawn.prompt))
            save_picture(picture, manifest.folder / record.file, {**chunks, CHUNK: story})
        records.append(record)
    manifest.add(records)
    save_sheets(job, manifest, {record.number for record in records})


def fault_of(picture: Tensor) -> str:
    """What is wrong with a picture that was drawn, as a sentence; "" for nothing."""
    return "" if bool(torch.isfinite(picture).all()) else "The picture holds NaN or infinity."


def record_of(item: Item, place: int, seed: int, judgement: Judgement, verdict: Verdict, error: str) -> Record:
    """The line of a picture."""
    if error:
        own, nfe, oracle = (None, None, "") if item.workflow else (seed, judgement.nfe, verdict.oracle)
        return Record(item.number, "", item.prompt, None, None, None, FAILED, own, place, nfe, oracle, error, item.workflow)
    prompt, seed_ = (judgement.prompt, judgement.seed) if item.workflow else (item.prompt, seed)
    return Record(
        item.number, file_of(item.number), prompt, finite(judgement.score), finite(judgement.draft_score),
        finite(judgement.threshold), judgement.decision, seed_, place, judgement.nfe, verdict.oracle,
        "" if finite(judgement.score) is not None else "The oracle gave no score.", item.workflow,
    )  # fmt: skip


def mean_cost(manifest: Manifest) -> float:
    """Network evaluations a picture, over those of which it is known; NaN where there are none."""
    costs = [record.nfe for record in manifest.records.values() if record.nfe is not None]
    return sum(costs) / len(costs) if costs else float("nan")


def save_sheets(job: Job, manifest: Manifest, numbers: Iterable[int]) -> None:
    """The contact sheets that show pictures ``numbers``, if they are full and not there."""
    for first in sorted({number - number % job.sheet for number in numbers}) if job.sheet else ():
        wanted = [item.number for item in job.items[first : first + job.sheet]]
        path = manifest.folder / f"sheets/{first:07d}.png"
        if not path.exists() and all(number in manifest.records for number in wanted):
            _save_sheet(manifest, wanted, path)


def _save_sheet(manifest: Manifest, wanted: Sequence[int], path: Path) -> None:
    """One sheet; none, where none of its pictures could be drawn."""
    records = [record for number in wanted if (record := manifest.records[number]).file]
    if not records:
        return
    pictures = [read_picture(manifest.folder / record.file) for record in records]
    judgements = [_judgement(place, record) for place, record in enumerate(records)]
    verdict = Verdict(tuple(judgements), records[0].oracle, "", f"to picture {wanted[-1]}, from", wanted[0])
    save_picture(contact_sheet(verdict, _of_one_size(pictures))[0], path, {})


def _judgement(place: int, record: Record) -> Judgement:
    return Judgement(
        place, _or_nan(record.score), _or_nan(record.threshold), record.decision != REJECTED, record.prompt, record.seed,
        record.nfe, record.decision, record.draft_score,
    )  # fmt: skip


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _of_one_size(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures [H, W, 3] as [B, H, W, 3], with paper around the smaller ones."""
    height, width = (max(picture.shape[side] for picture in pictures) for side in (0, 1))
    sheet = torch.full((len(pictures), height, width, 3), 0.97)
    for place, picture in zip(sheet, pictures, strict=True):
        place[: picture.shape[0], : picture.shape[1]] = picture
    return sheet
