"""The pictures of the help pages: every node of ours with its direct neighbours, as an example workflow wires it.

``COMFYUI_PATH=… python scripts/make_help_pictures.py [NODE…]`` draws ``web/docs/<Node>/graph.webp`` by the real front end and
writes the line that shows it, with its words for those who don't see it, into ``en.md``; look at some before you commit them.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser.page import open_page  # noqa: E402
from harness import comfyui  # noqa: E402

PAGES = ROOT / "web" / "docs"
SCALE = 1.5  # pixels of a canvas unit: the help panel shows half of that, or more where it is drawn wider
COLOURS = 64
SETTINGS = {
    "Comfy.VueNodes.Enabled": False, "Comfy.NodeBadge.NodeSourceBadgeMode": "None", "Comfy.NodeBadge.NodeIdBadgeMode": "None",
    "Comfy.NodeBadge.NodeLifeCycleBadgeMode": "None", "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0,
}  # fmt: skip
# The help panel is narrow, so the neighbours are collapsed. Gives the graph's box and its wires.
ARRANGE = """([id, scale]) => {
  const WIDTH = 210, EDGE = 10; // in canvas units, as all that follows
  const graph = window.app.graph, canvas = window.app.canvas, node = graph.getNodeById(id);
  const before = new Set(), after = new Set(), wires = { into: [], out: [] };
  graph._nodes.forEach((one) => { one.strokeStyles = {}; }); // files that this machine lacks are no fault of the graph
  graph._nodes.forEach((one) => { one.title = one.title.replace(/ [(].*[)]$/, ""); });
  const named = (slot) => slot.localized_name || slot.label || slot.name;
  for (const input of node.inputs) {
    const wire = graph.getLink(input.link);
    if (!wire) continue;
    const from = graph.getNodeById(wire.origin_id);
    before.add(from);
    wires.into.push([named(input), from.title]);
    if (!input.widget) continue;
    const widget = node.widgets.find((widget) => widget.name === input.widget.name);
    widget.hidden = true;
    widget.computeSize = () => [0, -4];
    delete input.widget; // a text that comes by wire: a slot with its name in place of the empty room for the text
    delete input.pos;
  }
  for (const output of node.outputs)
    for (const link of output.links ?? []) {
      const to = graph.getNodeById(graph.getLink(link).target_id);
      after.add(to);
      wires.out.push([named(output), to.title]);
    }
  const pen = document.createElement("canvas").getContext("2d");
  const row = LiteGraph.NODE_TITLE_HEIGHT + 12;
  const stack = (column, x) => {
    const width = Math.max(0, ...[...column].map((one) => {
      pen.font = one.titleFontStyle;
      one.collapse(true);
      one._collapsed_width = pen.measureText(one.title).width + LiteGraph.NODE_TITLE_HEIGHT + 12;
      one.setSize([one._collapsed_width, 30]);
      return one._collapsed_width;
    }));
    [...column].forEach((one, i) => { one.pos = [x, i * row]; });
    return x + width;
  };
  const start = before.size ? stack(before, 0) + 32 : 0;
  node.pos = [start, 0];
  node.setSize([WIDTH, node.computeSize()[1] + 6]);
  const width = after.size ? stack(after, start + WIDTH + 32) : start + WIDTH;
  const height = Math.max(node.size[1], (Math.max(before.size, after.size) - 1) * row);
  canvas.deselectAll?.();
  canvas.show_info = false;
  canvas.ds.scale = scale;
  canvas.ds.offset = [EDGE, EDGE + LiteGraph.NODE_TITLE_HEIGHT];
  graph.setDirtyCanvas(true, true);
  return { title: node.title, width: width + 2 * EDGE, height: height + 2 * EDGE + LiteGraph.NODE_TITLE_HEIGHT, ...wires };
}"""
# Nothing but the graph: no menus, no messages, no grid.
BARE = """() => {
  document.head.insertAdjacentHTML("beforeend", `<style>body * { visibility: hidden !important; }
    #graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important; }</style>`);
  window.app.canvas.background_image = "";
  window.app.canvas.clear_background_color = "#1b1b1b";
}"""
# Where the smallest graph isn't the most telling one.
CHOSEN = {"ApprenticePrompts": "adaptive", "ApprenticeSampler": "sdxl-lcm-lora"}
SHOWS = {"PreviewAny", "PreviewImage", "SaveImage"}


def neighbourhood(workflow: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The first node of ``kind`` in a workflow file, with its direct neighbours and the wires between it and them."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    centre = next((key for key, node in nodes.items() if node["type"] == kind), None)
    if centre is None:
        return None
    wires = [wire for wire in workflow["links"] if centre in (wire[1], wire[3])]
    kept, links = {centre} | {end for wire in wires for end in (wire[1], wire[3])}, {wire[0] for wire in wires}
    cut = [_cut(nodes[key], links) for key in sorted(kept)]
    cut[sorted(kept).index(centre)].pop("title", None)
    return {**workflow, "nodes": cut, "links": wires, "groups": [], "centre": centre}


def _cut(node: dict[str, Any], links: set[int]) -> dict[str, Any]:
    """A node of a file with those of its ``links`` alone, in the usual colour."""
    inputs = [{**slot, "link": slot["link"] if slot.get("link") in links else None} for slot in node.get("inputs", [])]
    outputs = [{**slot, "links": [x for x in slot.get("links") or [] if x in links]} for slot in node.get("outputs", [])]
    plain = {key: value for key, value in node.items() if key not in ("color", "bgcolor", "flags", "mode")}
    return plain | {"inputs": inputs, "outputs": outputs, "flags": {}, "mode": 0}


def smallest(kind: str) -> dict[str, Any]:
    """Of all examples the smallest such graph; before that, one of published models, and one whose outputs are used."""
    name = CHOSEN.get(kind, "*")
    files = sorted((ROOT / "example_workflows").glob(f"{name}.json"))
    present = [graph for path in files if (graph := neighbourhood(json.loads(path.read_text()), kind)) is not None]
    if not present:
        raise SystemExit(f"{kind} is in no example workflow; draw one first (scripts/make_examples.py).")

    def rank(graph: dict[str, Any]) -> tuple[bool, bool, int]:
        kinds = {node["type"] for node in graph["nodes"]} - {kind}
        sinks = {node["type"] for node in graph["nodes"] if any(wire[3] == node["id"] for wire in graph["links"])} - {kind}
        return "ApprenticeTinyWorld" in kinds, sinks <= SHOWS, len(graph["nodes"])

    return min(present, key=rank)


def words(shown: dict[str, Any]) -> str:
    """What the picture shows, for those who don't see it."""
    parts = [_ends(shown["into"], "from"), _ends(shown["out"], "to")]
    return f"{shown['title']} in a graph: " + "; ".join(part for part in parts if part)


def _ends(wires: list[list[str]], way: str) -> str:
    """Slots by the node that they are wired to: "images and drafts from VAE Decode"."""
    by_node: dict[str, dict[str, None]] = {}
    for slot, node in wires:
        by_node.setdefault(node, {})[slot] = None
    by_slots: dict[tuple[str, ...], list[str]] = {}
    for node, slots in by_node.items():
        by_slots.setdefault(tuple(slots), []).append(node)
    return "; ".join(f"{_listed(slots)} {way} {_listed(nodes)}" for slots, nodes in by_slots.items())


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def photograph(page: Any, kind: str) -> tuple[Image.Image, str]:
    """The node's graph, and its words."""
    graph = smallest(kind)
    page.evaluate("(graph) => window.app.loadGraphData(graph)", graph)
    page.wait_for_function(f"() => window.app.graph._nodes.length === {len(graph['nodes'])}")
    page.wait_for_timeout(300)
    shown = page.evaluate(ARRANGE, [graph["centre"], SCALE])
    page.wait_for_timeout(400)
    clip = {"x": 0, "y": 0, "width": shown["width"] * SCALE, "height": shown["height"] * SCALE}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"), words(shown)


def write(kind: str, picture: Image.Image, text: str) -> None:
    """The picture, and below the page's heading the line that shows it (front ends look from ``docs`` on, not from the page)."""
    target = PAGES / kind / "graph.webp"
    flat = picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).convert("RGB")
    flat.save(target, lossless=True, quality=100, method=6)
    page = PAGES / kind / "en.md"
    blocks = [block for block in page.read_text(encoding="utf-8").split("\n\n") if not block.startswith("![")]
    page.write_text("\n\n".join([blocks[0], f"![{text}]({kind}/graph.webp)", *blocks[1:]]), encoding="utf-8")
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.1f} kB, {picture.width}x{picture.height}: {text}")


def main() -> None:
    """All nodes, or those named."""
    kinds = sys.argv[1:] or sorted(path.parent.name for path in PAGES.glob("*/en.md"))
    front_end = os.environ.get("APPRENTICE_FRONT_ENDS")
    arguments = ["--front-end-root", front_end] if front_end else []
    with (
        tempfile.TemporaryDirectory() as folder,
        comfyui(Path(folder), *arguments) as server,
        open_page(server.url, os.environ.get("APPRENTICE_CHROMIUM")) as page,
    ):
        page.set_viewport_size({"width": 1800, "height": 2200})
        for name, value in SETTINGS.items():
            page.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])
        page.evaluate(BARE)
        for kind in kinds:
            write(kind, *photograph(page, kind))


if __name__ == "__main__":
    main()
