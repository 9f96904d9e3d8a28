"""A saved picture is drawn again from what it carries, to the bit, on the same machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import requests
from harness import Comfy, Run
from PIL import Image
from worlds import World


def pictures(comfy: Comfy, run: Run) -> list[tuple[np.ndarray[Any, Any], dict[str, Any], dict[str, Any]]]:
    """Pixels, prompt and story of each saved PNG."""
    rows = []
    for entry in run.outputs["png"]["images"]:
        with Image.open(Path(comfy.base) / "output" / entry["subfolder"] / entry["filename"]) as picture:
            rows.append((np.asarray(picture), json.loads(picture.info["prompt"]), json.loads(picture.info["apprentice"])))
    return rows


def test_a_picture_redrawn_from_its_own_metadata_is_bit_identical(comfy: Comfy) -> None:
    world = World(["red heart on blue", "pizza on green", "crab", "blue square"], oracle="world")
    node = world.sampler("again", threshold="worst share", value=0.5, margin=-100.0, seed=2**53 + 1, strategy="refine")
    world.g.add("ApprenticeSaveImages", "png", images=node[1], verdict=node[2], filename_prefix="apprentice/redrawn")
    first = pictures(comfy, comfy.run(world.g))
    assert sorted(story["decision"] for *_, story in first) == ["accepted", "accepted", "improved", "improved"]
    requests.post(f"{comfy.url}/free", json={"unload_models": True, "free_memory": True}, timeout=60)
    run = comfy.run(first[3][1])  # the graph that the last picture carries, with nothing in the cache
    assert len(run.executed) >= len(world.g.nodes), "something came from the cache"
    for (pixels, _, story), (again, _, repeated) in zip(first, pictures(comfy, run), strict=True):
        assert np.array_equal(pixels, again) and story == repeated
    assert len({pixels.tobytes() for pixels, *_ in first}) == 4
    for *_, story in first:
        improved = story["decision"] == "improved"
        names = [story[key] for key in ("student_fingerprint", "teacher_fingerprint", "oracle_fingerprint")]
        assert all(len(name) == 16 for name in names) and len(set(names)) == 3
        assert story["seed"] == 2**53 + 1 and (story["draft_score"] is not None) == improved
