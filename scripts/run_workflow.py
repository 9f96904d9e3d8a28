"""Run a workflow file in a headless ComfyUI over its HTTP API, with nothing but the standard library."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUMBERS = ("INT", "FLOAT", "BOOLEAN")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
CONTROLS = ("fixed", "increment", "decrement", "randomize")
MUTED, BYPASSED = 2, 4


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The API prompt of a workflow file as the browser saves it; a prompt is returned as it is.

    Raises:
        ValueError: It holds a node that this ComfyUI doesn't know.
    """
    if "nodes" not in workflow:
        return workflow
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: _origin(link, nodes, workflow["links"]) for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote") or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"This ComfyUI has no node '{node['type']}'; is the pack that brings it installed?")
        inputs = _widgets(node, object_info[node["type"]]["input"], node["type"].startswith("Apprentice"))
        inputs |= {slot["name"]: links[slot["link"]] for slot in node.get("inputs", []) if links.get(slot.get("link"))}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def _origin(link: list[Any], nodes: dict[int, dict[str, Any]], links: list[list[Any]]) -> list[Any] | None:
    """Where a link's value comes from, as the browser finds it: behind a muted node nothing, and through a bypassed one what is
    connected to its input of the same place, else the first, that fits the types."""
    _, origin, slot, *_, wanted = link
    node = nodes[origin]
    mode = node.get("mode", 0)
    if mode not in (MUTED, BYPASSED):
        return [str(origin), slot]
    if mode == MUTED:
        return None
    inputs, given = node.get("inputs", []), node["outputs"][slot]["type"]
    places = [i for i, item in enumerate(inputs) if _fits(item["type"], given) and _fits(item["type"], wanted)]
    exact = [i for i in places if inputs[i]["type"] == wanted]
    place = slot if slot in places else next(iter(exact or places), None)
    before = next((other for other in links if place is not None and other[0] == inputs[place].get("link")), None)
    return _origin(before, nodes, links) if before else None


def _fits(a: str, b: str) -> bool:
    return "*" in (a, b) or not {kind.lower() for kind in a.split(",")}.isdisjoint(kind.lower() for kind in b.split(","))


def _widgets(node: dict[str, Any], schema: dict[str, Any], ours: bool) -> dict[str, Any]:
    values = iter(node.get("widgets_values") or [])
    inputs: dict[str, Any] = {}
    for name, spec in {**schema.get("required", {}), **schema.get("optional", {})}.items():
        options = spec[1] if len(spec) > 1 else {}
        if not (isinstance(spec[0], list) or spec[0] in WIDGETS) or options.get("forceInput"):
            continue
        try:
            value = next(values)
        except StopIteration:
            break
        if spec[0] not in NUMBERS or not ours or isinstance(value, (int, float)):
            inputs[name] = value  # else a stray text of version 0.4.0, which web/saved_values.js drops
        if options.get("control_after_generate") or (spec[0] == "INT" and name in ("seed", "noise_seed")):
            following = list(values)
            values = iter(following[1:] if following and following[0] in CONTROLS else following)
    return inputs


class Server:
    """ComfyUI's HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        """GET, as JSON."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Queue a prompt, wait, and return its outputs by node.

        Raises:
            RuntimeError: ComfyUI refused it or it failed; the message is ComfyUI's.
        """
        body = json.dumps({"prompt": prompt, "extra_data": {}}).encode()
        request = urllib.request.Request(f"{self.url}/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                key = json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"ComfyUI refused the workflow: {error.read().decode()[:2000]}") from error
        while key not in (history := self.get(f"/history/{key}")):
            time.sleep(0.2)
        entry = history[key]
        if entry["status"]["status_str"] != "success":
            errors = [data["exception_message"] for kind, data in entry["status"]["messages"] if kind == "execution_error"]
            raise RuntimeError("; ".join(errors) or str(entry["status"]))
        return dict(entry["outputs"])


def _command(home: Path, port: int, arguments: list[str]) -> list[str]:
    import torch

    device = [] if torch.cuda.is_available() or torch.backends.mps.is_available() else ["--cpu"]
    return [sys.executable, str(home / "main.py"), "--port", str(port), "--disable-api-nodes", *device, *arguments]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def comfyui(home: Path, output: Path) -> Iterator[Server]:
    """A headless ComfyUI that saves into ``output``.

    Raises:
        RuntimeError: It did not start; the end of its log is in the message.
    """
    port = _free_port()
    output.mkdir(parents=True, exist_ok=True)
    log = output / "comfyui.log"
    with log.open("w") as sink:
        command = _command(home, port, ["--output-directory", str(output)])
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        server = Server(f"http://127.0.0.1:{port}")
        try:
            _wait(server, process, log)
            yield server
        finally:
            process.terminate()
            process.wait(30)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, urllib.error.URLError):
            server.get("/system_stats")
            return
        time.sleep(0.25)
    raise RuntimeError(f"ComfyUI did not start; the end of {log}:\n{log.read_text()[-2000:]}")


def main() -> None:
    """Run the workflow, print its texts, list its files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workflow", type=Path, nargs="?", help="a .json from the browser, or an API prompt")
    parser.add_argument("--output", type=Path, default=Path("output"), help="where pictures go")
    parser.add_argument("--serve", action="store_true", help="run ComfyUI in the foreground instead")
    parser.add_argument("--port", type=int, default=8188, help="port for --serve")
    arguments = parser.parse_args()
    home = Path(os.environ["COMFYUI_PATH"])
    if arguments.serve:
        os.execv(sys.executable, _command(home, arguments.port, ["--preview-method", "auto"]))  # pictures while they are drawn
    workflow = json.loads(arguments.workflow.read_text(encoding="utf-8"))
    with comfyui(home, arguments.output) as server:
        outputs = server.run(to_prompt(workflow, server.get("/object_info")))
    for result in outputs.values():
        print(*result.get("text", []), sep="\n")
    files = [
        arguments.output / image["subfolder"] / image["filename"]
        for result in outputs.values()
        for image in result.get("images", [])
        if image["type"] == "output"
    ]
    print(f"{len(files)} pictures saved:", *files, sep="\n  ")


if __name__ == "__main__":
    main()
