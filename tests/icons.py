"""A few icons of the built-in domain as a folder of pictures."""

from __future__ import annotations

from pathlib import Path

from comfyui_apprentice.world.domain import domain_names, domain_pictures
from PIL import Image


def save_icons(base: Path) -> Path:
    """Six classes, four pictures each, in ``pictures/<class>``; and the list of their names, ``words.txt``."""
    pictures, labels = domain_pictures(train=True, backgrounds=1)
    names = domain_names()[:6]
    for i, name in enumerate(names):
        (base / "pictures" / name).mkdir(parents=True)
        for n, row in enumerate((labels == i).nonzero()[:4, 0].tolist()):
            Image.fromarray((pictures[row] * 255).byte().numpy()).save(base / "pictures" / name / f"{n}.png")
    (base / "words.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return base
