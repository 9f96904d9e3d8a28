"""Write ``locales/*/nodeDefs.json``: the English from the nodes' own schemas, the others from ``scripts/translations``.

``python scripts/make_locales.py`` writes the translated ones again after a change of ``scripts/translations/LANGUAGE.json``,
which has {English text: translated text}, and lists the texts that lack one. ``scripts/make_snapshot.py`` writes the English,
which needs a ComfyUI. Tests hold all of them equal to their sources.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "locales" / "en" / "nodeDefs.json"
TRANSLATIONS = {path.stem: path for path in sorted((ROOT / "scripts" / "translations").glob("*.json"))}


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


def texts_of(content: Any) -> Iterator[str]:
    """All texts of a locale, in its order."""
    if isinstance(content, str):
        yield content
    else:
        for part in content.values():
            yield from texts_of(part)


def translated(content: Any, memory: dict[str, str]) -> Any:
    """A locale in another language; what ``memory`` lacks stays English."""
    if isinstance(content, str):
        return memory.get(content, content)
    return {key: translated(part, memory) for key, part in content.items()}


def as_text(content: Any) -> str:
    """The file's content."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_translated() -> list[str]:
    """Write all languages but English; what they lack, and what they have too much."""
    english = json.loads(TARGET.read_text(encoding="utf-8"))
    wanted, faults = set(texts_of(english)), []
    for language, path in TRANSLATIONS.items():
        memory = json.loads(path.read_text(encoding="utf-8"))
        target = ROOT / "locales" / language / "nodeDefs.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(as_text(translated(english, memory)), encoding="utf-8")
        faults += [f"{language} lacks: {text}" for text in sorted(wanted - memory.keys())]
        faults += [f"{language} translates what no node says: {text}" for text in sorted(memory.keys() - wanted)]
    return faults


if __name__ == "__main__":
    sys.exit("\n".join(write_translated()) or None)
