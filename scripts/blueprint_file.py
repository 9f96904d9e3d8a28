"""Subgraph blueprints as ComfyUI's front end keeps them for everybody: one node whose type is the graph within."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from workflow_file import NAMESPACE, Group, Info, Page, default_of, is_widget, place, specs, wired

INSIDE, OUTSIDE = -10, -20  # ids of a subgraph's two boundaries
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
Nodes = dict[str, dict[str, Any]]


def blueprint(name: str, graph: Any, object_info: Info, versions: Mapping[str, str]) -> dict[str, Any]:
    """The file of a graph with a boundary (``examples.blueprints``)."""
    page = Page(name, graph.note, ((Group(name, graph.columns),),))
    nodes, wires = wired(graph.nodes, object_info, versions, ())
    places, _frames = place(page, graph.nodes, object_info)
    for key, (x, y, width, height) in places.items():
        nodes[key] |= {"pos": [x, y], "size": [width, height]}
    links = [dict(zip(LINK, wire, strict=True)) for wire in wires]
    right = max(x + width for x, _, width, _ in places.values())
    entered, left = _entered(graph, nodes, links), _left(graph, nodes, links)
    inner = {
        "id": str(uuid.uuid5(NAMESPACE, f"blueprint {name}")), "version": 1, "revision": 0, "config": {}, "name": name,
        "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": INSIDE, "bounding": [-160, 80, 120, 40 + 20 * len(entered)]},
        "outputNode": {"id": OUTSIDE, "bounding": [right + 80, 80, 120, 40 + 20 * len(left)]},
        "inputs": _boundary(entered, f"{name} in", -60), "outputs": _boundary(left, f"{name} out", right + 100),
        "widgets": [], "nodes": list(nodes.values()), "groups": [], "links": links, "extra": {"workflowRendererVersion": "LG"},
    }  # fmt: skip
    outer = _outer(name, inner, _widgets(graph, object_info), versions["apprentice"])
    return {
        "id": str(uuid.uuid5(NAMESPACE, f"file {name}")), "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [outer],
        "links": [], "groups": [], "definitions": {"subgraphs": [inner]}, "config": {},
        "extra": {"BlueprintDescription": graph.note, "workflowRendererVersion": "LG"}, "version": 0.4,
    }  # fmt: skip


def _entered(graph: Any, nodes: Nodes, links: list[dict[str, Any]]) -> dict[str, tuple[str, list[int]]]:
    """Boundary inputs: their types and links, which are added to ``links``."""
    entered: dict[str, tuple[str, list[int]]] = {}
    for row, (name, targets) in enumerate(graph.inputs.items()):
        for key, wanted in targets:
            slots = nodes[key]["inputs"]
            target = next(number for number, slot in enumerate(slots) if slot["name"] == wanted)
            number, kind = len(links) + 1, slots[target]["type"]
            slots[target]["link"] = number
            links.append(dict(zip(LINK, (number, INSIDE, row, int(key), target, kind), strict=True)))
            entered.setdefault(name, (kind, []))[1].append(number)
    return entered


def _left(graph: Any, nodes: Nodes, links: list[dict[str, Any]]) -> dict[str, tuple[str, list[int]]]:
    """Likewise of the boundary outputs."""
    left: dict[str, tuple[str, list[int]]] = {}
    for row, (name, (key, place_of)) in enumerate(graph.outputs.items()):
        output, number = nodes[key]["outputs"][place_of], len(links) + 1
        output["links"].append(number)
        links.append(dict(zip(LINK, (number, int(key), place_of, OUTSIDE, row, output["type"]), strict=True)))
        left[name] = (output["type"], [number])
    return left


def _widgets(graph: Any, object_info: Info) -> dict[str, Any]:
    """Boundary inputs that have a widget, with its value."""
    widgets: dict[str, Any] = {}
    for name, ((key, wanted), *_rest) in graph.inputs.items():
        node = graph.nodes[key]
        spec = next(spec for slot, spec, _ in specs(object_info[node["class_type"]]) if slot == wanted)
        if is_widget(spec):
            widgets[name] = node["inputs"].get(wanted, default_of(spec))
    return widgets


def _boundary(slots: Mapping[str, tuple[str, list[int]]], name: str, x: int) -> list[dict[str, Any]]:
    return [
        {"id": str(uuid.uuid5(NAMESPACE, f"{name} {slot}")), "name": slot, "type": kind, "linkIds": ids, "localized_name": slot,
         "pos": [x, 100 + 20 * row]}
        for row, (slot, (kind, ids)) in enumerate(slots.items())
    ]  # fmt: skip


def _outer(name: str, inner: Mapping[str, Any], widgets: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The one node that stands for the graph."""
    inputs = [
        {"name": slot["name"], "type": slot["type"], "link": None}
        | ({"widget": {"name": slot["name"]}} if slot["name"] in widgets else {})
        for slot in inner["inputs"]
    ]
    outputs = [{"name": slot["name"], "type": slot["type"], "links": []} for slot in inner["outputs"]]
    return {
        "id": 1, "type": inner["id"], "pos": [40, 60], "size": [360, 40 + 26 * (len(inputs) + len(outputs))], "flags": {},
        "order": 0, "mode": 0, "inputs": inputs, "outputs": outputs, "title": name,
        "properties": {"proxyWidgets": [["-1", slot] for slot in widgets], "cnr_id": "apprentice", "ver": version},
        "widgets_values": list(widgets.values()),
    }  # fmt: skip
