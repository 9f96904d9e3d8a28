"""The cascade as a service: requests wait, are drawn in batches, and are answered within their deadlines; no HTTP here.

A picture goes draft -> verdict -> (teacher) -> answer. The engine draws; what is admitted, who goes to the teacher and who is
answered when is decided here, in one event loop, so that nothing is counted or answered twice. Jobs live in memory alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any, cast

from torch import Tensor

from ..bulk.items import Item
from ..bulk.job import Draw, PictureError, fault_of, with_poison
from ..bulk.manifest import finite
from ..charts.pictures import as_png
from ..gate.by_load import ByLoad
from ..gate.story import CHUNK, story_of
from ..gate.thresholds import budget_share
from ..gate.verdict import KEPT, Judgement, Verdict
from .jobs import CANCELLED, DONE, DRAWING, FAILURE, QUEUED, Drafts, Engine, Job, Limits, Picture, RefusedError, Work
from .pace import Pace
from .serving_metrics import Metrics

SEEDS = 2**53  # what JavaScript's numbers hold exactly


class Service:
    """See the module.

    Args:
        gate: Who judges; by default the running threshold whose share follows the load.
        clock: Seconds that only go forward.
    """

    def __init__(
        self, engine: Engine, limits: Limits, gate: ByLoad | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.engine, self.limits, self.clock = engine, limits, clock
        self.gate = gate or ByLoad(limits.share if limits.share is not None else 1.0, limits.deadline)
        self.jobs: dict[str, Job] = {}
        self.asked: dict[str, tuple[str, str]] = {}  # idempotency key -> what was asked, and the job's id
        self.queue, self.answers = deque[Work](), asyncio.PriorityQueue[tuple[float, int, Any]]()
        self.drafting = Pace(engine.drafters)
        self.teaching = Pace(engine.teachers)
        self.in_draft = self.in_answer = 0  # pictures
        self.costs: tuple[float | None, float | None] = (None, None)  # evaluations of a draft, and of an answer
        self.ready = self.draining = False
        self.failure = ""  # why it will never be ready
        self.metrics = Metrics(self)
        self._forgot = -math.inf
        self._order, self._come, self._tasks = count(), asyncio.Event(), list[asyncio.Task[None]]()
        self._threads = ThreadPoolExecutor(engine.drafters + engine.teachers + 1)  # one writes files

    # ------------------------------------------------------------------------------------------------------ its life

    def start(self) -> None:
        """Load and time the workers, then work, in tasks of the event loop that runs."""
        self._task(self._begin())

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _begin(self) -> None:
        try:
            await self._in_thread(self._warm_up)
            self.gate.share = self.gate.target = self.share_of(None)
        except Exception as error:  # else it would never be ready, and nobody would know why
            self.failure = _told_of(error, PictureError, ValueError)
            return
        for _ in range(self.engine.drafters):
            self._task(self._drafter())
        for _ in range(self.engine.teachers):
            self._task(self._teacher())
        self.ready = True

    def _warm_up(self) -> None:
        """Draw single pictures and full batches, once to load and once to time; all go to the teacher."""
        for size, timed in ((1, False), (1, True), (self.engine.batch, True)):
            items = [Item(number, f"a picture, number {number}") for number in range(size)]
            drafts, seconds = self._timed(self.engine.draft, items, 0)
            rejected = [replace(j, threshold=math.inf, accepted=False, decision="") for j in drafts.verdict]
            if timed:
                self.drafting.tell(size, seconds)
            answered = drafts.verdict
            if self.engine.teachers:
                verdict = replace(drafts.verdict.with_judgements(rejected), stopped=False)
                (_, answered), seconds = self._timed(self.engine.teach, drafts, verdict)
            if timed and self.engine.teachers:
                self.teaching.tell(size, seconds)
        draft, answer = drafts.verdict.mean_nfe, answered.mean_nfe
        self.costs = (draft, answer - draft if draft is not None and answer is not None else None)

    def _timed(self, work: Callable[..., Any], *given: Any) -> tuple[Any, float]:
        begun = self.clock()
        return work(*given), self.clock() - begun

    async def _in_thread(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    async def drain(self) -> None:
        """Take nothing more on, and come back when all that was taken on is answered."""
        self.draining = True
        while any(not job.over for job in self.jobs.values()):
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """End the work and send the workers away."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._in_thread(self.engine.close)
        self._threads.shutdown(wait=False)

    # ------------------------------------------------------------------------------------------------------ requests

    def share_of(self, budget: float | None) -> float:
        """The share of drafts that may go to the teacher: the workflow's, or less where a budget affords less.

        Raises:
            ValueError: A draft alone costs more, or nobody knows what drafts and answers cost.
        """
        bounds = [1.0 if self.limits.share is None else self.limits.share]
        draft, answer = self.costs
        for bound in (budget, self.limits.budget):
            if bound is not None and self.engine.teachers:
                if draft is None or answer is None:
                    raise ValueError("This workflow doesn't tell what its drafts and answers cost; leave the budget out.")
                if bound < draft:
                    raise ValueError(f"A draft alone costs {draft:g} evaluations; a budget of {bound:g} is too small.")
                bounds.append(budget_share(bound, draft, answer) if answer > 0 else 1.0)
        return min(bounds)

    def admit(
        self, prompts: Sequence[str], seed: int | None = None, deadline: float | None = None, budget: float | None = None,
        key: str = "", asked: str = "",
    ) -> Job:  # fmt: skip
        """Take a request on.

        Args:
            key, asked: A name that the client gives the request, and what it asks for: the same twice is one job.

        Raises:
            RefusedError: Not now, or this key has asked for something else.
            ValueError: The budget doesn't fit.
        """
        self._forget()
        if key and key in self.asked and self.asked[key][1] in self.jobs:
            before, known = self.asked[key]
            if before != asked:
                raise RefusedError("key", "This Idempotency-Key has asked for something else; take a new one.")
            return self.jobs[known]
        if self.draining or not self.ready:
            state = "is going down" if self.draining else self.failure or "is loading its models"
            raise RefusedError("not ready", f"The service {state}." if not self.failure else state, 10)
        now, seconds = self.clock(), deadline or self.limits.deadline
        share = self.share_of(budget)
        self._check_load(len(prompts), seconds, seed is not None)
        pictures = [Picture(number, prompt) for number, prompt in enumerate(prompts)]
        job = Job(secrets.token_urlsafe(16), pictures, now + seconds, share, now)
        self.jobs[job.id] = job
        if key:
            self.asked[key] = (asked, job.id)
        size = 1 if seed is None else self.engine.batch
        for first in range(0, len(pictures), size):
            part = tuple((job, picture) for picture in pictures[first : first + size])
            self.queue.append(Work(part, None if seed is None else (seed + first) % 2**64))
        job.tell(QUEUED, pictures=len(pictures))
        self._come.set()
        return job

    def waiting(self) -> int:
        """Pictures that are not drafted yet."""
        return sum(len(work.pictures) for work in self.queue)

    def _check_load(self, pictures: int, deadline: float, seeded: bool) -> None:
        """Raises: RefusedError: Not even the drafts would be there in time, or too many wait."""
        if self.waiting() + pictures > self.limits.queue:
            raise RefusedError("queue", f"{self.waiting()} pictures wait already; come back later.", max(1.0, deadline / 2))
        most, seconds = self.engine.batch, self.drafting.seconds
        alone = [len(work.pictures) for work in self.queue if work.seed is not None]  # pictures of batches of their own
        shared = sum(work.seed is None for work in self.queue) + self.in_draft + (0 if seeded else pictures)
        alone += [most] * (pictures // most) + [pictures % most] if seeded else []
        batches = [*alone, *[most] * (shared // most), shared % most]
        late = sum(seconds(size) for size in batches if size) / self.engine.drafters + seconds(min(most, pictures)) - deadline
        if late > 0:
            raise RefusedError("deadline", f"The queue can't meet a deadline of {deadline:g} seconds now.", max(1.0, late))

    def cancel(self, job: Job) -> None:
        """Forget a job. What of it isn't begun is not drawn; what is, is thrown away."""
        self.jobs.pop(job.id, None)
        if not job.over:
            self.queue = deque(work for work in self.queue if work.pictures[0][0] is not job)
            self._end(job, CANCELLED)

    def _forget(self) -> None:
        """Jobs that ended long ago, and where the pictures are too many, the oldest; looked at once a second."""
        if self.clock() - self._forgot < 1:
            return
        self._forgot = self.clock()
        bytes_kept = {job: sum(len(picture.png) + 1000 for picture in job.pictures) for job in self.jobs.values()}
        total = sum(bytes_kept.values())
        for job in sorted((job for job in bytes_kept if job.over), key=lambda job: job.ended):
            if total > self.limits.memory or self.clock() - job.ended > self.limits.keep:
                del self.jobs[job.id]
                total -= bytes_kept[job]
        self.asked = {key: entry for key, entry in self.asked.items() if entry[1] in self.jobs}

    async def followed(self, job: Job, after: int = 0, beat: float = 15.0) -> AsyncIterator[tuple[int, str, dict[str, Any]]]:
        """The events of a job from number ``after`` on, each with its number from 1; (0, "", {}) every ``beat`` quiet seconds."""
        while True:
            changed, news = job.changed, job.events[after:]
            for number, (event, data) in enumerate(news, after + 1):
                yield number, event, data
            after += len(news)
            if after < len(job.events):  # some came while these were told
                continue
            if job.over:
                return
            try:
                await asyncio.wait_for(changed.wait(), beat)
            except asyncio.TimeoutError:
                yield 0, "", {}

    # ------------------------------------------------------------------------------------------------------ the work

    async def _drafter(self) -> None:
        while True:
            part, seed = await self._next()
            self.in_draft += len(part)
            try:
                await self._draft(part, seed)
            except Exception as error:  # whatever it is: the requests are answered, and the next ones drawn
                self._failed(part, error)
            finally:
                self.in_draft -= len(part)

    async def _next(self) -> tuple[list[tuple[Job, Picture]], int]:
        """What is drawn next: the first that waits, with others that have no seed of their own, too."""
        while not self.queue:
            self._come.clear()
            await self._come.wait()
        if (first := self.queue.popleft()).seed is not None:
            return list(first.pictures), first.seed
        others = [work for work in self.queue if work.seed is None][: self.engine.batch - 1]
        self.queue = deque(work for work in self.queue if work not in others)
        return [entry for work in (first, *others) for entry in work.pictures], secrets.randbelow(SEEDS)

    async def _draft(self, part: Sequence[tuple[Job, Picture]], seed: int) -> None:
        for job, picture in part:
            picture.seed = seed
            if job.state == QUEUED:
                job.state = DRAWING
        items = [Item(place, picture.prompt) for place, (_, picture) in enumerate(part)]
        begun, replaced = self.clock(), self.engine.replaced
        made, bad = await self._in_thread(with_poison, cast(Draw, self.engine.draft), items, seed)
        drafts = cast(Drafts, made)
        if not bad and replaced == self.engine.replaced:  # what a broken worker took says nothing of the next batch
            self.drafting.tell(len(part), self.clock() - begun)
        now, judged, rejected = self.clock(), list[Judgement](), list[int]()
        for place, ((job, _), judgement) in enumerate(zip(part, drafts.verdict, strict=True)):
            if job.over or place in bad:
                judged.append(replace(judgement, accepted=True, decision=""))
                continue
            judged.append(self._judged(job, judgement, now))
            if not judged[-1].accepted:
                rejected.append(place)
                self.in_answer += 1
        verdict = replace(drafts.verdict.with_judgements(judged), mode="running", value=self.gate.target, stopped=False)
        if rejected:
            due = min(part[place][0].due for place in rejected)
            self.answers.put_nowait((due, next(self._order), (part, drafts, verdict, rejected)))
        await self._answer(part, [p for p in range(len(part)) if p not in rejected], drafts.pictures, verdict, bad)

    def _judged(self, job: Job, judgement: Judgement, now: float) -> Judgement:
        """By today's threshold. Who can't be answered in time any more keeps the draft, whatever its score."""
        base = judgement.threshold if math.isfinite(judgement.threshold) else 0.0
        rate = self.teaching.rate(self.teaching.usual)
        if self.gate.horizon:
            path = self.drafting.seconds(self.engine.batch) + self.teaching.seconds(self.teaching.usual)
            self.gate.horizon = max(self.limits.deadline - path, self.limits.deadline / 10)
        self.gate.follow(now, rate, self.in_answer)
        takes = self.in_answer / rate + self.teaching.seconds(self.teaching.usual) if rate else math.inf
        if not self.engine.teachers or (self.gate.horizon and now + takes > job.due):
            accepted, threshold = True, -math.inf
        else:
            accepted, threshold = self.gate.judge(judgement.score - base, job.share)
        self.metrics.judged(judgement.score, accepted)
        return replace(judgement, threshold=base + threshold, accepted=accepted, decision="", override="")

    async def _teacher(self) -> None:
        while True:
            _, _, (part, drafts, verdict, rejected) = await self.answers.get()
            try:
                if any(not part[place][0].over for place in rejected):
                    await self._teach(part, drafts, verdict, rejected)
            except Exception as error:  # there are drafts, and the next ones are answered
                _told_of(error, PictureError)
                await self._answer(part, rejected, drafts.pictures, _kept(verdict), {})
            finally:
                self.in_answer -= len(rejected)

    async def _teach(self, part: Any, drafts: Drafts, verdict: Verdict, rejected: Sequence[int]) -> None:
        begun, replaced = self.clock(), self.engine.replaced
        pictures, verdict = await self._in_thread(self.engine.teach, drafts, verdict)
        if replaced == self.engine.replaced:
            self.teaching.tell(len(rejected), self.clock() - begun)
        await self._answer(part, rejected, pictures, verdict, {})

    async def _answer(
        self, part: Sequence[tuple[Job, Picture]], places: Sequence[int], pictures: Tensor, verdict: Verdict,
        bad: Mapping[int, str],
    ) -> None:  # fmt: skip
        """The pictures at ``places`` are done."""

        def file(place: int) -> tuple[bytes, str]:
            (_, picture), image = part[place], pictures[place]
            error = bad.get(place, fault_of(image))
            judgement = replace(verdict.judgements[place], seed=picture.seed, prompt=picture.prompt)
            chunks = {CHUNK: json.dumps(story_of(judgement, verdict, None))}
            return (b"", error) if error else (as_png(image, chunks), "")

        files = await self._in_thread(lambda: [file(place) for place in places])
        for place, (png, error) in zip(places, files, strict=True):
            job, picture = part[place]
            if not job.over and not picture.decision:
                picture.judgement, picture.png, picture.error = verdict.judgements[place], png, error
                self._told(job, picture)

    def _failed(self, part: Sequence[tuple[Job, Picture]], error: Exception) -> None:
        sentence = _told_of(error, PictureError)
        for job, picture in part:
            if not job.over and not picture.decision:
                picture.error = sentence
                self._told(job, picture)

    def _told(self, job: Job, picture: Picture) -> None:
        self.metrics.answered(picture, self.clock() - job.begun, self.clock() > job.due)
        score = finite(picture.judgement.score) if picture.judgement else None
        job.tell("picture", number=picture.number, decision=picture.decision, score=score, error=picture.error)
        if all(each.decision for each in job.pictures):
            self._end(job, FAILURE if all(each.error for each in job.pictures) else DONE)

    def _end(self, job: Job, state: str) -> None:
        job.state, job.ended = state, self.clock()
        job.tell(state, seconds=round(job.ended - job.begun, 3), late=job.ended > job.due)


def _kept(verdict: Verdict) -> Verdict:
    """What the teacher failed over: the drafts stay."""
    return verdict.with_judgements([j if j.accepted else replace(j, decision=KEPT, draft_score=j.score) for j in verdict])


def _told_of(error: Exception, *known: type[Exception]) -> str:
    """What people are told: the sentence of an error that has one for them; any other is the server's affair, and in its log."""
    plain = isinstance(error, known)
    logging.getLogger(__name__).error("%s", error, exc_info=None if plain else error)
    return str(error) if plain else "Something went wrong in the service; its log says what."
