"""What every example workflow has: title, note, frames, app mode, packs' names, room for each node, and a square card."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from typing import Any

import pytest
from harness import ROOT
from PIL import Image

FILES = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "example_workflows").glob("*.json"))}
TITLE = 30  # LiteGraph's bar above a node


def real_nodes(file: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in file["nodes"] if node["type"] != "MarkdownNote"]


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?=\s|$)", text))


@pytest.mark.parametrize("name", FILES)
def test_example_explains_itself_on_the_canvas(name: str) -> None:
    file = FILES[name]
    (note,) = (node for node in file["nodes"] if node["type"] == "MarkdownNote")
    title, body = note["widgets_values"][0].split("\n", 1)
    assert title.startswith("# ") and file["extra"]["info"]["name"] == title[2:] and 10 < len(title) < 80
    assert 4 <= sentences(body) <= 9
    assert all(group["title"] for group in file["groups"]) and len(file["groups"]) >= 3
    assert "ds" not in file["extra"], "with a view of its own it would open wrongly on a window of another size"


@pytest.mark.parametrize("name", FILES)
def test_example_names_its_packs_and_what_app_mode_shows(name: str) -> None:
    nodes = {node["id"]: node for node in FILES[name]["nodes"]}
    for node in real_nodes(FILES[name]):
        ours = node["type"].startswith("Apprentice")
        assert node["properties"]["cnr_id"] == ("apprentice" if ours else "comfy-core") and node["properties"]["ver"]
    linear = FILES[name]["extra"]["linearData"]
    assert linear["inputs"] and linear["outputs"]
    for key, widget in linear["inputs"]:
        slot = next(slot for slot in nodes[key]["inputs"] if slot["name"] == widget)
        assert slot["widget"]["name"] == widget and slot["link"] is None, "a wire decides that, not the artist"
    for key in linear["outputs"]:
        assert nodes[key]["type"] in ("SaveImage", "ApprenticeSaveImages")


@pytest.mark.parametrize("name", FILES)
def test_no_two_nodes_overlap_and_each_stands_in_a_frame(name: str) -> None:
    def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
        (x, y), (width, height) = node["pos"], node["size"]
        return x, y - TITLE, x + width, y + height

    boxes = [box(node) for node in FILES[name]["nodes"]]
    for one, two in itertools.combinations(boxes, 2):
        assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1], (one, two)
    frames = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in FILES[name]["groups"])]
    for node in real_nodes(FILES[name]):
        x, y, right, bottom = box(node)
        held = [f for f in frames if f[0] <= x and f[1] <= y and right <= f[2] and bottom <= f[3]]
        assert len(held) == 1, node["type"]


@pytest.mark.parametrize("name", FILES)
def test_card_is_square_and_small(name: str) -> None:
    path = ROOT / "example_workflows" / f"{name}.jpg"
    with Image.open(path) as card:
        assert card.width == card.height >= 400
    assert path.stat().st_size < 60_000
    assert f"example_workflows/{name}.jpg" in (ROOT / "docs" / "examples.md").read_text()


def test_what_is_to_be_downloaded_is_named_as_the_front_end_wants_it() -> None:
    entries = [
        (node, entry) for file in FILES.values() for node in file["nodes"] for entry in node["properties"].get("models", [])
    ]
    assert len({entry["name"] for _, entry in entries}) > 15
    for node, entry in entries:
        assert entry["name"] in node["widgets_values"] and entry["url"].startswith("https://huggingface.co/")
        assert ("hash" in entry) == ("hash_type" in entry) and re.fullmatch("[0-9a-f]{64}|", entry.get("hash", ""))
        assert entry["directory"] in ("checkpoints", "loras", "controlnet", "diffusion_models", "text_encoders", "vae", "oracles")


def test_start_comes_first_and_titles_differ() -> None:
    assert next(iter(FILES)) == "1-start-here"
    assert max(Counter(file["extra"]["info"]["name"] for file in FILES.values()).values()) == 1
