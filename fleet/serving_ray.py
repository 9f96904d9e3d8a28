"""The service on Ray: the cascade's workers as the engine, and Ray Serve in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..bulk.items import Item
from ..bulk.stages import VERDICT
from ..bulk.workflow import BETTER, EXPLORE, JUDGE, SAMPLER, Graph, Policy, Template, ends, of_class
from ..gate.verdict import Verdict
from .guard import Rules
from .jobs import Drafts, Limits
from .ray_pools import JUDGE as JUDGES
from .ray_pools import KINDS, STUDENT, TEACHER, RayLine, Share, comfyui_engine, connected, require
from .serving import Service
from .serving_http import make_app

SHARED = {"worst share": 1.0, "running": 1.0, "percentile": 0.01}  # modes whose number is a share, times this


def bounds_of(graph: Graph, share: float | None, budget: float | None) -> tuple[float | None, float | None]:
    """The share (0..1) and the budget (evaluations a picture) that a workflow's own gate stands for, unless others are asked for.

    Raises:
        ValueError: It has no gate, or one of another kind, and no share is asked for.
    """
    ends(graph)
    gate = next(graph[key]["inputs"] for name in (SAMPLER, JUDGE, EXPLORE) for key in of_class(graph, name))
    mode, value = gate.get("threshold"), gate.get("value")
    if share is None and mode in SHARED and isinstance(value, int | float):
        share = value * SHARED[mode]
    elif share is None and mode == "budget" and isinstance(value, int | float):
        budget = min(value, budget or value)
    elif share is None:
        raise ValueError(f"The threshold '{mode}' says no share of drafts for the teacher: give one with --share, such as 0.3.")
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"The share of drafts for the teacher is a number from 0 to 1, not {share:g}.")
    return share, budget


def _started_of(shares: Mapping[str, Share], together: bool) -> Mapping[str, Share]:
    """The workers that are started; see ``Cascade``."""
    return {STUDENT: shares[STUDENT]} if together else shares


class Cascade(RayLine):
    """The engine (see ``jobs.Engine``): students, judges and teachers of Ray, each with a ComfyUI; a batch in two steps.

    Args:
        together: The students' workers are judges and teachers, too: one ComfyUI that holds all models, for one GPU.
    """

    def __init__(
        self, address: str, template: Template, shares: Mapping[str, Share], make: Callable[[], Any], together: bool = False
    ) -> None:
        super().__init__(address, template, _started_of(shares, together), make)
        self.batch = template.batch
        if together:
            self.pools, shares = dict.fromkeys(KINDS, self.pools[STUDENT]), dict.fromkeys(KINDS, shares[STUDENT])
        self.drafters = shares[STUDENT].most + (0 if together else shares[JUDGES].most)  # one is judged, another drafted
        teaches = of_class(template.graph, SAMPLER) or of_class(template.graph, BETTER)
        self.teachers = shares[TEACHER].most if teaches else 0

    @property
    def replaced(self) -> int:
        """Workers that broke."""
        return sum(pool.replaced for pool in set(self.pools.values()))

    def draft(self, part: Sequence[Item], seed: int) -> Drafts:
        """See ``jobs.Engine``."""
        cut, made = self._cut(self.template.fill(part, seed)), dict[str, list[Any]]()
        student, judge, teacher = (self._stage(kind) for kind in KINDS)

        def kept(*asked: Any) -> Mapping[str, list[Any]]:
            made.update(student(*asked))
            return made

        pictures, verdict = replace(cut, ends=None).draw(kept, judge, teacher)
        return Drafts(pictures, verdict, (cut, made))

    def teach(self, drafts: Drafts, verdict: Verdict) -> tuple[Tensor, Verdict]:
        """See ``jobs.Engine``."""
        cut, made = drafts.rest
        return cut.draw(lambda *_: made, lambda *_: {VERDICT: [verdict]}, self._stage(TEACHER))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Served:
    """What is served; it travels to where Ray Serve puts it.

    Attributes:
        graph: The workflow; see ``bulk.workflow``.
        batch: Pictures at a time.
        shares: Workers by kind; see ``ray_pools.read_shares``.
        comfyui, flags: See ``ray_pools.comfyui_engine``.
        address: See ``RayLine``.
        together: See ``Cascade``.
    """

    graph: Graph
    batch: int
    shares: Mapping[str, Share]
    comfyui: Path
    flags: Sequence[str]
    limits: Limits
    rules: Rules
    together: bool = False
    address: str = "local"

    def template(self) -> Template:
        """The workflow with a judge that only scores: the service decides.

        Raises:
            ValueError: It can't be filled in, or has no gate.
        """
        return Template(self.graph, self.batch, Policy("absolute", 0.0))

    def service(self) -> Service:
        """With workers of the Ray that this process is in."""
        make = partial(comfyui_engine, self.comfyui, self.flags)
        return Service(Cascade(self.address, self.template(), self.shares, make, self.together), self.limits)


Stopping = Callable[[], AbstractContextManager[Callable[[], bool]]]
_here: list[Service] = []  # of this process, a replica of Ray Serve


def _begun(served: Served) -> Any:
    """The application, made in the replica. By name: a function that travels would take a copy of ``_here`` along."""
    _here[:] = [served.service()]
    return make_app(_here[0], served.rules)


class Front:
    """What can be asked of the replica beside HTTP."""

    async def ready(self) -> str:
        """Wait until it is; why it never will be, or ""."""
        while not (_here[0].ready or _here[0].failure):
            await asyncio.sleep(0.1)
        return _here[0].failure

    async def drain(self) -> None:
        """See ``Service.drain``."""
        await _here[0].drain()


@contextmanager
def on_ray_serve(
    served: Served, host: str, port: int, stopping: Stopping, drain: float = 60.0
) -> Iterator[Callable[[], bool]]:
    """Serve within the ``with``; at its end what was taken on is answered first, for ``drain`` seconds at most.

    Args:
        stopping: Listens for signals, and tells whether to stop; entered after Ray, which has signals of its own.

    Raises:
        ValueError: Ray Serve is missing, or the workflow can't be drawn.
    """
    ray = connected(served.address)
    require(ray.cluster_resources(), _started_of(served.shares, served.together), 0 if served.address == "local" else 1)
    try:
        from ray import serve
    except ImportError as error:
        raise ValueError("Ray Serve is missing: pip install 'ray[default,serve]'.") from error
    try:
        with stopping() as stopped:
            handle = _started(serve, served, host, port)
            if failure := handle.ready.remote().result():
                raise ValueError(failure)
            try:
                yield stopped
            finally:
                _drain(handle, drain)
    finally:
        serve.shutdown()
        ray.shutdown()


def _drain(handle: Any, seconds: float) -> None:
    """Raises: ValueError: It takes longer."""
    try:
        handle.drain.remote().result(timeout_s=seconds)
    except TimeoutError as error:
        raise ValueError(f"What was begun was not done within {seconds:g} seconds, and is lost; see --drain.") from error


def _started(serve: Any, served: Served, host: str, port: int) -> Any:
    """The replica's handle.

    Raises:
        ValueError: Nobody can listen there, or the replica doesn't start.
    """
    kind = serve.deployment(
        serve.ingress(lambda: _begun(served))(Front), name="apprentice", num_replicas=1, max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0},
    )  # fmt: skip
    bound = kind.bind  # which the registry's scanner would take for a socket's, were it called here
    try:
        serve.start(http_options={"host": host, "port": port})
        return serve.run(bound(), name="apprentice", route_prefix="/")
    except RuntimeError as error:
        why = str(error).strip().splitlines()[-1]
        raise ValueError(f"Ray Serve can't start on {host}:{port} (does another program listen there?): {why}") from error
