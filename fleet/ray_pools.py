"""Students, judges and teachers as actors of Ray, each with a ComfyUI of its own in its process.

A batch goes draft -> judge -> teacher, and each kind of worker loads only what its own part of the workflow needs, once. All
batches, seeds and places are those of one machine, and so are the pictures, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import Any

from ..bulk.items import Item
from ..bulk.job import Drawn, PictureError
from ..bulk.pool import Pool
from ..bulk.stages import Cut
from ..bulk.workflow import Fills, Graph

STUDENT, JUDGE, TEACHER = "student", "judge", "teacher"
KINDS = (STUDENT, JUDGE, TEACHER)


@dataclass(frozen=True)
class Share:
    """What one kind of worker may take.

    Attributes:
        most: Workers at a time.
        gpus: Of a GPU, for each; 0 for none.
    """

    most: int = 1
    gpus: float = 0.0


def read_shares(text: str, gpus: bool) -> dict[str, Share]:
    """Shares from "student=2,judge=1,teacher=4" or "student=2x0.5": workers, and each one's part of a GPU.

    Args:
        gpus: Whether the machines have GPUs: then a worker takes a whole one where nothing is said.

    Raises:
        ValueError: It says something else.
    """
    shares = {kind: Share(1, 1.0 if gpus else 0.0) for kind in KINDS}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        kind, _, amount = entry.partition("=")
        most, _, part = amount.partition("x")
        try:
            shares[kind] = Share(int(most), float(part) if part else shares[kind].gpus)
            valid = shares[kind].most > 0 and shares[kind].gpus >= 0
        except (KeyError, ValueError):
            valid = False
        if not valid:
            raise ValueError(f"--workers: '{entry}' is not like student=2 or teacher=4x0.5; kinds are {', '.join(KINDS)}.")
    return shares


class Worker:
    """What an actor does: a ComfyUI in its process, told which graph to run on which values.

    Args:
        make: Makes the engine; see ``bridge.headless.Headless``.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.engine = make()

    def run(self, graph: Graph, wanted: Mapping[str, Sequence[Any]], given: Mapping[str, Any]) -> Any:
        """The values, or the sentence of what went wrong: other errors mean that the worker itself is broken."""
        from ..bridge.headless import NodeError

        try:
            return self.engine.run(graph, wanted, given)
        except NodeError as error:
            return str(error)

    def expand(self, inputs: Mapping[str, Any], prefix: str) -> tuple[Graph, Sequence[Any]]:
        """The single nodes that Apprentice Sampler stands for; see ``stages.Expand``."""
        from comfy_execution.graph_utils import GraphBuilder

        from ..nodes.adaptive import ApprenticeSampler

        GraphBuilder.set_default_prefix(prefix, 0)
        out = ApprenticeSampler.execute(**inputs)
        return out.expand, out.args


class RayLine:
    """Draws batches on Ray's workers.

    Args:
        address: "local" for workers on this machine, "auto" for the cluster that this machine is of, or an address.
        template: The workflow.
        shares: By kind; see ``read_shares``.
        make: Makes a worker's engine, in the worker's process; see ``comfyui_engine``.

    Raises:
        ValueError: Ray is missing, or there is no cluster, or not with so many GPUs or CPUs.
    """

    def __init__(self, address: str, template: Fills, shares: Mapping[str, Share], make: Callable[[], Any]) -> None:
        self.ray, self.template = connected(address), template
        cpus = 0 if address == "local" else 1  # on this machine people know how many cores they have
        require(self.ray.cluster_resources(), shares, cpus)
        self.pools = {kind: self._pool(share, make, cpus) for kind, share in shares.items()}
        self.at_once = sum(share.most for share in shares.values()) + 1  # one waits, so that nobody else must

    def _pool(self, share: Share, make: Callable[[], Any], cpus: int) -> Pool[Any]:
        actor = self.ray.remote(num_cpus=0 if share.gpus else cpus, num_gpus=share.gpus)(Worker)
        return Pool(lambda: actor.remote(make), share.most, (self.ray.exceptions.RayActorError,), self.ray.kill)

    def _stage(self, kind: str) -> Callable[..., Mapping[str, list[Any]]]:
        def run(graph: Graph, wanted: Mapping[str, Sequence[Any]], given: Mapping[str, Any]) -> Mapping[str, list[Any]]:
            made = self.pools[kind].run(lambda worker: self.ray.get(worker.run.remote(graph, wanted, given)))
            if isinstance(made, str):
                raise PictureError(made)
            return made  # type: ignore[no-any-return]

        return run

    def _cut(self, graph: Graph) -> Cut:
        """Raises: PictureError: The workflow can't be shared out."""
        try:
            return Cut.of(graph, lambda *node: self.pools[STUDENT].run(lambda worker: self.ray.get(worker.expand.remote(*node))))
        except ValueError as error:
            raise PictureError(str(error)) from error

    def draw(self, part: Sequence[Item], seed: int) -> Drawn:
        """See ``bulk.job.Draw``."""
        graph = self.template.fill(part, seed)
        pictures, verdict = self._cut(graph).draw(*(self._stage(kind) for kind in KINDS))
        return Drawn(pictures, verdict, graph)

    def close(self) -> None:
        """Send all workers away."""
        for pool in self.pools.values():
            pool.close()


def connected(address: str) -> Any:
    """Ray, connected.

    Raises:
        ValueError: It is missing, or nobody answers.
    """
    environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError("Ray is missing: pip install 'ray[default]', or leave --ray out.") from error
    try:
        if not ray.is_initialized():
            ray.init(address, include_dashboard=False, log_to_driver=False)
    except ConnectionError as error:
        raise ValueError(f"No Ray cluster answers at {address} ({error}); start one, or take --ray local.") from error
    return ray


def require(there: Mapping[str, float], shares: Mapping[str, Share], cpus: int) -> None:
    """Raises: ValueError: Workers would wait for ever for what is not there."""
    gpus = sum(share.most * share.gpus for share in shares.values())
    cores = cpus * sum(share.most for share in shares.values() if not share.gpus)
    for name, wanted in (("GPU", gpus), ("CPU", cores)):
        if wanted > there.get(name, 0.0):
            raise ValueError(
                f"The workers take {wanted:g} {name}s together, and Ray has {there.get(name, 0.0):g}: ask for fewer with "
                f"--workers, or for parts of a GPU, such as --workers student=1x0.3,judge=1x0.2,teacher=1x0.5."
            )


def comfyui_engine(comfyui: Path, flags: Sequence[str]) -> Any:
    """A ComfyUI in the worker's process.

    Args:
        comfyui: Its folder, the same on every machine.
        flags: Of its command line.
    """
    from ..bridge.headless import Headless

    return Headless(comfyui, flags)
