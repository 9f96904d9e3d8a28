"""The pictures of ``docs/board.md``: the Draft Board on both front ends, dark and light, as an artist leaves it.

``COMFYUI_PATH=… APPRENTICE_FRONT_ENDS=… python scripts/make_board_pictures.py``; look at ``docs/images/board*.webp`` afterwards.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser.page import close_messages, open_page, queue_and_wait  # noqa: E402
from harness import comfyui  # noqa: E402

IMAGES = ROOT / "docs" / "images"
NODE = "window.app.graph._nodes.find((n) => n.comfyClass === 'ApprenticeSampler')"
SHOWN = f"""() => {{ const n = {NODE}, c = window.app.canvas; n.setSize([560, n.size[1]]); c.ds.scale = 1.3;
  c.ds.offset = [200 - n.pos[0], 500 - n.pos[1] - n.size[1]]; c.show_info = false; c.setDirty(true, true); }}"""
MOVED = """(y) => { const ds = window.app.canvas.ds; ds.offset[1] += (150 - y) / ds.scale;
  window.app.canvas.setDirty(true, true); }"""


def _save(name: str, png: bytes) -> None:
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.save(IMAGES / f"{name}.webp", quality=82, method=6)
    print(f"docs/images/{name}.webp: {(IMAGES / f'{name}.webp').stat().st_size / 1000:.0f} kB")


def _board(page: Any) -> Any:
    """The board, run and in the window."""
    page.locator("#comfy-file-input").set_input_files(str(ROOT / "example_workflows" / "adaptive.json"))
    page.wait_for_function(f"() => {NODE} !== undefined")
    page.wait_for_timeout(800)
    queue_and_wait(page)
    page.wait_for_timeout(2000)
    close_messages(page)
    page.evaluate(SHOWN)
    page.wait_for_timeout(600)
    board = page.locator(".ab-board").first
    page.evaluate(MOVED, board.bounding_box()["y"])
    page.wait_for_timeout(600)
    return board


def _photographs(page: Any, name: str, whole: bool) -> None:
    """The board with choices by hand and a moved threshold; and where it is asked for, what opens from it."""
    board = _board(page)
    board.locator(".ab-thumb").nth(3).click(modifiers=["Shift"])
    board.locator(".ab-thumb").nth(6).click()
    line = board.locator(".ab-line").bounding_box()
    page.mouse.move(line["x"] + line["width"] / 2, line["y"] + 25)
    page.mouse.down()
    page.mouse.move(line["x"] + 70, line["y"] + 25, steps=4)
    page.mouse.up()
    page.mouse.move(5, 500)
    page.wait_for_timeout(500)
    _save(name, board.screenshot())
    if not whole:
        return
    board.locator(".ab-thumb").nth(1).hover()
    board.locator(".ab-zoom").nth(1).click()
    page.wait_for_timeout(800)
    _save(f"{name}-large", page.locator("dialog.ab-viewer").screenshot())
    page.keyboard.press("Escape")
    board.locator(".ab-to-taste").click()
    page.wait_for_timeout(800)
    _save(f"{name}-taste", board.screenshot())


def main() -> None:
    """Both front ends."""
    newer = ["--front-end-root", os.environ["APPRENTICE_FRONT_ENDS"]]
    chromium = os.environ.get("APPRENTICE_CHROMIUM")
    for name, arguments, vue, palette in (("board", newer, True, "dark"), ("board-light", [], False, "light")):
        with (
            tempfile.TemporaryDirectory() as folder,
            comfyui(Path(folder), *arguments) as server,
            open_page(server.url, chromium) as page,
        ):
            page.evaluate("(vue) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
            page.evaluate("(palette) => window.app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette)
            _photographs(page, name, vue)


if __name__ == "__main__":
    main()
