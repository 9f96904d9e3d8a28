"""Write ``locales/en/nodeDefs.json`` from the nodes' own schemas; a test holds the two equal.

``python scripts/make_locales.py URL`` asks a running ComfyUI that has the pack.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "locales" / "en" / "nodeDefs.json"


def locale(object_info: dict[str, Any]) -> dict[str, Any]:
    """Titles, descriptions, labels and tooltips of our nodes, as the front end wants them."""
    texts = {}
    for node_id, info in sorted(object_info.items()):
        if not node_id.startswith("Apprentice"):
            continue
        inputs = {
            name: {"name": spec[1].get("display_name") or name, "tooltip": spec[1]["tooltip"]}
            for part in ("required", "optional")
            for name, spec in info["input"].get(part, {}).items()
        }
        outputs = {
            str(i): {"name": name, "tooltip": info["output_tooltips"][i]} for i, name in enumerate(info["output_name"])
        }
        texts[node_id] = {"display_name": info["display_name"], "description": info["description"], "inputs": inputs}
        if outputs:
            texts[node_id]["outputs"] = outputs
    return texts


if __name__ == "__main__":
    with urllib.request.urlopen(f"{sys.argv[1]}/object_info") as answer:
        text = json.dumps(locale(json.load(answer)), indent=2, ensure_ascii=False) + "\n"
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
