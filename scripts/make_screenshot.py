"""The README's picture: the adaptive example in ComfyUI's own page, run, with the contact sheet it made.

``COMFYUI_PATH=… python scripts/make_screenshot.py``; look at ``docs/images/comfyui.webp`` before you commit it.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser.page import close_messages, open_page, queue_and_wait  # noqa: E402
from harness import comfyui  # noqa: E402

# id: (x, y, width, height): prompts, models and size beside the sampler with its board; contact sheet, table, the pictures.
LAYOUT = {
    "1": (40, 60, 300, 264), "2": (40, 390, 300, 270), "3": (40, 730, 300, 140), "4": (40, 940, 300, 140),
    "5": (400, 60, 400, 1080), "7": (860, 60, 760, 640), "9": (860, 770, 520, 250), "8": (1440, 770, 180, 90),
    "6": (860, 1090, 520, 90),
}  # fmt: skip
PLACE = """(layout) => {
  const graph = window.app.graph;
  for (const other of [...graph._groups, ...graph._nodes.filter((n) => !layout[String(n.id)])]) graph.remove(other);
  for (const node of graph._nodes) {
    const place = layout[String(node.id)];
    node.pos = [place[0], place[1]];
    node.setSize([place[2], place[3]]);
  }
  const ds = window.app.canvas.ds;
  ds.scale = 0.86;
  ds.offset = [60, 70];
  window.app.canvas.show_info = false;
  window.app.graph.setDirtyCanvas(true, true);
}"""


def main() -> None:
    """Load, run, arrange, photograph."""
    target = ROOT / "docs" / "images" / "comfyui.webp"
    front_end = os.environ.get("APPRENTICE_FRONT_ENDS")
    arguments = ["--front-end-root", front_end] if front_end else []
    chromium = os.environ.get("APPRENTICE_CHROMIUM")
    with (
        tempfile.TemporaryDirectory() as folder,
        comfyui(Path(folder), *arguments) as server,
        open_page(server.url, chromium) as page,
    ):
        page.set_viewport_size({"width": 1600, "height": 1080})
        page.locator("#comfy-file-input").set_input_files(str(ROOT / "example_workflows" / "adaptive.json"))
        page.wait_for_function("(count) => window.app.graph._nodes.length >= count", arg=len(LAYOUT))
        queue_and_wait(page)
        page.wait_for_timeout(3000)
        close_messages(page)
        page.evaluate(PLACE, LAYOUT)
        page.wait_for_timeout(2000)
        picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").save(target, quality=84, method=6)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
