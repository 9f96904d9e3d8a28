"""``apprentice calibrate``: the Calibrate node from a terminal, in a ComfyUI that is running."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bulk.server import NoAnswerError, Server
from ..bulk.workflow import read_workflow, upstream
from ..files import reading
from ..gate.calibrate import BUNDLED, read_prompts
from .running import stop_signals

NODE, STOPPED = "ApprenticeCalibrate", "Stopped; the same command goes on where it was."
_POLL = 1.0  # seconds between two looks at the history


def calibrate(
    name: Annotated[str, typer.Argument(help="Name of the calibration: models/calibrations/NAME.json of that ComfyUI.")],
    prompts: Annotated[Path, typer.Option(help="A .txt, one prompt a line, or a .csv with a column caption.")] = BUNDLED,
    workflow: Annotated[
        Path | None, typer.Option(help="A workflow in API format with a Calibrate node: your student, oracle and schedule.")
    ] = None,
    drafts_per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Two or more give every prompt a baseline; 1, or what the workflow says.")
    ] = None,
    max_prompts: Annotated[int, typer.Option(min=0, help="Only the first so many prompts; 0 for all.")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Drafts at a time; 8, or what the workflow says.")] = None,
    teacher: Annotated[bool, typer.Option(help="Without a workflow: let the tiny world's teacher answer every draft.")] = False,
    url: Annotated[str, typer.Option(help="Where ComfyUI runs.")] = "http://127.0.0.1:8188",
    here: Annotated[bool, typer.Option("--here", help="In a ComfyUI of this command's own instead, as draw does.")] = False,
) -> None:
    """Measure how a student scores. Ctrl-C stops it; the same command goes on where it was.

    Without --workflow the tiny world's student is measured. For your own checkpoint, wire its loader and an oracle to a
    Calibrate node, export the workflow (API), and hand it in: what is given here replaces the node's own settings.
    """
    changes: dict[str, Any] = {"name": name, "max_prompts": max_prompts}
    changes |= {"drafts_per_prompt": drafts_per_prompt} if drafts_per_prompt else {}
    changes |= {"batch_size": batch_size} if batch_size else {}
    try:
        changes["text"] = "\n".join(read_prompts(prompts))
        graph = read_graph(workflow, changes) if workflow else tiny_world(changes, teacher)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    try:
        typer.echo(_calibrated_here(graph) if here else _Calibrating(url).run(graph))
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


def _calibrated_here(graph: dict[str, Any]) -> str:
    """Run a graph in this process, and return the Calibrate node's report.

    Raises:
        ValueError: There is no ComfyUI, or it refused or failed; the message is ComfyUI's.
    """
    from ..bridge.headless import Headless, Interrupted, NodeError, home

    engine, node = Headless(home()), next(key for key, node in graph.items() if node["class_type"] == NODE)
    with stop_signals(engine.interrupt), typer.progressbar(length=1000, label="Calibrating", show_eta=True) as bar:
        engine.progress = lambda done, total: bar.update(max(0, round(1000 * done / max(total, 1)) - bar.pos))
        try:
            return str(engine.run(graph, {"report": [node, 1]})["report"][0])
        except Interrupted:
            raise ValueError(STOPPED) from None
        except NodeError as error:
            raise ValueError(str(error)) from error


def tiny_world(changes: dict[str, Any], teacher: bool) -> dict[str, Any]:
    """The graph that measures the built-in student."""
    inputs: dict[str, Any] = {
        "model": ["world", 1], "clip": ["world", 2], "vae": ["world", 3], "oracle": ["world", 4], "prompts": "bundled",
        "drafts_per_prompt": 1, "batch_size": 8, "width": 64, "height": 64, "first_seed": 0, "preset": "tiny-world", "steps": 0,
        "cfg": 1.0, **({"teacher": ["world", 0]} if teacher else {}), **changes,
    }  # fmt: skip
    return {
        "world": {"class_type": "ApprenticeTinyWorld", "inputs": {"student": "consistency"}},
        "calibrate": {"class_type": NODE, "inputs": inputs},
    }


def read_graph(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The graph in a workflow file, with the Calibrate node's settings replaced.

    Raises:
        UnreadableFile: It is something else.
    """
    with reading(path.name, "export it again"):
        return _with_changes(read_workflow(path), changes)


def _with_changes(graph: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The graph with the Calibrate node's settings replaced, and without the outputs that don't need that node."""
    nodes = [key for key, node in graph.items() if node.get("class_type") == NODE]
    if len(nodes) != 1:
        raise ValueError(f"The workflow has {len(nodes)} Calibrate nodes; it should have one.")
    needed = set(upstream(graph, [nodes[0], 0]))
    kept = {key: {**graph[key], "inputs": dict(graph[key]["inputs"])} for key in graph if key in needed}
    next(node for node in kept.values() if node["class_type"] == NODE)["inputs"].update(changes)
    return kept


class _Calibrating(Server):
    """A ComfyUI that calibrates."""

    def run(self, graph: dict[str, Any]) -> str:
        """Run a graph, show its progress, and return the Calibrate node's report.

        Raises:
            ValueError: ComfyUI is not there, or it refused or failed; the message is ComfyUI's.
        """
        client = uuid.uuid4().hex
        try:
            prompt = self.queue(graph, client)
        except NoAnswerError as error:
            raise ValueError(f"{error} Start it, or give its address with --url.") from error
        try:
            entry = asyncio.run(self._watch(client, prompt))
        except KeyboardInterrupt:
            self.interrupt(prompt)
            raise ValueError(STOPPED) from None
        return "\n".join(text for output in entry["outputs"].values() for text in output.get("text", []))

    async def _watch(self, client: str, prompt: str) -> dict[str, Any]:
        """Wait for the end; with a progress bar where aiohttp is at hand, as it is wherever ComfyUI is installed."""
        import importlib.util

        bar = asyncio.create_task(self._show(client)) if importlib.util.find_spec("aiohttp") else None
        try:
            while (entry := await asyncio.to_thread(self.ended, prompt)) is None:
                await asyncio.sleep(_POLL)
        finally:
            if bar is not None:
                bar.cancel()
        return entry

    async def _show(self, client: str) -> None:
        from aiohttp import ClientSession, WSMsgType

        with typer.progressbar(length=1000, label="Calibrating", show_eta=True) as bar:
            async with ClientSession() as session, session.ws_connect(f"{self.url}/ws?clientId={client}") as socket:
                async for message in socket:
                    event = json.loads(message.data) if message.type == WSMsgType.TEXT else {}
                    if event.get("type") == "progress":
                        part = event["data"]["value"] / max(event["data"]["max"], 1)
                        bar.update(max(0, round(1000 * part) - bar.pos))
