"""Pictures with their prompts out of ComfyUI's own workflow templates, which come with every ComfyUI (PyPI, MIT).

A template is a workflow with thumbnails. Its prompt is what the inputs called ``positive`` go back to, through links,
conditioning nodes and a subgraph's ends; of a node that calls a service, its own prompt. Many thumbnails show something else
than their workflow's prompt says, or what went in. So a pair counts only if somebody has looked at it:
``template_pictures.json`` names its thumbnail, with a digest of that and the prompt. Pairs that a newer release has changed are
left out.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CHECKED = Path(__file__).with_suffix(".json")
WORDS = ("text", "prompt", "t5xxl", "text_g", "clip_l", "value")  # what widgets with words are called, the fullest first
WANTED = ("positive", "cond1")  # inputs of samplers and guiders; BasicGuider calls its only one "conditioning"
_FEWEST_WORDS = 4
Node = dict[str, Any]
Graph = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A picture that shows what its prompt says.

    Attributes:
        name: Of the template.
        picture: The thumbnail's file; of a moving one the first frame counts.
    """

    name: str
    prompt: str
    picture: Path

    def image(self) -> Tensor:
        """[1, H, W, 3] in 0..1."""
        with Image.open(self.picture) as opened:
            return torch.from_numpy(np.array(opened.convert("RGB"), dtype=np.float32))[None] / 255

    def digest(self) -> str:
        """Sixteen hex digits of picture and prompt."""
        return hashlib.sha256(self.picture.read_bytes() + b"\n" + self.prompt.encode()).hexdigest()[:16]


def folders(packages: Path | None = None) -> list[Path]:
    """Where templates lie: in this Python's packages, or in a folder of packages (a ComfyUI's ``site-packages``)."""
    places = [packages] if packages else [Path(place) for place in sys.path if place]
    return [folder for place in places for folder in sorted(place.glob("comfyui_workflow_templates*/templates"))]


def pairs(packages: Path | None = None) -> list[Pair]:
    """The pairs that were looked at, as far as these packages have them unchanged, by name.

    Raises:
        FileNotFoundError: There are no templates.
    """
    where = folders(packages)
    if not where:
        raise FileNotFoundError(
            "ComfyUI's workflow templates are not installed here: pip install comfyui-workflow-templates, or name a ComfyUI's "
            "site-packages."
        )
    found = []
    for name, (picture, digest) in sorted(json.loads(CHECKED.read_text(encoding="utf-8")).items()):
        workflow = next((folder / f"{name}.json" for folder in where if (folder / f"{name}.json").is_file()), None)
        file = next((folder / picture for folder in where if (folder / picture).is_file()), None)
        if workflow and file:
            prompts = prompts_of(json.loads(workflow.read_text(encoding="utf-8")))
            pair = Pair(name, prompts[0] if len(prompts) == 1 else "", file)
            found += [pair] if pair.digest() == digest else []
    return found


def prompts_of(workflow: Graph) -> list[str]:
    """The positive prompts of a workflow as the front end saves it, each once, in the order of its nodes."""
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    graphs = [workflow, *subgraphs]
    holders = {node["type"]: node for graph in graphs for node in graph["nodes"]}
    found: dict[str, None] = {}
    for graph in graphs:
        for node in _switched_on(graph):
            reader = _Reader(graph, holders.get(graph.get("id", "")))
            own = [] if any(out["type"] == "CONDITIONING" for out in node.get("outputs") or []) else reader.service_prompt(node)
            named = ("conditioning",) if node["type"] == "BasicGuider" else WANTED
            wanted = [slot for slot in node.get("inputs") or [] if slot["name"] in named and slot["type"] == "CONDITIONING"]
            for text in [*own, *(text for slot in wanted for text in reader.texts(slot.get("link")))]:
                found[" ".join(text.split())] = None
    return [text for text in found if text]


def _switched_on(graph: Graph) -> list[Node]:
    return [node for node in graph["nodes"] if node.get("mode", 0) == 0]


@dataclass
class _Reader:
    """Of one layer: a workflow, or a subgraph with the node that holds it."""

    graph: Graph
    holder: Node | None

    def origin(self, link: int | None) -> tuple[Node | None, str]:
        """The node that a link comes from; from outside of a subgraph none, and the name of what comes in there."""
        for each in self.graph["links"]:
            key, origin, slot = (each["id"], each["origin_id"], each["origin_slot"]) if isinstance(each, dict) else each[:3]
            if key == link:
                nodes = [node for node in self.graph["nodes"] if node["id"] == origin]
                return (nodes[0], "") if nodes else (None, self.graph["inputs"][slot]["name"] if "inputs" in self.graph else "")
        return None, ""

    def texts(self, link: int | None, depth: int = 0) -> Iterator[str]:
        """What a CONDITIONING link says, through nodes that only change it."""
        node, _ = self.origin(link)
        if node is None or depth > 50 or node.get("mode", 0) not in (0, 4):
            return
        if text := self.words(node):
            yield text
            return
        for slot in node.get("inputs") or []:
            if slot["type"] == "CONDITIONING" and slot["name"] != "negative":
                yield from self.texts(slot.get("link"), depth + 1)

    def words(self, node: Node) -> str:
        """What stands in a node's widget of words, or in that of the node that is connected to it; "" where it has none."""
        slots = {slot["name"]: slot for slot in node.get("inputs") or []}
        for name in WORDS:
            if name in slots and (link := slots[name].get("link")) is not None:
                other, outside = self.origin(link)
                if text := self.words(other) if other else _widget(self.holder, outside) if self.holder else "":
                    return text
            if text := _widget(node, name):
                return text
        return ""

    def service_prompt(self, node: Node) -> list[str]:
        """The prompt of a node that makes a picture by itself: the longest text of four words or more."""
        if not any(out["type"] in ("IMAGE", "VIDEO") for out in node.get("outputs") or []):
            return []
        values = node.get("widgets_values") or []
        texts = [self.words(node), *(value for value in values if isinstance(value, str))]
        return [text for text in texts if len(text.split()) >= _FEWEST_WORDS][:1]


def _widget(node: Node, name: str) -> str:
    """A widget's text by its name; where the file doesn't tell names, the first text of an encoder."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return str(values.get(name, ""))
    proxies = [proxy[1] for proxy in node.get("properties", {}).get("proxyWidgets") or []]
    names = proxies or [slot["widget"]["name"] for slot in node.get("inputs") or [] if slot.get("widget")]
    texts = [value for value in values if isinstance(value, str)]
    if name in names and proxies:
        value = values[names.index(name)] if names.index(name) < len(values) else ""
        return value if isinstance(value, str) else ""
    named = name in names or ("Encode" in node["type"] and name == WORDS[0]) or node["type"].startswith("Primitive")
    return max(texts, key=len, default="") if named else ""
