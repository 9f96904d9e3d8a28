"""A folder of workflows, each drawn as it stands: a picture, or as many as its own latent says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from .items import Item
from .job import PictureError
from .workflow import EXPLORE, SAMPLER, STUDENT, Fills, Graph, ends, is_link, of_class, read_workflow, upstream

_MOST = 4096  # pictures that ComfyUI's empty latents make
_SIZES = ("batch_size", "amount")  # of an empty latent, and of what repeats one


class Folder:
    """Its workflows in API format, in the order of their names.

    Args:
        folder: Every ``*.json`` in it is a workflow; one that is none is a picture that fails.
        stand_in: Draws anything, to tell whether a workflow is to blame, or the machine.
        limit: Only the first so many files; 0 for all.

    Raises:
        ValueError: There is none in it.
    """

    def __init__(self, folder: Path, stand_in: Fills, limit: int = 0) -> None:
        self.folder, self.stand_in = folder, stand_in
        files = sorted(folder.glob("*.json"))[: limit or None]
        if not files:
            raise ValueError(f"There is no workflow in {folder}: it should hold .json files, by Workflow > Export (API).")
        digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files}
        self.facts: dict[str, Any] = {"workflows": digests}
        names = [file.name for file in files for _ in range(self._pictures(file))]
        self.items = [Item(number, "", name) for number, name in enumerate(names)]

    def _pictures(self, file: Path) -> int:
        """How many it makes; one of a file that can't be read, or that asks for more than anybody draws."""
        try:
            count = pictures_of(read_workflow(file))
        except ValueError:
            return 1
        return count if count <= _MOST else 1

    def fill(self, part: Sequence[Item], seed: int) -> Graph:
        """See ``workflow.Fills``; a workflow has its own seed.

        Raises:
            PictureError: The file can't be read, or gives no verdict.
        """
        if not part[0].workflow:
            return self.stand_in.fill(part, seed)
        try:
            graph = read_workflow(self.folder / part[0].workflow)
            ends(graph)
        except (ValueError, OSError) as error:
            raise PictureError(str(error)) from error
        return graph


def pictures_of(graph: Graph) -> int:
    """How many pictures a workflow makes: by the numbers before its sampler's latent, 1 where there are none."""
    drawers = [key for name in (SAMPLER, EXPLORE, STUDENT) for key in of_class(graph, name)]
    if not drawers:
        return 1
    before = upstream(graph, graph[drawers[0]]["inputs"].get("latent_image"))
    values = [graph[key]["inputs"].get(name) for key in before for name in _SIZES]
    return prod(number for value in values if (number := _number(graph, value)) > 0)


def _number(graph: Graph, value: Any) -> int:
    """A whole number, also of a node that several share; 0 for anything else."""
    if is_link(value, graph):
        value = next((each for each in graph[value[0]]["inputs"].values() if type(each) is int), 0)
    return value if type(value) is int else 0
