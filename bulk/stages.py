"""A workflow cut into three, for machines that each do a part: the student drafts, the oracle judges, the teacher improves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .workflow import BETTER, EXPLORE, JUDGE, SAMPLER, STUDENT, Ends, Graph, ends, of_class

GIVEN = "ApprenticeDrawGiven"
DRAFTS, PICTURES, VERDICT = "drafts", "pictures", "verdict"
Expand = Callable[[Mapping[str, Any], str], tuple[Graph, Sequence[Any]]]
"""What a node that expands stands for: its inputs and a prefix, to nodes and its outputs' links."""
RunStage = Callable[[Graph, Mapping[str, Sequence[Any]], Mapping[str, Any]], Mapping[str, list[Any]]]
"""Runs a graph: what is wanted by name (links), what is given by name; see ``bridge.headless.Headless.run``."""


@dataclass(frozen=True)
class Cut:
    """Where a workflow is cut.

    Attributes:
        graph: All single nodes.
        drafts, pictures: Links to the student's latents and to their pictures.
        verdict: Link to the judge's verdict.
        ends: Where pictures and verdict come out in the end; None where there is no teacher.
    """

    graph: Graph
    drafts: list[Any]
    pictures: list[Any]
    verdict: list[Any]
    ends: Ends | None

    @classmethod
    def of(cls, graph: Graph, expand: Expand) -> Cut:
        """The workflow of one batch, cut.

        Raises:
            ValueError: It can't be: it explores, where drafts and verdicts are made together, or remembers from batch to batch.
        """
        graph = copy.deepcopy(graph)
        for key in of_class(graph, SAMPLER):
            nodes, outputs = expand(graph.pop(key)["inputs"], f"{key}.")
            graph |= nodes
            for node in graph.values():
                links = {name: outputs[value[1]] for name, value in node["inputs"].items() if _to(value, key)}
                node["inputs"] |= {name: list(link) for name, link in links.items()}
        judges = of_class(graph, JUDGE)
        if of_class(graph, EXPLORE) or len(judges) != 1:
            raise ValueError("Explore drafts and judges in turns, so it can't be shared out: leave --ray out, or explore at 0.")
        judge = graph[judges[0]]["inputs"]
        if judge.get("threshold") == "running":
            raise ValueError("'running' learns from batch to batch, so it can't be shared out: leave --ray out, or take another.")
        drafts = judge.get("drafts") or [of_class(graph, STUDENT)[0], 0]
        return cls(graph, drafts, judge["images"], [judges[0], 0], ends(graph) if of_class(graph, BETTER) else None)

    def draw(self, student: RunStage, judge: RunStage, teacher: RunStage) -> tuple[Any, Any]:
        """Pictures [B, H, W, 3] and verdict of the batch; the teacher is asked where something was rejected."""
        made = student(self.graph, {DRAFTS: self.drafts, PICTURES: self.pictures}, {})
        given = {DRAFTS: made[DRAFTS][0], PICTURES: made[PICTURES][0]}
        given |= {VERDICT: judge(self._after(DRAFTS, PICTURES), {VERDICT: self.verdict}, given)[VERDICT][0]}
        if self.ends is None or not given[VERDICT].rejected:
            return given[PICTURES], given[VERDICT]
        wanted = {PICTURES: self.ends.pictures, VERDICT: self.ends.verdict}
        out = teacher(self._after(DRAFTS, PICTURES, VERDICT), wanted, given)
        return out[PICTURES][0], out[VERDICT][0]

    def _after(self, *names: str) -> Graph:
        """The workflow with these values given from outside."""
        graph, links = copy.deepcopy(self.graph), {DRAFTS: self.drafts, PICTURES: self.pictures, VERDICT: self.verdict}
        for node in graph.values():
            for name in names:
                node["inputs"] |= {key: [_name(name), 0] for key, value in node["inputs"].items() if value == links[name]}
        return graph | {_name(name): {"class_type": GIVEN, "inputs": {"name": name}} for name in names}


def _name(name: str) -> str:
    return f"given {name}"


def _to(value: Any, key: str) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] == key
