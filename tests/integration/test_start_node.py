"""Tilted Start in a real ComfyUI: the noise is the stock one of the seed it names, and the best draft's where alpha is small."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from harness import Comfy, Graph, GraphError, Node

ONCE: dict[str, Any] = {"preset": "tiny-world", "steps": 1, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "normal"}


def tilted(g: Graph, batch: int = 3, **changes: Any) -> tuple[Node, Node, Node, Node]:
    """The node on three prompts; world, prompts and latent beside it."""
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    lines = g.add("ApprenticePrompts", "lines", clip=world[2], text="panda on yellow\npizza on blue\nred heart on white")
    latent = g.add("EmptyLatentImage", "latent", width=64, height=64, batch_size=batch)
    inputs = {
        "model": world[1], "positive": lines[0], "negative": lines[0], "latent_image": latent, "vae": world[3],
        "oracle": world[4], "prompt": lines[1], "candidates": 4, "alpha": 1e-4, "seed": 2**64 - 2, **ONCE,
    }  # fmt: skip
    return g.add("ApprenticeTiltedStart", "tilted", **{**inputs, **changes}), world, lines, latent


def advanced(g: Graph, noise: Any, world: Node, lines: Node, latent: Any, name: str = "drawn") -> None:
    guider = g.add("CFGGuider", model=world[0], positive=lines[0], negative=lines[0], cfg=1.0)
    sampler = g.add("KSamplerSelect", sampler_name="euler")
    sigmas = g.add("BasicScheduler", model=world[0], scheduler="karras", steps=3, denoise=1.0)
    drawn = g.add("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent)
    g.add("TestSave", f"save {name}", name=name, latent=drawn)


def rows_of(report: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if re.match(r"\| \d", line)]


def test_a_picture_starts_from_the_stock_noise_of_the_seed_that_its_draft_was_best_with(comfy: Comfy) -> None:
    g = Graph()
    made, world, lines, latent = tilted(g)
    advanced(g, made[0], world, lines, latent)
    g.add("TestSave", "save report", name="report", text=made[1])
    report = comfy.run(g).outputs["save report"]["text"][0]
    drawn, rows = comfy.tensors("drawn")["latent"], rows_of(report)
    assert len(rows) == 3 and all(row[2] == row[4] for row in rows), "the best draft's noise was not taken"
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    lines = g.add("ApprenticePrompts", "lines", clip=world[2], text="panda on yellow\npizza on blue\nred heart on white")
    latent = g.add("EmptyLatentImage", "latent", width=64, height=64, batch_size=3)
    for i, row in enumerate(rows):
        stock = g.add(
            "KSampler", model=world[0], positive=lines[0], negative=lines[0], latent_image=latent, seed=int(row[1]), steps=3,
            cfg=1.0, sampler_name="euler", scheduler="karras", denoise=1.0,
        )  # fmt: skip
        g.add("TestSave", f"save {i}", name=f"stock {i}", latent=stock)
    comfy.run(g)
    for i in range(3):
        assert torch.equal(comfy.tensors(f"stock {i}")["latent"][i], drawn[i])


def test_a_large_alpha_picks_blindly_and_the_report_says_how_many_count(comfy: Comfy) -> None:
    g = Graph()
    made, *_ = tilted(g, alpha=1e6)
    g.add("TestSave", "save report", name="report", text=made[1])
    rows = rows_of(comfy.run(g).outputs["save report"]["text"][0])
    assert all(row[5] == "4.0 of 4" for row in rows)


def test_noise_of_another_batch_is_refused(comfy: Comfy) -> None:
    g = Graph()
    made, world, lines, _latent = tilted(g)
    other = g.add("EmptyLatentImage", "other", width=64, height=128, batch_size=3)
    advanced(g, made[0], world, lines, other)
    with pytest.raises(GraphError, match="connect the same empty latent to both"):
        comfy.run(g)


def test_as_many_prompts_as_pictures_are_wanted(comfy: Comfy) -> None:
    g = Graph()
    made, *_ = tilted(g, batch=2)
    g.add("TestSave", "save report", name="report", text=made[1])
    with pytest.raises(GraphError, match="3 prompts"):
        comfy.run(g)
