"""A real ComfyUI in a process of its own, and how tests talk to it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
import websocket
from costs import SERVERS
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]

# Generous: for a slow machine beside other work. They end what hangs, and judge nothing.
START_SECONDS = 600.0
"""Until ComfyUI answers."""
PROMPT_SECONDS = 900.0
"""Between two messages of a prompt that runs."""
ANSWER_SECONDS = 120.0
"""For an answer over HTTP."""


class GraphError(RuntimeError):
    """A prompt was refused or failed; the text is what the user would see."""


@dataclass
class Run:
    """What came of one prompt."""

    outputs: dict[str, Any]
    status: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    binaries: int = 0

    @property
    def cached(self) -> set[str]:
        """Ids of nodes that were served from the cache."""
        return {n for e in self.events if e["type"] == "execution_cached" for n in e["data"]["nodes"]}

    @property
    def executed(self) -> list[str]:
        """Ids of nodes that ran."""
        return [e["data"]["node"] for e in self.events if e["type"] == "executing" and e["data"].get("node")]


class Graph:
    """A prompt in API format, written down node by node."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def add(self, class_type: str, _id: str | None = None, **inputs: Any) -> Node:
        """Add a node; inputs that are ``Node`` or ``Out`` become links."""
        key = _id or str(len(self.nodes) + 1)
        self.nodes[key] = {"class_type": class_type, "inputs": {k: _link(v) for k, v in inputs.items()}}
        return Node(key)


@dataclass(frozen=True)
class Node:
    """A node of a ``Graph``; ``node[i]`` is its i-th output."""

    key: str

    def __getitem__(self, index: int) -> list[Any]:
        return [self.key, index]


def _link(value: Any) -> Any:
    return [value.key, 0] if isinstance(value, Node) else value


class Comfy:
    """A running ComfyUI."""

    def __init__(self, url: str, base: Path) -> None:
        self.url, self.base = url, base

    def refused(self) -> list[str]:
        """Addresses outside of this machine that something in this ComfyUI asked for."""
        found: list[str] = requests.get(f"{self.url}/apprentice_test/refused", timeout=ANSWER_SECONDS).json()
        return found

    def run(self, graph: Graph | dict[str, Any], timeout: float = PROMPT_SECONDS) -> Run:
        """Queue a prompt and wait for it.

        Raises:
            GraphError: It was refused or failed.
        """
        events, binaries, entry = self._follow(graph, timeout)
        run = Run(entry["outputs"], entry["status"], events, binaries)
        if entry["status"]["status_str"] != "success":
            raise GraphError(_message(entry["status"]))
        return run

    def _follow(self, graph: Graph | dict[str, Any], timeout: float) -> tuple[list[dict[str, Any]], int, dict[str, Any]]:
        """Queue a prompt and wait for its end: its events, how many previews came, and its history entry."""
        client = uuid.uuid4().hex
        connection = websocket.create_connection(f"{self.url.replace('http', 'ws')}/ws?clientId={client}", timeout=timeout)
        try:
            prompt = self.queue(graph, client)
            events, binaries = self._listen(connection, prompt)
        finally:
            connection.close()
        return events, binaries, self.history(prompt)

    def run_and_cancel(self, graph: Graph, value: int, layers: int = 0, total: int = 0) -> list[dict[str, Any]]:
        """Run a prompt; press cancel once its bar (of ``total``) has come to ``value``, after ``layers`` more layers; its events.

        Raises:
            AssertionError: It ended by itself.
        """
        requests.post(f"{self.url}/apprentice_test/cancel", json={"value": value, "layers": layers, "total": total},
                      timeout=ANSWER_SECONDS)  # fmt: skip
        events, _binaries, entry = self._follow(graph, PROMPT_SECONDS)
        assert _message(entry["status"]) == "interrupted", _message(entry["status"])
        return events

    def queue(self, graph: Graph | dict[str, Any], client: str = "") -> str:
        """Queue a prompt; its id.

        Raises:
            GraphError: It was refused.
        """
        prompt = graph.nodes if isinstance(graph, Graph) else graph
        body = json.dumps({"prompt": prompt, "client_id": client})  # NaN as well, as strangers' files have it
        answer = requests.post(
            f"{self.url}/prompt", body, headers={"Content-Type": "application/json"}, timeout=ANSWER_SECONDS
        )  # fmt: skip
        if answer.status_code != 200:
            raise GraphError(answer.text)
        return str(answer.json()["prompt_id"])

    def history(self, prompt: str, timeout: float = ANSWER_SECONDS) -> dict[str, Any]:
        """The history entry of a finished prompt."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = requests.get(f"{self.url}/history/{prompt}", timeout=ANSWER_SECONDS).json()
            if prompt in found:
                return dict(found[prompt])
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt} did not finish")

    def _listen(self, connection: websocket.WebSocket, prompt: str) -> tuple[list[dict[str, Any]], int]:
        events: list[dict[str, Any]] = []
        binaries = 0
        while True:
            message = connection.recv()
            if isinstance(message, bytes):
                binaries += 1
                continue
            event = json.loads(message)
            if event.get("data", {}).get("prompt_id") not in (prompt, None):
                continue
            events.append(event)
            if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                return events, binaries

    def get(self, path: str) -> Any:
        """GET, as JSON."""
        return requests.get(f"{self.url}{path}", timeout=ANSWER_SECONDS).json()

    @cached_property
    def schemas(self) -> Any:
        """``/object_info`` as it was when it was first asked for: its names, types and defaults stay, lists of files may not."""
        return self.get("/object_info")

    def counts(self) -> dict[str, int]:
        """What the test nodes counted since the last call."""
        return dict(requests.post(f"{self.url}/apprentice_test/counts", timeout=ANSWER_SECONDS).json())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What a TestSave node saved under ``name``."""
        return load_file(self.base / "output" / f"{name}.safetensors")


def _message(status: dict[str, Any]) -> str:
    for kind, data in status["messages"]:
        if kind == "execution_error":
            return f"{data['node_type']}: {data['exception_message']}"
        if kind == "execution_interrupted":
            return "interrupted"
    return str(status)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def comfyui(base: Path, *arguments: str, log: Path | None = None, python: str = sys.executable) -> Iterator[Comfy]:
    """Start ComfyUI from ``$COMFYUI_PATH`` with the pack and the test nodes; ``base`` holds its models, input and output."""
    home = Path(os.environ["COMFYUI_PATH"])
    packs = base / "custom_nodes"
    packs.mkdir(parents=True, exist_ok=True)
    for name, source in (("apprentice", ROOT), ("apprentice_tests", ROOT / "tests" / "nodepack")):
        if not (packs / name).exists():
            (packs / name).symlink_to(source, target_is_directory=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}))
    port = free_port()
    command = [
        python, str(home / "main.py"), "--cpu", "--disable-api-nodes", "--port", str(port), "--base-directory",
        str(base), "--preview-method", "latent2rgb", *arguments,
    ]  # fmt: skip
    record = log or base / "comfyui.log"
    with open(record, "w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env={"OMP_NUM_THREADS": "1", **os.environ})
        SERVERS.add(process.pid)
        try:
            yield _ready(process, f"http://127.0.0.1:{port}", base, record)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(process: subprocess.Popen[bytes], url: str, base: Path, record: Path) -> Comfy:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if requests.get(f"{url}/system_stats", timeout=5).ok:
                return Comfy(url, base)
        except requests.RequestException:
            time.sleep(0.3)
    raise RuntimeError(f"ComfyUI did not start:\n{record.read_text()[-3000:]}")


def clean(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
