"""A workflow in API format, made to draw batch after batch: other prompts, another seed, another policy.

No ComfyUI is needed for it: a workflow is a table of nodes, each with a class and inputs, and an input is a value or a link.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..files import UnreadableFile, read_json
from .items import Item

Graph = dict[str, dict[str, Any]]
Link = list[Any]  # [node, output]

SAMPLER, JUDGE, EXPLORE, BETTER = "ApprenticeSampler", "ApprenticeJudge", "ApprenticeExplore", "ApprenticeKeepBetter"
STUDENT, TEACHER, PROMPTS, CALIBRATION = (
    "ApprenticeStudentSampler", "ApprenticeTeacher", "ApprenticePrompts", "ApprenticeLoadCalibration",
)  # fmt: skip
_ENDS = ((SAMPLER, 1, 2), (BETTER, 1, 2), (EXPLORE, 1, 2), (JUDGE, -1, 0))  # who has the last word; outputs of pictures, verdict
_ENCODERS = ("CLIPTextEncode", "ApprenticeTextEncode")
_SEVERAL = "The workflow has {} nodes '{}'; 'apprentice draw' takes one with a single one."
OURS = "apprentice draw: "  # how nodes are called that are put in


def read_workflow(path: Path) -> Graph:
    """A workflow in API format.

    Raises:
        UnreadableFile: It is something else.
    """
    graph = read_json(path, "export it again")
    nodes = list(graph.values()) if isinstance(graph, dict) and "nodes" not in graph else [None]
    if not all(isinstance(node, dict) and isinstance(node.get("inputs"), dict) for node in nodes):
        raise UnreadableFile(f"'{path.name}' is no workflow in API format; in ComfyUI choose Workflow > Export (API).")
    return graph


def is_link(value: Any, graph: Graph) -> bool:
    """Whether an input's value is a link to a node of the graph."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in graph


def upstream(graph: Graph, *starts: Any) -> Iterator[str]:
    """The nodes that links lead back to, nearest first."""
    waiting, seen = [link[0] for link in starts if is_link(link, graph)], set[str]()
    while waiting:
        key = waiting.pop(0)
        if key not in seen:
            seen.add(key)
            yield key
            waiting += [value[0] for value in graph[key]["inputs"].values() if is_link(value, graph)]


def of_class(graph: Graph, name: str) -> list[str]:
    """The nodes of a class."""
    return [key for key, node in graph.items() if node.get("class_type") == name]


@dataclass(frozen=True)
class Ends:
    """Where pictures and verdict come out."""

    pictures: Link
    verdict: Link


def ends(graph: Graph) -> Ends:
    """The one node that has the last word.

    Raises:
        ValueError: There is none, or there are several.
    """
    for name, pictures, verdict in _ENDS:
        found = of_class(graph, name)
        if len(found) > 1:
            raise ValueError(_SEVERAL.format(len(found), name))
        if found:
            at = [found[0], pictures] if pictures >= 0 else graph[found[0]]["inputs"].get("images")
            if not is_link(at, graph):
                raise ValueError("No pictures are connected to the workflow's Judge.")
            return Ends(list(at), [found[0], verdict])
    raise ValueError(
        "The workflow has no node that gives a verdict: use one with Apprentice Sampler, or Judge."
    )


@dataclass(frozen=True)
class Policy:
    """What decides who goes to the teacher, where it is another than the workflow's; None: as the workflow has it."""

    threshold: str | None = None
    value: float | None = None
    calibration: str | None = None
    explore: float | None = None


class Fills(Protocol):
    """What tells the workflow of a batch."""

    def fill(self, part: Sequence[Item], seed: int) -> Graph:
        """The workflow that draws these pictures with this seed."""


class Template:
    """A workflow that draws any batch.

    Args:
        graph: It stays as it is.
        batch: Pictures at a time.

    Raises:
        ValueError: Its prompts, latents or seed can't be found, or its nodes can't do what the policy wants.
    """

    def __init__(self, graph: Graph, batch: int, policy: Policy) -> None:
        self.graph = copy.deepcopy(graph)
        self.ends = ends(graph)
        self.batch = batch
        self._drawer = self._only(SAMPLER, STUDENT, EXPLORE)
        self._prompts = self._prompted()
        self._set_batch()
        self._set_policy(policy)

    def _only(self, *names: str) -> str:
        """The first of these classes' nodes.

        Raises:
            ValueError: There are several, or none.
        """
        for name in names:
            found = of_class(self.graph, name)
            if len(found) > 1:
                raise ValueError(_SEVERAL.format(len(found), name))
            if found:
                return found[0]
        raise ValueError("The workflow has no Apprentice Sampler, Student Sampler or Explore, so nobody knows its seed.")

    # ------------------------------------------------------------------------------------------------- prompts

    def _judges(self) -> list[dict[str, Any]]:
        """Inputs of the nodes that are told the prompt."""
        return [node["inputs"] for node in self.graph.values() if node.get("class_type") in (SAMPLER, JUDGE, EXPLORE)]

    def _prompted(self) -> str:
        """The Prompts node of the workflow, or one that is put in the place of its text encoder."""
        told = [inputs.get("prompt") for inputs in self._judges()]
        before = {key for link in told for key in upstream(self.graph, link) if self.graph[key].get("class_type") == PROMPTS}
        if len(before) == 1:
            return before.pop()
        encoder = self._encoder(told)
        name = f"{OURS}prompts"
        self.graph[name] = {"class_type": PROMPTS, "inputs": {"clip": self.graph[encoder]["inputs"].get("clip"), "text": ""}}
        for node in self.graph.values():
            node["inputs"] |= {key: [name, 0] for key, value in node["inputs"].items() if value == [encoder, 0]}
        for inputs in self._judges():
            inputs["prompt"] = [name, 1]
        return name

    def _encoder(self, told: Sequence[Any]) -> str:
        """The stock text encoder of what the oracle is told too, or the only one before ``positive``.

        Raises:
            ValueError: There is none such.
        """
        inputs = self.graph[self._drawer]["inputs"]
        sources = [inputs.get("positive")] if "positive" in inputs else [v for k, v in inputs.items() if k.startswith("source_")]
        found = [key for key in upstream(self.graph, *sources) if self.graph[key].get("class_type") in _ENCODERS]
        same = [key for key in found if self.graph[key]["inputs"].get("text") in told]
        if len(same) == 1 or len(found) == 1:
            return (same or found)[0]
        raise ValueError(
            "The workflow's prompt can't be told from its other texts: connect Prompts (one a picture) to 'positive' and to the "
            "oracle's 'prompt', and export it again."
        )

    # ------------------------------------------------------------------------------------- batch, seed, policy

    def _set_batch(self) -> None:
        """As many latents as pictures: by the empty latent's own number, or by repetition."""
        inputs = self.graph[self._drawer]["inputs"]
        latent = inputs.get("latent_image")
        if not is_link(latent, self.graph):
            raise ValueError("Nothing is connected to 'latent_image' of the workflow's sampler.")
        sized = [key for key in upstream(self.graph, latent) if "batch_size" in self.graph[key]["inputs"]]
        self._sized = sized[0] if sized else ""
        if not sized:
            self._sized = f"{OURS}batch"
            self.graph[self._sized] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": latent, "amount": self.batch}}
            inputs["latent_image"] = [self._sized, 0]

    def _set_policy(self, policy: Policy) -> None:
        """Raises: ValueError: The workflow has no node for it."""
        wanted = {key: value for key, value in vars(policy).items() if value is not None}
        if not wanted:
            return
        nodes = of_class(self.graph, SAMPLER) or of_class(self.graph, JUDGE)
        if not nodes or ("explore" in wanted and self.graph[nodes[0]]["class_type"] != SAMPLER):
            raise ValueError(
                f"The workflow has no node that takes {', '.join('--' + key for key in wanted)}: use one with Apprentice Sampler."
            )
        if policy.calibration is not None:
            name = f"{OURS}calibration"
            self.graph[name] = {"class_type": CALIBRATION, "inputs": {"name": policy.calibration}}
            wanted["calibration"] = [name, 0]
        self.graph[nodes[0]]["inputs"] |= wanted

    def fill(self, part: Sequence[Item], seed: int) -> Graph:
        """See ``Fills``."""
        return self.filled([item.prompt for item in part], seed)

    def filled(self, prompts: Sequence[str], seed: int) -> Graph:
        """The workflow that draws these prompts with this seed."""
        graph = copy.deepcopy(self.graph)
        size = "amount" if self._sized.startswith(OURS) else "batch_size"
        graph[self._sized]["inputs"][size] = len(prompts)
        graph[self._prompts]["inputs"]["text"] = "\n".join(prompts)
        self._seed(graph, seed)
        return graph

    def _seed(self, graph: Graph, seed: int) -> None:
        """The drawer's seed, and the teacher's as far from it as before; a NOISE that is connected has its own."""
        drawer = graph[self._drawer]["inputs"]
        noises = [key for key in upstream(graph, drawer.get("noise")) if "noise_seed" in graph[key]["inputs"]]
        owner, name = (graph[noises[0]]["inputs"], "noise_seed") if noises else (drawer, "seed")
        source = owner.get(name)
        if is_link(source, graph):  # a number that several nodes share
            shared = graph[source[0]]["inputs"]
            key = next((key for key, value in shared.items() if isinstance(value, int) and not isinstance(value, bool)), None)
            if key is None:
                raise ValueError("The sampler's seed comes from a node without a number: type it into the sampler instead.")
            shared[key] = seed
            return
        moved = seed - int(source or 0)
        owner[name] = seed
        for key in of_class(graph, TEACHER):
            inputs = graph[key]["inputs"]
            if isinstance(inputs.get("seed"), int):
                inputs["seed"] = (inputs["seed"] + moved) % 2**64
