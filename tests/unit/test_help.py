"""The help pages' pictures: there, small, and in words that are true. What the front ends make of them: ``tests/browser``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from harness import ROOT
from PIL import Image

PAGES = sorted((ROOT / "web" / "docs").glob("*/en.md"))
NODES = json.loads((ROOT / "tests" / "data" / "object_info.json").read_text())
MOST = 25_000  # bytes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_page_shows_its_node_s_graph_small_and_says_what_it_shows(page: Path) -> None:
    text, node = page.read_text(encoding="utf-8"), page.parent.name
    ((words, path),) = re.findall(r"!\[(.*?)\]\((.*?)\)", text)
    assert path == f"{node}/graph.webp", "front ends look from web/docs on: python scripts/make_help_pictures.py"
    picture = ROOT / "web" / "docs" / path
    assert 1_000 < picture.stat().st_size <= MOST
    with Image.open(picture) as image:
        assert image.format == "WEBP" and 300 <= image.width <= 1200 and 100 <= image.height <= 1400
        assert len(image.convert("RGB").getcolors(256) or []) > 10, "an empty picture"
    title, wires = re.fullmatch(r"(.+) in a graph: (.+)", words).groups()
    assert text.startswith(f"# {title}"), "the picture is of this page's node"
    inputs = {name for _, name, *_ in NODES[node]["inputs"]}
    for wire in wires.split("; "):
        slots, way, neighbours = re.fullmatch(r"(.+) (from|to) (.+)", wire).groups()
        assert neighbours
        for slot in re.split(r", | and ", slots):
            if way == "from":
                assert re.sub(r" \(.*\)", "", slot) in inputs, f"{node} has no input {slot}: make the picture again"


def test_nothing_else_lies_beside_the_pages() -> None:
    lying = {path.name for path in (ROOT / "web" / "docs").glob("*/*")}
    assert lying == {"en.md", "graph.webp"}
