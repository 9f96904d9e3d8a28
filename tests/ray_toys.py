"""A small engine for Ray's workers, in the place of a ComfyUI; as a script: a job by it, for a test that kills the command.

``python ray_toys.py FOLDER LOG ADDRESS`` draws the job of ``drawn`` on the cluster at ADDRESS.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from comfyui_apprentice.benchmarks.draw import single_nodes
from comfyui_apprentice.bridge.headless import NodeError
from comfyui_apprentice.bulk.items import Item
from comfyui_apprentice.bulk.job import Draw, Job, run
from comfyui_apprentice.bulk.manifest import Manifest, Record
from comfyui_apprentice.bulk.stages import DRAFTS, PICTURES, VERDICT
from comfyui_apprentice.bulk.workflow import Graph, Policy, Template
from comfyui_apprentice.fleet.ray_pools import RayLine, Share
from drawing import greys, judged

BATCH = 3
KILLS, RAISES, IS_NAN = "kills its worker once", "raises", "is NaN"


def template() -> Template:
    """Student and judge, without a teacher."""
    nodes = single_nodes()
    return Template({key: node for key, node in nodes.items() if key not in ("teacher", "better")}, BATCH, Policy())


class Toy:
    """Draws grey by seed and place; its log has a line for every stage that was done: the stage, the seed, the process.

    Args:
        log: The file, which all workers share.
        seconds: That a stage takes.
    """

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log, self.seconds = log, seconds

    def run(self, graph: Graph, wanted: Mapping[str, Sequence[Any]], given: Mapping[str, Any]) -> dict[str, list[Any]]:
        """As ``bridge.headless.Headless.run``."""
        time.sleep(self.seconds)
        prompts, seed = graph["words"]["inputs"]["text"].split("\n"), graph["student"]["inputs"]["seed"]
        made = self._draft(prompts, seed) if DRAFTS in wanted else {VERDICT: judged(given[PICTURES], prompts, seed)}
        with self.log.open("a") as file:
            file.write(f"{'draft' if DRAFTS in wanted else 'judge'} {seed} {os.getpid()}\n")
        return {name: [made[name]] for name in wanted}

    def _draft(self, prompts: Sequence[str], seed: int) -> dict[str, Any]:
        killed = self.log.with_suffix(".killed")
        if KILLS in prompts and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if RAISES in prompts:
            raise NodeError("no tokens for it")
        pictures = greys(prompts, seed, [IS_NAN])
        return {DRAFTS: {"samples": pictures[:, 0, 0, 0]}, PICTURES: pictures}


def line(log: Path, workers: int, address: str = "local", seconds: float = 0.0) -> RayLine:
    """Workers that are students and judges at once, which saves the start of some processes."""
    made = RayLine(address, template(), {"student": Share(workers)}, partial(Toy, log, seconds))
    made.pools["judge"] = made.pools["student"]
    return made


def drawn(folder: Path, draw: Draw, at_once: int, prompts: Mapping[int, str] | None = None) -> dict[int, Record]:
    """The manifest's records of a job of twenty pictures, of which some have prompts of their own."""
    items = [Item(number, (prompts or {}).get(number, f"prompt {number}")) for number in range(20)]
    manifest = Manifest(folder, {})
    with manifest.held():
        run(Job(items, BATCH, 3), draw, manifest, lambda *_: None, at_once=at_once)
    return dict(manifest.records)


if __name__ == "__main__":
    asked = line(Path(sys.argv[2]), 1, sys.argv[3], seconds=0.2)
    drawn(Path(sys.argv[1]), asked.draw, asked.at_once)
