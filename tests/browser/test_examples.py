"""Every example in both front ends: it opens without complaint, framed, with room for every node; blueprints can be added."""

from __future__ import annotations

import json
import os
from typing import Any

from browser.page import close_messages
from harness import ROOT
from playwright.sync_api import Page

FILES = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "example_workflows").glob("*.json"))}
LOADERS = {"CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "VAELoader", "LoraLoaderModelOnly", "ControlNetLoader",
           "LoadImage", "ApprenticeLoadOracle"}  # fmt: skip
OPEN = """async ([name, file]) => {
  const said = [], warn = console.warn;
  console.warn = (...words) => { said.push(words.map(String).join(" ")); warn(...words); };
  await window.app.loadGraphData(file, true, true, name, { openSource: "template" });
  await new Promise((done) => setTimeout(done, 300));
  console.warn = warn;
  const { canvas, graph } = window.app, ds = canvas.ds, ratio = window.devicePixelRatio;
  const seen = [-ds.offset[0], -ds.offset[1], canvas.canvas.width / ratio / ds.scale, canvas.canvas.height / ratio / ds.scale];
  return { seen, said, nodes: graph._nodes.map((n) => ({
    id: Number(n.id), type: n.type, broken: !!n.has_errors, pos: [...n.pos], size: [...n.size],
    widgets: (n.widgets ?? []).filter((w) => w.serialize !== false).map((w) => w.value) })) };
}"""


def overlaps(nodes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    boxes = [(n["type"], n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in nodes]
    return [
        (a[0], b[0]) for i, a in enumerate(boxes) for b in boxes[i + 1 :]
        if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]
    ]  # fmt: skip


def complaints(name: str, nodes: list[dict[str, Any]]) -> set[str]:
    """Nodes that are marked red; the newer front end marks loaders whose files are not here."""
    red = {node["type"] for node in nodes if node["broken"]}
    return red - LOADERS if "models" in json.dumps(FILES[name]) else red


def check(name: str, shown: dict[str, Any]) -> None:
    """One opened example: whole, as saved, framed."""
    nodes = {node["id"]: node for node in shown["nodes"]}
    assert len(nodes) == len(FILES[name]["nodes"]) and not complaints(name, shown["nodes"]), name
    assert not overlaps(shown["nodes"]), (name, overlaps(shown["nodes"]))
    assert not [words for words in shown["said"] if "linearData" in words or "app config" in words], name
    for saved in FILES[name]["nodes"]:
        node = nodes[saved["id"]]
        values = [value for value in node["widgets"] if value is not None]
        given = [value for value in saved["widgets_values"] if value is not None]
        assert values[: len(given)] == given, (name, node["type"], given, values)
    left, top, width, height = shown["seen"]
    for node in nodes.values():
        (x, y), (w, h) = node["pos"], node["size"]
        assert left <= x and top <= y and x + w <= left + width and y + h <= top + height, (
            name,
            node["type"],
            "outside of the window",
        )
    spread = max(n["pos"][0] + n["size"][0] for n in nodes.values()) - min(n["pos"][0] for n in nodes.values())
    tall = max(n["pos"][1] + n["size"][1] for n in nodes.values()) - min(n["pos"][1] for n in nodes.values())
    assert max(spread / width, tall / height) > 0.5, (name, "lost in the window")


def test_every_example_opens_and_every_blueprint_can_be_added(page: Page) -> None:
    version = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    pictures = os.environ.get("APPRENTICE_EXAMPLE_PICTURES")
    for name, file in FILES.items():
        shown = page.evaluate(OPEN, [name, file])
        said = close_messages(page)
        if pictures:
            page.keyboard.press("Escape")
            page.screenshot(path=f"{pictures}/{name}-{version}.png")
        check(name, shown)
        assert "models" in json.dumps(file) or said == [], name
    assert problems == []
    page.keyboard.press("Escape")
    for path in sorted((ROOT / "subgraphs").glob("*.json")):
        title, sockets, is_subgraph = add_by_search(page, path.stem)
        assert (title, is_subgraph) == (path.stem, True)
        assert sockets == len(json.loads(path.read_text())["nodes"][0]["inputs"])
        if pictures:
            page.screenshot(path=f"{pictures}/blueprint-{path.stem}-{version}.png")


def add_by_search(page: Page, words: str) -> tuple[str, int, bool]:
    """Search for a node on the empty canvas as a user does, and take the first hit: its title, sockets, and kind."""
    page.evaluate("() => window.app.graph.clear()")
    page.wait_for_timeout(700)  # the box of the search before is gone
    page.mouse.dblclick(800, 500)
    page.wait_for_timeout(1500)
    page.keyboard.type(words)
    page.wait_for_timeout(1200)
    page.keyboard.press("Enter")
    page.wait_for_timeout(700)
    page.mouse.click(800, 500)  # the newer front end lets it hang at the pointer until it is put down
    page.wait_for_function("() => window.app.graph._nodes.length === 1", timeout=20_000)
    node = page.evaluate("() => { const n = window.app.graph._nodes[0]; return [n.title, n.inputs.length, !!n.subgraph]; }")
    return node[0], node[1], node[2]
