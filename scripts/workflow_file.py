"""From a described graph to a workflow file as ComfyUI's browser saves it: places, sizes, groups, note, app mode, models."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from run_workflow import WIDGETS

GAP, TITLE, MARGIN, NOTE_WIDTH = 40, 30, 20, 380
MUTED = 2
COLOURS = ("#3f789e", "#8A8", "#b58b2a", "#88A", "#a1309b")
# Nodes that show something take the room for it; ComfyUI can't know before they have run.
ROOM = {
    "PreviewImage": (320, 340), "SaveImage": (420, 460), "PreviewAny": (420, 220), "ApprenticeSaveImages": (420, 480),
    "LoadImage": (320, 360), "ApprenticeSampler": (400, 0), "ApprenticeJudge": (360, 0), "ApprenticeKeepBetter": (360, 0),
}  # fmt: skip
BOARD = {"ApprenticeSampler": 420, "ApprenticeJudge": 420, "ApprenticeKeepBetter": 420}  # the Draft Board, with pictures
NAMESPACE = uuid.UUID("6e2f7f2c-3c53-4c5f-9f5a-0c6a3f0f5f11")
Info = Mapping[str, Any]


@dataclass
class Group:
    """A titled frame around columns of nodes."""

    title: str
    columns: tuple[tuple[str, ...], ...]


@dataclass
class Page:
    """What a workflow file has beside its graph.

    Attributes:
        title: Says what it does.
        note: Explains it, in Markdown.
        rows: Frames from left to right; each further row below the one before.
        shown: App mode's inputs, as (node, widget).
        results: App mode's outputs.
        muted: Nodes that wait to be switched on.
    """

    title: str
    note: str
    rows: tuple[tuple[Group, ...], ...]
    shown: tuple[tuple[str, str], ...] = ()
    results: tuple[str, ...] = ()
    muted: tuple[str, ...] = ()


@dataclass
class _Drawn:
    nodes: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)


def specs(info: Info) -> list[tuple[str, list[Any], bool]]:
    """A node's inputs in order: name, specification, and whether it is optional."""
    parts = info["input"]
    return [(name, spec, part == "optional") for part in ("required", "optional") for name, spec in parts.get(part, {}).items()]


def is_widget(spec: list[Any]) -> bool:
    """Whether an input has a widget, and not a socket alone."""
    return (isinstance(spec[0], list) or spec[0] in WIDGETS) and not _options(spec).get("forceInput")


def _options(spec: list[Any]) -> dict[str, Any]:
    return dict(spec[1]) if len(spec) > 1 else {}


def default_of(spec: list[Any]) -> Any:
    """What a widget shows that nobody has touched."""
    options = _options(spec)
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
    blank = {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False, "STRING": ""}.get(str(spec[0]), choices[0] if choices else "")
    return options.get("default", blank)


def _has_control(name: str, spec: list[Any]) -> bool:
    return spec[0] == "INT" and (bool(_options(spec).get("control_after_generate")) or name in ("seed", "noise_seed"))


def widget_values(node: Mapping[str, Any], info: Info) -> list[Any]:
    """A node's widgets in the front end's order; what a link brings has its default there."""
    values: list[Any] = []
    for name, spec, _optional in specs(info):
        if not is_widget(spec):
            continue
        given = node["inputs"].get(name)
        values.append(default_of(spec) if given is None or isinstance(given, list) else given)
        if _has_control(name, spec):
            values.append("fixed")
        if _options(spec).get("image_upload"):
            values.append("image")
    return values


def size_of(kind: str, info: Info) -> tuple[int, int]:
    """Width and height of a node as LiteGraph computes it, or the room that its results take."""
    visible = [(name, spec) for name, spec, _ in specs(info) if is_widget(spec) and not _options(spec).get("advanced")]
    texts = sum(bool(_options(spec).get("multiline")) for _, spec in visible)
    rows = sum(1 + _has_control(name, spec) for name, spec in visible) - texts
    sockets = sum(not is_widget(spec) for _, spec, _ in specs(info))
    height = 24 * rows + 140 * texts + 20 * max(sockets, len(info["output"]), 1) + 40
    width, room = ROOM.get(kind, (320, 0))
    if kind.startswith("Apprentice") and not BOARD.get(kind) and info["output"]:
        height += 80  # its result in words
    return width, max(room, height + BOARD.get(kind, 0))


def _slots(info: Info) -> list[dict[str, Any]]:
    """Sockets, then what widgets take, as the front end orders them."""
    plain = [(n, s, o) for n, s, o in specs(info) if not is_widget(s)]
    widgets = [(n, s, o) for n, s, o in specs(info) if is_widget(s)]
    slots: list[dict[str, Any]] = []
    for name, spec, optional in [*plain, *widgets]:
        kind = "COMBO" if isinstance(spec[0], list) else spec[0]
        slot: dict[str, Any] = {"localized_name": name, "name": name, "type": kind, "link": None}
        if optional:
            slot["shape"] = 7
        if is_widget(spec):
            slot["widget"] = {"name": name}
        slots.append(slot)
    return slots


def _outputs(info: Info) -> list[dict[str, Any]]:
    listed = info["output_is_list"]
    return [
        {"localized_name": name, "name": name, **({"shape": 6} if many else {}), "type": kind, "links": []}
        for name, kind, many in zip(info["output_name"], info["output"], listed, strict=True)
    ]


def place(
    page: Page, nodes: Mapping[str, Any], info: Info, start: tuple[int, int] = (40, 60)
) -> tuple[dict[str, Any], list[Any]]:
    """Where each node stands, as (x, y, width, height), and the frames."""
    places: dict[str, tuple[int, int, int, int]] = {}
    frames: list[dict[str, Any]] = []
    top = start[1]
    for row in page.rows:
        left, bottom = start[0], top
        for group in row:
            x, low = left + MARGIN, top
            for column in group.columns:
                sizes = {key: size_of(nodes[key]["class_type"], info[nodes[key]["class_type"]]) for key in column}
                width, y = max(w for w, _ in sizes.values()), top + 40 + TITLE
                for key, (_, height) in sizes.items():
                    places[key] = (x, y, width, height)
                    y += height + GAP + TITLE
                x, low = x + width + GAP, max(low, y - GAP - TITLE)
            right = x - GAP + MARGIN
            frames.append({"title": group.title, "bounding": [left, top, right - left, low + MARGIN - top]})
            left, bottom = right + GAP, max(bottom, low + MARGIN)
        for frame in frames[-len(row) :]:
            frame["bounding"][3] = bottom - top
        top = bottom + GAP
    for number, frame in enumerate(frames):
        frame |= {"id": number + 1, "color": COLOURS[number % len(COLOURS)], "font_size": 24, "flags": {}}
    return places, frames


def _note(page: Page, key: int, place: tuple[int, int]) -> dict[str, Any]:
    text = f"# {page.title}\n\n{page.note}"
    lines = sum(1 + len(line) // 46 for line in text.splitlines())
    return {
        "id": key, "type": "MarkdownNote", "pos": list(place), "size": [NOTE_WIDTH, 24 * lines + 60], "flags": {}, "order": 0,
        "mode": 0, "inputs": [], "outputs": [], "title": "Read me", "properties": {"cnr_id": "comfy-core"},
        "widgets_values": [text], "color": "#432", "bgcolor": "#653",
    }  # fmt: skip


def _node(key: str, node: Mapping[str, Any], info: Info, versions: Mapping[str, str], models: Iterable[Any]) -> dict[str, Any]:
    kind = node["class_type"]
    pack = "apprentice" if kind.startswith("Apprentice") else "comfy-core"
    values = widget_values(node, info)
    wanted = [entry for entry in models if entry["name"] in values]
    properties = {"cnr_id": pack, "ver": versions[pack], "Node name for S&R": kind, **({"models": wanted} if wanted else {})}
    return {
        "id": int(key), "type": kind, "pos": [0, 0], "size": [0, 0], "flags": {}, "order": 0, "mode": 0, "inputs": _slots(info),
        "outputs": _outputs(info), "properties": properties, "widgets_values": values,
    }  # fmt: skip


def wired(
    prompt: Mapping[str, Any], object_info: Info, versions: Mapping[str, str], models: Iterable[Any]
) -> tuple[dict[str, dict[str, Any]], list[list[Any]]]:
    """The nodes of a prompt as a file has them, not placed yet, and their links."""
    listed = list(models)
    nodes = {key: _node(key, node, object_info[node["class_type"]], versions, listed) for key, node in prompt.items()}
    links: list[list[Any]] = []
    for order, (key, node) in enumerate(prompt.items()):
        nodes[key]["order"] = order
        for place, slot in enumerate(nodes[key]["inputs"]):
            value = node["inputs"].get(slot["name"])
            if not isinstance(value, list):
                continue
            origin, number = nodes[value[0]], value[1]
            link = len(links) + 1
            links.append([link, origin["id"], number, nodes[key]["id"], place, origin["outputs"][number]["type"]])
            origin["outputs"][number]["links"].append(link)
            slot["link"] = link
    return nodes, links


def workflow(
    name: str, page: Page, prompt: Mapping[str, Any], object_info: Info, versions: Mapping[str, str], models: Iterable[Any] = ()
) -> dict[str, Any]:
    """The file. It carries no view of its own: both front ends then fit the whole graph into the window, whatever its size."""
    nodes, links = wired(prompt, object_info, versions, models)
    note = _note(page, max(int(key) for key in prompt) + 1, (0, 0))
    note["pos"] = [40 - NOTE_WIDTH - GAP, 60 + TITLE + 40]
    places, frames = place(page, prompt, object_info)
    for key, (x, y, width, height) in places.items():
        nodes[key] |= {"pos": [x, y], "size": [width, height], "mode": MUTED if key in page.muted else 0}
    linear = {"inputs": [[int(key), widget] for key, widget in page.shown], "outputs": [int(key) for key in page.results]}
    return {
        "id": str(uuid.uuid5(NAMESPACE, name)), "revision": 0, "last_node_id": note["id"], "last_link_id": len(links),
        "nodes": [note, *nodes.values()], "links": links, "groups": frames, "config": {},
        "extra": {"info": {"name": page.title}, "linearData": linear, "workflowRendererVersion": "LG"}, "version": 0.4,
    }  # fmt: skip
