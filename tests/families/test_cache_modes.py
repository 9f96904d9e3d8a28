"""Nothing runs twice, whatever ComfyUI remembers while a prompt runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import execution
import pytest
from comfy.cli_args import args
from comfyui_apprentice.oracles.tiny import TinyWorldOracle
from families import executing
from families.executing import COUNTS, Keep
from torch import Tensor

executing.register()
SETTINGS = {
    "seed": 7, "preset": "tiny-world", "steps": 2, "cfg": 1.0, "denoise": 1.0, "threshold": "worst share", "strategy": "refine",
    "rollback": 0.6, "teacher_steps": 4, "teacher_cfg": 2.0, "sampler_name": "euler", "scheduler": "karras", "margin": -1e6,
}  # fmt: skip

MODES = ["CLASSIC", "LRU", "RAM_PRESSURE", "NONE"]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(value: float, all_in_one: bool, seed: int = 7) -> dict[str, Any]:
    """The tiny world, student and teacher counted, wired by hand or as the node that expands."""
    g = {
        "tiny": node("ApprenticeTinyWorld", student="consistency"),
        "teacher": node("CountModel", model=["tiny", 0], name="teacher"),
        "student": node("CountModel", model=["tiny", 1], name="student"),
        "lines": node("ApprenticePrompts", clip=["tiny", 2], text="glossy red heart on blue\nflat cat face on yellow"),
        "empty": node("CLIPTextEncode", clip=["tiny", 2], text=""),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=2),
        "kept": node("Keep", name="verdict", value=["end", 2]),
    }
    links = {"positive": ["lines", 0], "negative": ["empty", 0]}
    settings = {**SETTINGS, "seed": seed}
    if all_in_one:
        g["end"] = node(
            "ApprenticeSampler", student=["student", 0], teacher=["teacher", 0], vae=["tiny", 3], oracle=["tiny", 4],
            prompt=["lines", 1], latent_image=["latent", 0], value=value, **links, **settings,
        )  # fmt: skip
        return g
    pick = lambda *names: {name: settings[name] for name in names}  # noqa: E731
    g["drafts"] = node(
        "ApprenticeStudentSampler", model=["student", 0], latent_image=["latent", 0], **links,
        **pick("seed", "preset", "steps", "cfg", "denoise"),
    )  # fmt: skip
    g["looked"] = node("VAEDecode", samples=["drafts", 0], vae=["tiny", 3])
    g["judge"] = node(
        "ApprenticeJudge", oracle=["tiny", 4], images=["looked", 0], prompt=["lines", 1], drafts=["drafts", 0], value=value,
        **pick("threshold"),
    )  # fmt: skip
    g["improved"] = node(
        "ApprenticeTeacher", verdict=["judge", 0], drafts=["drafts", 0], model=["teacher", 0], seed=8, steps=4, cfg=2.0, **links,
        **pick("strategy", "rollback", "sampler_name", "scheduler"),
    )  # fmt: skip
    g["end"] = node(
        "ApprenticeKeepBetter", oracle=["tiny", 4], verdict=["judge", 0], drafts=["drafts", 0], improved=["improved", 0],
        draft_images=["looked", 0], improved_images=["decoded", 0], **pick("margin"),
    )  # fmt: skip
    g["decoded"] = node("VAEDecode", samples=["improved", 0], vae=["tiny", 3])
    return g


@pytest.mark.parametrize("all_in_one", [False, True], ids=["wired", "all in one"])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_drawn_or_judged_twice_and_the_cost_is_told(
    mode: str, all_in_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAM pressure with a room that no machine has: everything is forgotten as soon as it may be."""
    monkeypatch.setattr(args, "cache_none", mode == "NONE")
    monkeypatch.setattr("gc.collect", lambda *_: 0)  # ComfyUI does that before it forgets; slow
    reward = TinyWorldOracle.reward

    def counted(self: Any, images: Tensor, prompts: list[str]) -> Tensor:
        COUNTS["oracle"] += len(images)
        return reward(self, images, prompts)

    monkeypatch.setattr(TinyWorldOracle, "reward", counted)
    COUNTS.clear()
    seed = 2 * MODES.index(mode) + all_in_one  # scores are remembered: pictures that no other case has drawn
    ran = executing.run(graph(0.5, all_in_one, seed), getattr(execution.CacheType, mode), lru=1, ram=1e6)
    assert COUNTS["student"] + COUNTS["teacher"] == sum(j.nfe for j in Keep.kept["verdict"][0])
    assert COUNTS["student"] == 4 and COUNTS["teacher"] > 0
    assert COUNTS["oracle"] == 3  # of two drafts the worse is drawn again
    twice = {name for name, count in Counter(ran).items() if count > 1}
    # What only loads and encodes may be asked for again, and a node that asks late or expands is entered again.
    assert twice <= {"tiny", "student", "teacher", "lines", "empty", "end", "improved", "end.0.0.4", "end.0.0.6"}


@pytest.mark.parametrize("mode", ["CLASSIC", "NONE"])
def test_without_rejects_the_teacher_is_not_loaded_in_any_mode(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(args, "cache_none", mode == "NONE")
    for all_in_one in (False, True):
        ran = executing.run(graph(0.0, all_in_one), getattr(execution.CacheType, mode))
        assert "teacher" not in ran
