"""The service under load, on this machine's loopback: late answers with a share that follows the load and with one that doesn't.

Requests are real (HTTP, FastAPI, the service's own queues and controller), so are the workers (actors of Ray, which are killed in
some runs); the work is sleep (``serve_engine``). So the sustainable load is known: with ``TAKES`` the teacher answers four
pictures a second, and at a share of 0.3 that bears 13.3 requests a second. Arrivals are Poisson, a seed a run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from ..fleet.guard import Rules
from ..fleet.jobs import Limits
from ..fleet.serving import Service
from ..fleet.serving_http import make_app
from ..gate.by_load import ByLoad
from .figures import Claim, Figures, mean_of_seeds
from .serve_engine import Sleeping, Takes

SHARE, DEADLINE, SEEDS = 0.3, 3.0, 5
TAKES = Takes(draft=(0.04, 0.01), verdict=(0.015, 0.002), answer=(0.0, 0.25))
SUSTAINABLE = 1 / (SHARE * TAKES.answer[1])  # requests a second
FOLLOWS, FIXED = "threshold by load", "fixed threshold"


class Fixed(ByLoad):
    """A threshold that stays: the quantile of the scores' law."""

    def __init__(self, share: float) -> None:
        super().__init__(share, 0.0)
        self.threshold = NormalDist().inv_cdf(share)

    def judge(self, score: float, most: float = 1.0) -> tuple[bool, float]:
        """See ``ByLoad``."""
        return score >= self.threshold, self.threshold


@dataclass(frozen=True)
class Run:
    """What is tried.

    Attributes:
        policy: ``FOLLOWS`` or ``FIXED``.
        load: In sustainable loads.
        seconds: That requests come for.
        kills: Workers that are killed meanwhile.
        twice: Of requests, so many are sent again while the first waits, under the same key.
    """

    policy: str
    load: float
    seconds: float
    seed: int
    deadline: float = DEADLINE
    kills: int = 0
    twice: float = 0.0


@dataclass
class Told:
    """What a client saw of a request."""

    prompt: str
    status: int
    seconds: float
    job: str = ""
    picture: dict[str, Any] | None = None


def remote_engine() -> Sleeping:
    """Its workers are actors of Ray."""
    import ray

    class Sleeper:  # made here, so that the actors don't import the pack
        def work(self, seconds: float) -> None:
            time.sleep(seconds)

    actor = ray.remote(num_cpus=0)(Sleeper)
    return Sleeping(
        TAKES, (1, 1, 1), 4, make=actor.remote, call=lambda worker, seconds: ray.get(worker.work.remote(seconds)),
        broken=(ray.exceptions.RayActorError,), end=ray.kill,
    )  # fmt: skip


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """The service on a free port of the loopback; its address."""
    import uvicorn

    config = uvicorn.Config(make_app(service, Rules(rate=0)), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not (server.started and service.ready):
            if service.failure or not thread.is_alive():
                raise RuntimeError(f"The service did not start: {service.failure}")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


async def _ask(session: Any, url: str, prompt: str, wait: float) -> Told:
    await asyncio.sleep(wait)
    begun = time.monotonic()
    headers = {"Idempotency-Key": prompt}
    try:
        async with session.post(f"{url}/v1/pictures", json={"prompt": prompt}, headers=headers) as answer:
            body = await answer.json()
            seconds = time.monotonic() - begun
            return Told(prompt, answer.status, seconds, body.get("id", ""), (body.get("pictures") or [None])[0])
    except Exception as error:
        return Told(f"{prompt} ({error})", 0, time.monotonic() - begun)


async def _clients(run: Run, url: str, kill: Callable[[int], None]) -> list[Told]:
    """All requests of a run; kills at even times."""
    import aiohttp

    rng = np.random.default_rng(run.seed)
    count = int(rng.poisson(run.load * SUSTAINABLE * run.seconds))
    times = np.sort(rng.uniform(0, run.seconds, count))
    again = rng.random(count) < run.twice
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=300)
    ) as session:
        asked = [_ask(session, url, f"request {n}", t) for n, t in enumerate(times)]
        asked += [_ask(session, url, f"request {n}", times[n] + 0.05) for n in np.flatnonzero(again)]
        work = [asyncio.create_task(each) for each in asked]
        for place in range(run.kills):
            await asyncio.sleep(run.seconds / (run.kills + 1))
            kill(int(rng.integers(2**31)) + place)
        return list(await asyncio.gather(*work))


def tried(run: Run) -> dict[str, Any]:
    """A run's row: how many answers were late, lost or doubled."""
    import ray

    engine = remote_engine()
    gate = Fixed(SHARE) if run.policy == FIXED else ByLoad(SHARE, run.deadline)
    service = Service(engine, Limits(SHARE, run.deadline, queue=10_000), gate)

    def kill(number: int) -> None:
        alive = engine.alive[-3:]
        ray.kill(alive[number % len(alive)])

    with listening(service) as url:
        told = asyncio.run(_clients(run, url, kill))
        jobs = list(service.jobs.values())
    asked = {each.prompt for each in told}
    pictures = [each.picture for each in told if each.status == 200 and each.picture and each.picture["png"]]
    answered = [each for each in told if each.status in (200, 429)]
    lost = len(told) - len(answered) + sum(each.status == 200 and not each.picture for each in told)
    doubled = len({each.job for each in told if each.job}) - len({each.prompt for each in told if each.job})
    doubled += len(jobs) - len({job.pictures[0].prompt for job in jobs})
    doubled += sum([event for event, _ in job.events].count("picture") != 1 for job in jobs)
    late = [each.status != 200 or each.seconds > run.deadline for each in told]
    return {
        "policy": run.policy, "load": run.load, "seed": run.seed, "kills": engine.replaced, "requests": len(asked),
        "refused": sum(each.status == 429 for each in told), "missed": float(np.mean(late)),
        "99 of 100 s": float(np.quantile([each.seconds for each in told], 0.99)),
        "to the teacher": float(np.mean([p["draft_score"] is not None for p in pictures])),
        "score": float(np.mean([p["score"] for p in pictures])), "lost": lost, "doubled": doubled,
    }  # fmt: skip


def runs(quick: bool, seeds: int) -> list[Run]:
    """What is tried: a load that can be borne, one that can't, and kills."""
    seconds = 8.0 if quick else 30.0
    both = [
        Run(policy, load, seconds, seed)
        for load, count in ((0.7, 1 if quick else 2), (1.5, seeds)) for seed in range(count) for policy in (FIXED, FOLLOWS)
    ]  # fmt: skip
    killed = Run(FOLLOWS, 1.0, seconds, 100, 60.0, 2 if quick else 6, 0.2)
    return [*both, *(replace(killed, seed=100 + seed) for seed in range(1 if quick else 3))]


def run(quick: bool = False, say: Callable[[str], None] = print, seeds: int | None = None) -> Figures:
    """Measure, print the table and the claims.

    Raises:
        ModuleNotFoundError: Ray Serve isn't installed.
    """
    import ray

    seeds = seeds or (1 if quick else SEEDS)
    figures = Figures("serve", {
        "share": SHARE, "deadline": DEADLINE, "takes": asdict(TAKES), "sustainable": SUSTAINABLE, "seeds": seeds,
        "work": "sleep, on actors of Ray; HTTP by uvicorn on the loopback, clients in the same process",
    })  # fmt: skip
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        for each in runs(quick, seeds):
            say(f"{each.policy}, {each.load:g} of the sustainable load, seed {each.seed}, {each.kills} kills")
            figures.rows.append(tried(each))
    finally:
        ray.shutdown()
    figures.claims = claims(figures.rows)
    figures.show()
    return figures


def claims(rows: list[dict[str, Any]]) -> dict[str, Claim]:
    """Miss rates at 1.5 times the sustainable load, by seed; and all that was lost or doubled in any run."""
    of = lambda policy, load, what: mean_of_seeds(  # noqa: E731
        [row[what] for row in rows if (row["policy"], row["load"]) == (policy, load)]
    )
    wrong = float(sum(row["lost"] + row["doubled"] for row in rows))
    return {
        "serve_miss_rate": of(FOLLOWS, 1.5, "missed"), "serve_miss_rate_fixed": of(FIXED, 1.5, "missed"),
        "serve_share_under_load": of(FOLLOWS, 1.5, "to the teacher"),
        "serve_share_without_load": of(FOLLOWS, 0.7, "to the teacher"),
        "serve_lost_or_doubled": Claim(wrong, wrong, wrong), "serve_kills": Claim(*[float(sum(r["kills"] for r in rows))] * 3),
    }  # fmt: skip
