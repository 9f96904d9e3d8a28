"""Prompts in ComfyUI's own executor, in this process: the pack's nodes, the stock ones, and probes, in every cache mode."""

from __future__ import annotations

import asyncio
import uuid
from types import SimpleNamespace
from typing import Any

from comfyui_apprentice.benchmarks import tiny_families as tiny

tiny.start()

import execution  # noqa: E402
from comfyui_apprentice import comfy_entrypoint  # noqa: E402
from counting import COUNTS as COUNTS  # noqa: E402
from counting import CountModel  # noqa: E402

import nodes  # noqa: E402

OURS = {node.define_schema().node_id: node for node in asyncio.run(asyncio.run(comfy_entrypoint()).get_node_list())}


class Keep:
    """An output node that keeps what reaches it."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"name": ("STRING", {})}, "optional": {"value": ("*",)}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE, INPUT_IS_LIST = (), "keep", "test", True, True
    VALIDATE_INPUTS = classmethod(lambda cls, input_types: True)
    kept: dict[str, Any] = {}

    def keep(self, name: list[str], value: Any = None) -> tuple[()]:
        self.kept[name[0]] = value
        return ()


def register(**more: Any) -> None:
    """Make the pack's nodes, the probes and ``more`` known to ComfyUI."""
    nodes.NODE_CLASS_MAPPINGS.update({**OURS, "CountModel": CountModel, "Keep": Keep, **more})


class Refused(RuntimeError):
    """A prompt was refused, or a node failed; the text is what the user would see."""


def run(prompt: dict[str, Any], cache: Any = None, **sizes: Any) -> list[str]:
    """Validate and run a prompt in API format with a new cache; the ids of nodes in the order they ran.

    Raises:
        Refused: As the class says.
    """
    ran: list[str] = []

    def sent(event: str, data: dict[str, Any], _client: Any = None) -> None:
        if event == "executing" and data["node"]:
            ran.append(data["node"])

    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=sent, sockets_metadata={})
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("id", prompt, None))
    if not valid or node_errors:
        raise Refused(str((error, node_errors)))
    told = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0, **sizes}  # the last in newer ComfyUIs
    executor = execution.PromptExecutor(server, cache or execution.CacheType.CLASSIC, told)
    executor.execute(prompt, uuid.uuid4().hex, {"client_id": "test"}, outputs)
    for kind, data in executor.status_messages:
        if kind == "execution_error":
            raise Refused(f"{data['node_type']}: {data['exception_message']}")
    return ran
