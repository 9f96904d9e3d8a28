"""What ``apprentice draw`` itself costs, and what Ray's workers gain: by an engine that sleeps, and by the tiny world.

The engine that sleeps stands for a GPU: it takes time and no CPU, so what is left is the bookkeeping, Ray, PNGs and manifest.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bridge.headless import Headless, NodeError, home
from ..bulk.items import Item
from ..bulk.job import Draw, Drawn, Job, PictureError
from ..bulk.job import run as run_job
from ..bulk.manifest import Manifest
from ..bulk.stages import DRAFTS, PICTURES, VERDICT, Cut, RunStage
from ..bulk.workflow import Fills, Graph, Policy, Template
from ..cli.draw import _drawer, tiny_world
from ..fleet.ray_pools import KINDS, RayLine, Share, comfyui_engine
from ..gate.verdict import IMPROVED, REJECTED, Judgement, Verdict
from ..world.recipe.concepts import held_out_prompts
from .figures import Claim, Figures, mean_of_seeds

BATCH = 8
REJECTED_ONES = 4  # of a batch, for the teacher


@dataclass(frozen=True)
class Sleeper:
    """An engine whose stages take seconds a picture and give pictures of noise that is a little smooth, as photographs are.

    Attributes:
        draft, judge, teacher: Seconds a picture.
        side: Of a picture, in pixels.
        rejected: Of a batch, how many the judge rejects.
    """

    draft: float
    judge: float
    teacher: float
    side: int
    rejected: int

    def run(self, graph: Graph, wanted: Mapping[str, Sequence[Any]], given: Mapping[str, Any]) -> dict[str, list[Any]]:
        """As ``bridge.headless.Headless.run``."""
        prompts = graph["words"]["inputs"]["text"].split("\n") if "words" in graph else []
        if DRAFTS in wanted:
            time.sleep(self.draft * len(prompts))
            made: dict[str, Any] = {DRAFTS: torch.zeros(len(prompts), 4, 8, 8), PICTURES: pictures(len(prompts), self.side)}
        elif PICTURES not in wanted:
            time.sleep(self.judge * len(prompts))
            rows = [Judgement(i, float(i), 0.5, i >= self.rejected, prompts[i]) for i in range(len(prompts))]
            made = {VERDICT: Verdict(tuple(rows), "none", "0" * 16, "absolute", 0.5)}
        else:
            verdict = given[VERDICT]
            time.sleep(self.teacher * len(verdict.rejected))
            rows = [replace(j, decision=IMPROVED if j.decision == REJECTED else j.decision) for j in verdict]
            made = {PICTURES: given[PICTURES], VERDICT: replace(verdict, judgements=tuple(rows))}
        return {name: [made[name]] for name in wanted}


def pictures(count: int, side: int) -> Tensor:
    """[count, side, side, 3] in 0..1: about as many bytes as PNG as a photograph."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, side // 16, side // 16, generator=generator)
    picture = F.interpolate(coarse, size=side, mode="bicubic") + 0.02 * torch.randn(1, 3, side, side, generator=generator)
    return picture.clamp(0, 1).permute(0, 2, 3, 1).expand(count, -1, -1, -1)


def in_one_process(run: RunStage, fills: Fills) -> Draw:
    """Draws single nodes by an engine here, one stage after the other."""

    def draw(part: Sequence[Item], seed: int) -> Drawn:
        graph = fills.fill(part, seed)
        try:
            return Drawn(*Cut.of(graph, lambda _inputs, _prefix: ({}, ())).draw(run, run, run), graph)
        except NodeError as error:
            raise PictureError(str(error)) from error

    return draw


def single_nodes() -> Graph:
    """Student, judge and teacher, as much of them as an engine like ``Sleeper`` looks at."""
    return {
        "words": {"class_type": "ApprenticePrompts", "inputs": {"clip": ["student", 1], "text": ""}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 1}},
        "student": {"class_type": "ApprenticeStudentSampler", "inputs": {
            "positive": ["words", 0], "latent_image": ["latent", 0], "seed": 0}},
        "seen": {"class_type": "VAEDecode", "inputs": {"samples": ["student", 0]}},
        "judge": {"class_type": "ApprenticeJudge", "inputs": {"images": ["seen", 0], "prompt": ["words", 1]}},
        "teacher": {"class_type": "ApprenticeTeacher", "inputs": {"drafts": ["student", 0], "verdict": ["judge", 0], "seed": 1}},
        "better": {"class_type": "ApprenticeKeepBetter", "inputs": {"drafts": ["seen", 0], "refined": ["teacher", 0]}},
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- measured


def seconds_of(draw: Draw, at_once: int, count: int, prompts: Sequence[str]) -> float:
    """That a job takes, from its first batch to the last line of its manifest."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Manifest(Path(folder) / "job", {})
        items = [Item(number, prompts[number % len(prompts)]) for number in range(count)]
        with manifest.held():
            begun = time.monotonic()
            run_job(Job(items, BATCH), draw, manifest, lambda *_: None, at_once=at_once)
            return time.monotonic() - begun


def overhead(draw: Draw, at_once: int, count: int, prompts: Sequence[str]) -> float:
    """Of a picture that takes a second, in a job that is long: from when its first batch is drawn to when its last is.

    So the engine's own beginning is left out, and the files of the last batch, for which nobody waits but the command.
    """
    ended: list[float] = []

    def timed(part: Sequence[Item], seed: int) -> Drawn:
        made = draw(part, seed)
        ended.append(time.monotonic())
        return made

    seconds_of(timed, at_once, count, prompts)
    return (ended[-1] - ended[0]) / (count - BATCH) - 1


@contextmanager
def workers(template: Template, each: int, make: Callable[[], Any]) -> Iterator[RayLine]:
    """So many of each kind, all there and warm."""
    line = RayLine("local", template, {kind: Share(each) for kind in KINDS}, make)
    seconds_of(line.draw, line.at_once, BATCH * 3 * each, ["glossy red heart on blue", "pizza on white"])
    yield line
    line.close()


def ratios(
    alone: Draw, template: Template, make: Callable[[], Any], count: int, repeats: int, prompts: Sequence[str],
    say: Callable[[str], None],
) -> tuple[list[float], dict[int, list[float]]]:  # fmt: skip
    """Seconds of one process, and the throughput of one and two workers of each kind over it, in turns."""
    own, found = list[float](), dict[int, list[float]]()
    for each in (1, 2):
        say(f"{each} of each kind of worker")
        with workers(template, each, make) as line:
            for _ in range(repeats):
                own.append(seconds_of(alone, 1, count, prompts))
                found.setdefault(each, []).append(own[-1] / seconds_of(line.draw, line.at_once, count, prompts))
    return own, found


def run(quick: bool = False, say: Callable[[str], None] = print) -> Figures:
    """Measure, print the table and the claims.

    Raises:
        ValueError: Ray is missing, or there is no ComfyUI.
    """
    repeats, count = (2, 16) if quick else (4, 48)
    second = Sleeper(1.0, 0.0, 0.0, 1024, 0)  # a second a picture: one stage's, so that workers don't share it
    shared = Sleeper(0.1, 0.05, 0.1, 256, REJECTED_ONES)
    prompts = [prompt.text() for prompt in held_out_prompts()]
    figures = Figures("draw", {"repeats": repeats, "pictures": count, "batch": BATCH, "overhead": asdict(second),
                               "shared": asdict(shared)})  # fmt: skip
    sleeping = Template(single_nodes(), BATCH, Policy())
    say("the overhead at a second a picture")
    begun = time.process_time()
    own = [overhead(in_one_process(second.run, sleeping), 1, count, prompts) for _ in range(repeats)]
    cpu = (time.process_time() - begun) / (repeats * count)
    with workers(sleeping, 1, partial(Sleeper, **asdict(second))) as line:
        by_ray = [overhead(line.draw, line.at_once, count, prompts) for _ in range(repeats)]
    figures.claims = {"draw_overhead": mean_of_seeds(own), "draw_ray_overhead": mean_of_seeds(by_ray)}
    figures.claims["draw_cpu_seconds"] = Claim(cpu, math.nan, math.nan)
    say("stages that workers share")
    by_stages = in_one_process(shared.run, sleeping)
    alone, gained = ratios(by_stages, sleeping, partial(Sleeper, **asdict(shared)), 2 * count, repeats, prompts, say)
    say("the tiny world")
    world, here = Template(tiny_world(), BATCH, Policy()), Headless(home(), packs=False)
    draw = _drawer(here, world)
    seconds_of(draw, 1, 2 * BATCH, prompts)
    on_cpu, gained_on_cpu = ratios(draw, world, partial(comfyui_engine, home(), []), count, repeats, prompts, say)
    for each in (1, 2):
        figures.claims[f"draw_ray_ratio_{each}"] = mean_of_seeds(gained[each])
        figures.claims[f"draw_ray_world_ratio_{each}"] = mean_of_seeds(gained_on_cpu[each])
    for what, seconds, found, pictures_ in (
        ("an engine that sleeps", alone, gained, 2 * count), ("the tiny world, on the CPU", on_cpu, gained_on_cpu, count),
    ):  # fmt: skip
        figures.rows.append({"engine": what, "one process, pictures a second": pictures_ / mean_of_seeds(seconds).value,
                             **{f"{each} of each kind, times": mean_of_seeds(found[each]).value for each in (1, 2)}})  # fmt: skip
    figures.show()
    return figures
