"""Write the example workflows and the blueprints, and with ``--cards`` the pictures of their cards, too.

``COMFYUI_PATH=… python scripts/make_examples.py [--cards] [NAME…]``. The files come out of ``examples/`` and this ComfyUI's
own object_info; cards of the tiny world show what a run has really drawn, the others say in words what they are.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests
import tomllib
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from blueprint_file import blueprint  # noqa: E402
from example_cards import drawn_card, written_card  # noqa: E402
from examples import EXAMPLES, TINY  # noqa: E402
from examples.blueprints import BLUEPRINTS  # noqa: E402
from examples.weights import MODELS  # noqa: E402
from harness import Comfy, comfyui  # noqa: E402
from workflow_file import workflow  # noqa: E402

CORE = "0.3.75"  # the ComfyUI that the files are written for
LONG = ("distil", "critic-teaches-student")  # minutes of training: their cards are drawn from a run when they are named
DOCS = ROOT / "docs" / "examples.md"


def versions() -> dict[str, str]:
    """Of the packs that the examples use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"apprentice": project["version"], "comfy-core": CORE}


def files(object_info: dict[str, Any]) -> dict[str, str]:
    """Every example and blueprint by its place in the repository, as text."""
    written: dict[str, Any] = {}
    for name, build in EXAMPLES.items():
        graph = build()
        file = workflow(name, graph.page, graph.nodes, object_info, versions(), MODELS)
        written[f"example_workflows/{name}.json"] = file
    for name, build in BLUEPRINTS.items():
        written[f"subgraphs/{name}.json"] = blueprint(name, build(), object_info, versions())
    return {place: json.dumps(file, indent=1, ensure_ascii=False) + "\n" for place, file in written.items()}


def table() -> str:
    """docs/examples.md."""
    rows = []
    for name, build in EXAMPLES.items():
        page = build().page
        first = page.note.split("\n\n")[0]
        rows.append(f'| <img src="../example_workflows/{name}.jpg" width="128" alt=""> | **{page.title}**<br>`{name}`. {first} |')
    cut = len(TINY)
    head = "# Examples\n\nWorkflow > Browse Templates > apprentice opens them. Written by `scripts/make_examples.py`.\n"
    lines = [head, "## Without downloads\n", "| | |\n| --- | --- |", *rows[:cut],
             "\n## For published models\n", "| | |\n| --- | --- |",
             *rows[cut:], "\n## Blueprints\n", "Subgraphs to drop into a workflow of yours: search for their names.\n",
             *(f"- **{name}**: {build().note}" for name, build in BLUEPRINTS.items())]  # fmt: skip
    return "\n".join(lines) + "\n"


def pictures(server: Comfy, prompt: dict[str, Any]) -> list[Image.Image]:
    """What a run saves, but for contact sheets and charts."""
    shown = []
    for output in server.run(prompt, 3000).outputs.values():
        for entry in output.get("images", []):
            if entry["type"] == "output":
                answer = requests.get(f"{server.url}/view", params=entry, timeout=60)
                shown.append(Image.open(io.BytesIO(answer.content)).convert("RGB"))
    return shown


def card(server: Comfy, name: str, run: bool = True) -> None:
    """Draw an example's card, from a run or in words."""
    graph = EXAMPLES[name]()
    target = ROOT / "example_workflows" / f"{name}.jpg"
    if name in TINY and run:
        prompt = {key: node for key, node in graph.nodes.items() if key not in graph.page.muted}
        drawn_card(graph.page.title, pictures(server, prompt)).save(target, quality=85)
    else:
        steps = [group.title for row in graph.page.rows for group in row if group.title[0].isdigit()]
        written_card(graph.page.title, graph.nodes, steps).save(target, quality=85)
    print(target)


def main() -> None:
    """All, or the cards of those named."""
    names = [name for name in sys.argv[1:] if name != "--cards"] or list(EXAMPLES)
    with tempfile.TemporaryDirectory() as folder, comfyui(Path(folder)) as server:
        for place, text in files(server.get("/object_info")).items():
            (ROOT / place).parent.mkdir(exist_ok=True)
            (ROOT / place).write_text(text, encoding="utf-8")
        DOCS.write_text(table(), encoding="utf-8")
        for name in names if "--cards" in sys.argv else []:
            card(server, name, name in sys.argv or name not in LONG)


if __name__ == "__main__":
    main()
