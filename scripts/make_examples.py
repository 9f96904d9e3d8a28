"""Author the example workflows: lay graphs out in a real browser, run them, and save each with its picture.

``COMFYUI_PATH=… python scripts/make_examples.py [NAME…]``; the workflow files are the product, this only saves clicking.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser.page import open_page, queue_and_wait  # noqa: E402
from examples import EXAMPLES  # noqa: E402
from harness import comfyui  # noqa: E402

ARRANGE = """(layout) => {
  for (const node of window.app.graph._nodes) {
    const place = layout[String(node.id)];
    if (!place) continue;
    node.pos = [place[0], place[1]];
    node.setSize([place[2], place[3]]);
  }
  for (const node of window.app.graph._nodes)
    for (const widget of node.widgets ?? [])
      if (widget.name === "control_after_generate") widget.value = "fixed";
  window.app.graph.setDirtyCanvas(true, true);
}"""
# Leave nothing but the graph in the picture: no menus, no messages.
BARE = """() => {
  const kept = "#graph-canvas, .dom-widget, [class*=dom-widget]";
  const walk = (element) => {
    if (element.matches(kept)) return;
    if (!element.querySelector(kept)) { element.style.display = "none"; return; }
    for (const child of element.children) walk(child);
  };
  walk(document.body);
  window.app.canvas.show_info = false;
  window.dispatchEvent(new Event("resize"));
}"""
FIT = """(box) => {
  const canvas = window.app.canvas, ds = canvas.ds;
  ds.scale = Math.min(canvas.canvas.width / (box[2] + 80), canvas.canvas.height / (box[3] + 120)) / window.devicePixelRatio;
  ds.offset = [40 - box[0], 80 - box[1]];
  window.app.graph.setDirtyCanvas(true, true);
}"""


def make(page: Any, name: str, target: Path) -> None:
    """Lay out, run, photograph and save one example."""
    graph = EXAMPLES[name]()
    layout = graph.layout
    page.evaluate("(prompt) => window.app.loadApiJson(prompt, 'x')", graph.nodes)
    page.wait_for_timeout(1500)
    page.evaluate(ARRANGE, layout)
    queue_and_wait(page, 1800)
    page.wait_for_timeout(2500)
    page.evaluate(ARRANGE, layout)
    right = max(x + w for x, _, w, _ in layout.values())
    bottom = max(y + h for _, y, _, h in layout.values())
    page.evaluate(BARE)
    page.evaluate(FIT, [40, 60, right - 40, bottom - 60])
    page.wait_for_timeout(1500)
    page.evaluate("() => { window.app.graph.extra = {...window.app.graph.extra, ds: undefined}; }")
    # As text: what is undefined must be left out, not become null.
    workflow = json.loads(page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))
    (target / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
    page.locator("#graph-canvas").screenshot(path=str(target / f"{name}.jpg"), type="jpeg", quality=82)
    print(f"{target / name}.json")


def main() -> None:
    """All examples, or those named."""
    names = sys.argv[1:] or list(EXAMPLES)
    target = ROOT / "example_workflows"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, comfyui(Path(folder)) as server:
        for name in names:
            with open_page(server.url, os.environ.get("APPRENTICE_CHROMIUM")) as page:
                make(page, name, target)


if __name__ == "__main__":
    main()
