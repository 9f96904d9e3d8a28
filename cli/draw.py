"""``apprentice draw``: prompts in, pictures with verdicts out; the same nodes as in the graph, over night."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .running import stop_signals, told_in_words

if TYPE_CHECKING:
    from ..bulk.items import Item
    from ..bulk.job import Drawn, Job
    from ..bulk.manifest import Manifest
    from ..bulk.workflow import Fills


_AS_THEY_STAND = "leave --workflow, --count, --seed, --batch, --threshold, --value, --calibration and --explore out"


def draw(
    prompts: Annotated[
        Path, typer.Argument(help="A .txt, one prompt a line; a .csv or .jsonl with captions; a folder of workflows (API).")
    ],
    out: Annotated[Path, typer.Option(help="A folder for the pictures; a job that was stopped goes on in it.")],
    workflow: Annotated[
        Path | None, typer.Option(help="Your workflow in API format: your models, oracle and gate. Left out: the tiny world.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures a prompt.")] = 1,
    limit: Annotated[int, typer.Option(min=0, help="Only the first so many prompts; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Decides all noise, with the number of the picture.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 8,
    threshold: Annotated[str | None, typer.Option(help="How the gate decides, such as percentile; as the workflow says.")] = None,
    value: Annotated[float | None, typer.Option(help="The gate's number; as the workflow says.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Name of a calibration; as the workflow says.")] = None,
    explore: Annotated[float | None, typer.Option(min=0, help="Evaluations a picture for Explore; 0: the gate.")] = None,
    sheet: Annotated[int, typer.Option(min=0, help="Pictures of a contact sheet; 0 for no sheets.")] = 64,
    parquet: Annotated[bool, typer.Option("--parquet", help="The manifest as Parquet, too, in the end.")] = False,
    also: Annotated[
        str | None, typer.Option(help="An object store that gets all of it, too: s3://bucket/night, gs://…; what fsspec knows.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="What an hour of this machine costs, for the bill.")] = None,
    comfyui: Annotated[
        list[str] | None,
        typer.Option(help="ComfyUI's folder, $COMFYUI_PATH; or the address of one that runs, http://…, once for each."),
    ] = None,
    flags: Annotated[str, typer.Option(help="ComfyUI's own options, such as '--lowvram'.")] = "",
    ray: Annotated[str | None, typer.Option(help="Draw on Ray's workers: local, auto, or a cluster's address.")] = None,
    workers: Annotated[str, typer.Option(help="With --ray: at most so many, and each one's part of a GPU.")] = "",
) -> None:
    """Draw many prompts: the student drafts, the oracle judges, the teacher improves the weak ones.

    A batch is written, each picture with its verdict in it and a line in manifest.jsonl, while the next one is drawn. Ctrl-C
    stops; the same command goes on.
    """
    from ..bulk.folder import Folder
    from ..bulk.items import read_items
    from ..bulk.job import Job
    from ..bulk.manifest import Manifest
    from ..bulk.mirror import Mirror
    from ..bulk.workflow import Policy, Template, read_workflow

    with told_in_words():
        policy = Policy(threshold, value, calibration, explore)
        template: Fills
        if prompts.is_dir():
            if workflow or (count, seed, batch, policy) != (1, 0, 8, Policy()):
                raise ValueError(f"The workflows in {prompts} are drawn as they stand: {_AS_THEY_STAND}.")
            template = Folder(prompts, Template(tiny_world(), 1, Policy()), limit)
            items, facts = template.items, template.facts
        else:
            items = read_items(prompts, count, limit)
            graph = tiny_world() if workflow is None else read_workflow(workflow)
            template, texts = Template(graph, batch, policy), [item.prompt for item in items]
            facts = {"workflow": graph, "policy": vars(policy), "prompts": texts, "seed": seed, "batch": batch}
        mirror = Mirror(also, out, partial(typer.echo, err=True)) if also else None
        if mirror:
            mirror.fetch(sheet)
        manifest = Manifest(out, facts)
        with manifest.held(), mirror.kept(manifest) if mirror else nullcontext(lambda: None) as kept:
            job = Job(items, batch, seed, sheet)
            _run(job, manifest, price, lambda: _engine(template, comfyui or [], flags, ray, workers), kept)
            if parquet:
                typer.echo(f"{manifest.as_table()}")
        if mirror and mirror.late:
            raise ValueError(f"{len(mirror.late)} files are not in {also} yet; they are in {out}: the same command uploads them.")


def tiny_world() -> dict[str, Any]:
    """The built-in student, oracle and teacher, as Apprentice Sampler wires them."""
    sampler = {
        "student": ["world", 1], "teacher": ["world", 0], "vae": ["world", 3], "oracle": ["world", 4],
        "positive": ["positive", 0], "negative": ["negative", 0], "prompt": ["positive", 1], "latent_image": ["latent", 0],
        "seed": 0, "preset": "tiny-world", "steps": 2, "cfg": 1.0, "denoise": 1.0,
        "threshold": "worst share", "value": 0.3, "strategy": "refine", "rollback": 0.7,
        "teacher_steps": 9, "teacher_cfg": 2.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "margin": 0.0,
    }  # fmt: skip
    return {
        "world": {"class_type": "ApprenticeTinyWorld", "inputs": {"student": "consistency"}},
        "positive": {"class_type": "ApprenticePrompts", "inputs": {"clip": ["world", 2], "text": ""}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["world", 2], "text": ""}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sampler": {"class_type": "ApprenticeSampler", "inputs": sampler},
    }


@dataclass(frozen=True)
class Engine:
    """What draws, here or elsewhere.

    Attributes:
        draw: See ``bulk.job.Draw``.
        interrupt: Stops what is being drawn, as soon as may be.
        close: Sends away who works elsewhere.
        at_once: Batches that it draws at a time.
    """

    draw: Callable[[Sequence[Item], int], Drawn]
    interrupt: Callable[[], object] = lambda: None
    close: Callable[[], object] = lambda: None
    at_once: int = 1


def _engine(template: Fills, comfyui: Sequence[str], flags: str, ray: str | None, workers: str) -> Engine:
    """Raises: ValueError: There is no ComfyUI, or no Ray, or options contradict each other."""
    from ..bridge.headless import Headless, home

    urls = [each for each in comfyui if each.startswith(("http://", "https://"))]
    if urls:
        from ..fleet.comfyui_workers import ComfyUILine

        if len(urls) < len(comfyui) or ray is not None or flags:
            raise ValueError("With addresses of running ComfyUIs leave out its folder, --ray and --flags: they have their own.")
        there = ComfyUILine(urls, template)
        return Engine(there.draw, there.interrupt, at_once=there.at_once)
    if len(comfyui) > 1:
        raise ValueError(f"There is one ComfyUI to start here, not {len(comfyui)}: give one folder, or addresses with http://.")
    folder = home(Path(comfyui[0]) if comfyui else None)
    if ray is None:
        here = Headless(folder, flags.split())
        return Engine(_drawer(here, template), here.interrupt)
    import torch

    from ..fleet.ray_pools import RayLine, comfyui_engine, read_shares

    shares = read_shares(workers, torch.cuda.is_available())
    line = RayLine(ray, template, shares, partial(comfyui_engine, folder, flags.split()))
    return Engine(line.draw, close=line.close, at_once=line.at_once)


def _run(
    job: Job, manifest: Manifest, price: float | None, start: Callable[[], Engine], kept: Callable[[], None] = lambda: None
) -> None:
    """Raises: ValueError: Nobody can draw, or not this workflow."""
    from ..bridge.headless import Interrupted
    from ..bulk.job import PictureError, run

    if all(item.number in manifest.records for item in job.items):
        typer.echo(_summary(manifest, len(job.items)))
        return
    engine, begun, text = start(), time.monotonic(), ""
    shown: Any = typer.progressbar(
        length=len(job.items), label="Drawing", show_eta=True, file=sys.stderr, item_show_func=lambda _: text
    )
    with stop_signals(engine.interrupt) as stopped, shown as bar:

        def progress(done: int, total: int, cost: float) -> None:
            nonlocal text
            text = "" if math.isnan(cost) else f"{cost:.3g} evaluations a picture{_bill(begun, price)}"
            bar.update(done - bar.pos)
            kept()

        try:
            finished = run(job, engine.draw, manifest, progress, stopped, engine.at_once)
        except Interrupted:
            finished = False
        except PictureError as error:
            raise ValueError(f"{error} ({len(manifest.records)} of {len(job.items)} pictures are done and stay.)") from error
        finally:
            engine.close()
    typer.echo(_summary(manifest, len(job.items)))
    if not finished:
        typer.echo("Stopped; the same command goes on.", err=True)
        raise typer.Exit(130)


def _drawer(engine: Any, template: Fills) -> Callable[[Sequence[Item], int], Drawn]:
    """Draws a batch by ComfyUI's nodes."""
    from ..bridge.headless import NodeError
    from ..bulk.job import Drawn, PictureError
    from ..bulk.workflow import ends

    def drawn(part: Sequence[Item], seed: int) -> Drawn:
        graph = template.fill(part, seed)
        end = ends(graph)
        try:
            values = engine.run(graph, {"pictures": end.pictures, "verdict": end.verdict})
        except NodeError as error:
            raise PictureError(str(error)) from error
        return Drawn(values["pictures"][0], values["verdict"][0], graph)

    return drawn


def _bill(begun: float, price: float | None) -> str:
    return "" if price is None else f", {price * (time.monotonic() - begun) / 3600:.2f} spent"


def _summary(manifest: Manifest, total: int) -> str:
    """What there is, in a sentence or two."""
    from ..bulk.job import mean_cost
    from ..bulk.manifest import FAILED

    words: dict[str, int] = {}
    for record in manifest.records.values():
        words[record.decision] = words.get(record.decision, 0) + 1
    counts = ", ".join(f"{count} {word}" for word, count in sorted(words.items()))
    failed = f" See 'error' in {manifest.folder / 'manifest.jsonl'}." if words.get(FAILED) else ""
    cost = mean_cost(manifest)
    evaluations = "" if math.isnan(cost) else f"; {cost:.4g} network evaluations a picture"
    return f"{manifest.folder}: {len(manifest.records):,} of {total:,} pictures ({counts or 'none'}){evaluations}.{failed}"
