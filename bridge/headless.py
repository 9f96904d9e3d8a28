"""ComfyUI without its server: workflows run in this process, and their values are taken out by name."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from os import environ
from pathlib import Path
from typing import Any, ClassVar

from ..bulk.stages import GIVEN
from ..bulk.workflow import Graph, upstream
from .entering import enter

KEEP = "ApprenticeDrawKeep"  # what takes a value out, as GIVEN puts one in; both are known in this process alone


def home(given: Path | None = None) -> Path:
    """The folder of ComfyUI: as given, else ``$COMFYUI_PATH``, else the one that the pack is installed in.

    Raises:
        ValueError: There is none.
    """
    pack = Path(__file__).resolve().parents[1]
    asked = [given, Path(environ["COMFYUI_PATH"]) if environ.get("COMFYUI_PATH") else None, pack.parents[1]]
    for folder in asked[:1] if given else asked[1:]:
        if folder is not None and (folder / "comfy").is_dir() and (folder / "nodes.py").is_file():
            return folder.resolve()
    where = f"There is no ComfyUI in {given}" if given else "No ComfyUI is found"
    raise ValueError(f"{where}: give its folder with --comfyui, or set COMFYUI_PATH.")


class NodeError(RuntimeError):
    """A workflow was refused, or a node of it failed; the text is what an artist would see."""


class Interrupted(KeyboardInterrupt):
    """Somebody stopped it, within a step."""


class _Keep:
    """An output node that keeps what reaches it, as a list."""

    INPUT_TYPES: Any = classmethod(lambda cls: {"required": {"name": ("STRING", {})}, "optional": {"value": ("*",)}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE, INPUT_IS_LIST = (), "keep", "Apprentice", True, True
    VALIDATE_INPUTS: Any = classmethod(lambda cls, input_types: True)
    IS_CHANGED: Any = classmethod(lambda cls, **_: float("nan"))  # what is served from the cache must be kept again
    kept: ClassVar[dict[str, list[Any]]] = {}

    def keep(self, name: list[str], value: list[Any] | None = None) -> tuple[()]:
        self.kept[name[0]] = value or []
        return ()


class _Given:
    """A node that gives what it is handed from outside the graph."""

    INPUT_TYPES: Any = classmethod(lambda cls: {"required": {"name": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "give", "Apprentice"
    IS_CHANGED: Any = classmethod(lambda cls, **_: float("nan"))
    given: ClassVar[dict[str, Any]] = {}

    def give(self, name: str) -> tuple[Any]:
        return (self.given[name],)


class Headless:
    """A ComfyUI in this process with all its nodes, which keeps models between workflows as the server does.

    Args:
        folder: Of ComfyUI; see ``home``.
        flags: Of its command line, such as --lowvram or --extra-model-paths-config FILE.
        packs: Whether other packs of its custom_nodes are loaded, too.
    """

    def __init__(self, folder: Path, flags: Sequence[str] = (), packs: bool = True) -> None:
        import torch

        enter(folder, *flags, cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()))
        logging.getLogger().setLevel(logging.WARNING)
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        import comfy.utils
        import execution
        import server

        import nodes

        self._server = server.PromptServer(self._loop)
        self._server.send_sync = self._hear  # type: ignore[method-assign]
        self._loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=packs, init_api_nodes=False))
        self._loop.run_until_complete(_register())
        nodes.NODE_CLASS_MAPPINGS |= {KEEP: _Keep, GIVEN: _Given}
        self._executor = execution.PromptExecutor(
            self._server, execution.CacheType.CLASSIC, {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        )
        self.seen: list[str] = []  # ids of the nodes that the last workflow ran
        self.progress: Callable[[int, int], object] = lambda _done, _total: None  # of the node that runs
        comfy.utils.set_progress_bar_global_hook(self._step)

    def _hear(self, event: str, data: Any, _client: Any = None) -> None:
        if event == "executing" and isinstance(data, dict) and data.get("node"):
            self.seen.append(data["node"])

    def _step(self, done: int, total: int, *_: Any, **__: Any) -> None:
        """Told of every step, from which ComfyUI raises its interruption."""
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()
        self.progress(done, total)

    def interrupt(self) -> None:
        """Stop the workflow that runs, within a step; for signal handlers."""
        import comfy.model_management

        comfy.model_management.interrupt_current_processing()

    def run(
        self, graph: Graph, wanted: Mapping[str, Sequence[Any]], given: Mapping[str, Any] | None = None
    ) -> dict[str, list[Any]]:
        """Run what leads to ``wanted``, and nothing else of the graph; its values by name, each a list as nodes pass them.

        Args:
            wanted: Links [node, output] by name.
            given: Values of the graph's nodes of class ``GIVEN``, by their names.

        Raises:
            NodeError: ComfyUI refused the workflow, or a node failed.
            Interrupted: Somebody stopped it.
        """
        import execution

        kept = {
            f"keep {name}": {"class_type": KEEP, "inputs": {"name": name, "value": list(link)}} for name, link in wanted.items()
        }
        needed = {key: graph[key] for key in upstream(graph, *wanted.values())}  # output nodes beside them are left out
        prompt, number = {**needed, **kept}, uuid.uuid4().hex
        valid, error, outputs, node_errors = self._loop.run_until_complete(execution.validate_prompt(number, prompt, None))
        if not valid or node_errors:
            raise NodeError(_refusal(error, node_errors))
        _Keep.kept.clear()
        _Given.given = dict(given or {})
        self.seen.clear()
        self._executor.execute(prompt, number, {"client_id": "apprentice"}, outputs)
        for kind, data in self._executor.status_messages:
            if kind == "execution_interrupted":
                raise Interrupted
            if kind == "execution_error":
                raise NodeError(f"{data['node_type']}: {str(data['exception_message']).strip()}")
        return dict(_Keep.kept)


async def _register() -> None:
    """The pack's own nodes, as this process imports them: what custom_nodes may hold is another copy, with types of its own."""
    from comfyui_apprentice import comfy_entrypoint

    import nodes

    extension = await comfy_entrypoint()
    for node in await extension.get_node_list():
        nodes.NODE_CLASS_MAPPINGS[node.define_schema().node_id] = node


def _refusal(error: Any, node_errors: Mapping[str, Any]) -> str:
    """ComfyUI's sentences about a graph that it won't run."""
    details = [
        f"{node['class_type']}: {' '.join(part for part in (each['message'], each['details']) if part)}"
        for node in (node_errors or {}).values() for each in node["errors"]
    ]  # fmt: skip
    general = error.get("message", "") if isinstance(error, dict) else str(error or "")
    return "ComfyUI refuses the workflow: " + ("; ".join(dict.fromkeys(details)) or general)
