"""Write ``gate/prompts.txt``, the bundled prompts: things that the tiny world has seen. A test holds the two equal.

``python scripts/make_prompts.py``; the file ships because the world's recipe does not.
"""

from __future__ import annotations

import random
from pathlib import Path

from comfyui_apprentice.world.recipe.concepts import BACKGROUNDS, CONCEPTS, STYLES, Prompt, is_held_out

TARGET = Path(__file__).resolve().parents[1] / "gate" / "prompts.txt"
COUNT = 200


def bundled_prompts() -> list[str]:
    """Two hundred prompts: every concept, in a style and on a background that training showed, in a fixed order."""
    rng = random.Random(0)
    shuffled = rng.sample(sorted(CONCEPTS), len(CONCEPTS))
    prompts: dict[str, None] = {}
    while len(prompts) < COUNT:
        concept = shuffled[len(prompts) % len(shuffled)]
        style, background = rng.choice([(s, b) for s in STYLES for b in BACKGROUNDS if not is_held_out(concept, s, b)])
        prompts[Prompt(concept, style, background).text()] = None
    return list(prompts)


if __name__ == "__main__":
    TARGET.write_text("\n".join(bundled_prompts()) + "\n", encoding="utf-8")
