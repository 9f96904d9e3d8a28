"""Many runs in one ComfyUI: does it stay as it was? ``python tests/soak.py --runs 1000``.

Runs are adaptive ones of the tiny world with random seeds, prompts, batches, thresholds and strategies; some are cancelled, some
fail on purpose, some train, some compare oracles. Looked at between them: resident memory, open files, threads, temporary
files, and a reference picture, which must be the same to the bit.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import torch
from comfyui_apprentice.benchmarks.figures import Claim, Figures, print_table
from comfyui_apprentice.world.recipe.concepts import held_out_prompts
from harness import Comfy, Graph, GraphError, comfyui
from integration.test_distill import SETTINGS as DISTIL
from integration.test_finetune_nodes import SETTINGS as TUNE
from integration.worlds import World

THRESHOLDS = {
    "worst share": (0.0, 1.0), "absolute": (10.0, 30.0), "percentile": (0.0, 100.0), "budget": (2.0, 8.0), "running": (0.1, 0.9),
}  # fmt: skip
PROMPTS = [prompt.text() for prompt in held_out_prompts()][:200]
WARM = 0.1  # part of the runs after which memory is looked at: until then what is loaded once is loaded


def adaptive(rng: random.Random) -> Graph:
    """One run as an artist might queue it."""
    world = World(rng.sample(PROMPTS, rng.randint(1, 6)), oracle="world")
    threshold = rng.choice(list(THRESHOLDS))
    world.sampler(
        "soak", seed=rng.randrange(2**32), threshold=threshold, value=round(rng.uniform(*THRESHOLDS[threshold]), 2),
        strategy=rng.choice(["refine", "regenerate"]), rollback=round(rng.random(), 2), teacher_steps=rng.randint(1, 8),
        sampler_name=rng.choice(["euler", "dpmpp_2m", "euler_ancestral"]),
    )  # fmt: skip
    return world.g


def failing(rng: random.Random) -> Graph:
    """One that ends in an error, before or while it works."""
    graph = adaptive(rng)
    changes: dict[str, Any] = rng.choice([{"rollback": float("nan")}, {"threshold": "none such"}, {"vae": ["tiny", 0]}])
    graph.nodes["soak"]["inputs"].update(changes)
    return graph


def judged(rng: random.Random) -> Graph:
    """The single nodes, and another look at what they kept."""
    world = World(rng.sample(PROMPTS, 3), oracle="world")
    world.modular("judged", threshold="worst share", value=0.5, seed=rng.randrange(2**32))
    score = world.g.add("ApprenticeScore", "score", oracle=world.oracle, images=["judged_keep", 1], prompt=world.list)
    world.g.add("PreviewAny", "shown", source=score[1])
    return world.g


def training(rng: random.Random, number: int) -> Graph:
    """Two steps of SiD, or of fine-tuning."""
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    if rng.random() < 0.5:
        made = {**DISTIL, "pictures": 4, "batch_size": 2, "first_seed": number, "name": f"soak {number}"}
        g.add("ApprenticeSiDDistill", "train", model=world[0], clip=world[2], **made)
    else:
        tuned = {**TUNE, "updates": 2, "first_seed": number, "name": f"soak {number}"}
        g.add("ApprenticeRewardFinetune", "train", model=world[0], clip=world[2], vae=world[3], oracle=world[4], **tuned)
    return g


class Soak:
    """The runs, and what was seen between them."""

    def __init__(self, comfy: Comfy, seed: int) -> None:
        self.comfy, self.rng = comfy, random.Random(seed)
        self.process = next(p for p in psutil.Process().children() if "main.py" in " ".join(p.cmdline()))
        self.counts: Counter[str] = Counter()
        self.seen: list[dict[str, float]] = []
        self.reference = self.draw_reference()

    def draw_reference(self) -> torch.Tensor:
        """Always the same pictures."""
        world = World(["red heart on blue", "pizza", "panda face on yellow"], oracle="world")
        world.sampler("reference", threshold="worst share", value=0.5, seed=1)
        self.comfy.run(world.g)
        return self.comfy.tensors("reference")["image"]

    def one(self, number: int) -> None:
        """A run of some kind."""
        chance = self.rng.random()
        if chance < 0.03:
            self.go("trained", training(self.rng, number))
        elif chance < 0.10:
            self.go("judged", judged(self.rng))
        elif chance < 0.18:
            self.go("failed", failing(self.rng))
        elif chance < 0.28:
            self.cancel(adaptive(self.rng))
        else:
            self.go("adaptive", adaptive(self.rng))

    def go(self, kind: str, graph: Graph) -> None:
        """Run it; only what shall fail may."""
        try:
            self.comfy.run(graph)
            if kind == "failed":
                raise RuntimeError("A run that had to fail succeeded.")
        except GraphError as error:
            if kind != "failed":
                raise RuntimeError(f"A run failed: {error}\n{graph.nodes}") from error
        self.counts[kind] += 1

    def cancel(self, graph: Graph) -> None:
        """Press cancel at some time; it may be over by then."""
        press = threading.Timer(self.rng.uniform(0, 0.5), lambda: requests.post(f"{self.comfy.url}/interrupt", timeout=60))
        press.start()
        try:
            self.comfy.run(graph)
            self.counts["cancelled too late"] += 1
        except GraphError as error:
            if "interrupted" not in str(error):
                raise RuntimeError(f"A cancelled run failed: {error}") from error
            self.counts["cancelled"] += 1
        finally:
            press.join()

    def look(self, number: int) -> None:
        """Note what the process holds, and draw the reference again; ComfyUI's own history of ten thousand runs is cleared."""
        requests.post(f"{self.comfy.url}/history", json={"clear": True}, timeout=60)
        same = torch.equal(self.draw_reference(), self.reference)
        self.seen.append({
            "runs": number, "MB": self.process.memory_info().rss / 1e6, "files": self.process.num_fds(),
            "threads": self.process.num_threads(), "parts": len(list(self.comfy.base.rglob("*.part"))), "same": same,
        })  # fmt: skip
        print("  ".join(f"{name} {value:.0f}" for name, value in self.seen[-1].items()), flush=True)


def slope(seen: list[dict[str, float]]) -> Claim:
    """MB of resident memory a thousand runs, by least squares once all is loaded, with the line's 95 % interval."""
    from scipy.stats import linregress, t

    warm = [s for s in seen if s["runs"] >= WARM * seen[-1]["runs"]]
    line = linregress([s["runs"] / 1000 for s in warm], [s["MB"] for s in warm])
    half = float(t.ppf(0.975, max(len(warm) - 2, 1)) * line.stderr)
    return Claim(float(line.slope), float(line.slope) - half, float(line.slope) + half)


def main() -> None:
    """Run, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--every", type=int, default=20, help="runs between two looks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    asked = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, comfyui(Path(folder)) as comfy:
        soak = Soak(comfy, asked.seed)
        soak.look(0)
        for number in range(1, asked.runs + 1):
            soak.one(number)
            if number % asked.every == 0:
                soak.look(number)
    figures = Figures("soak", {"runs": asked.runs, "seed": asked.seed})
    warm = [s for s in soak.seen if s["runs"] >= WARM * asked.runs]
    for name in ("MB", "files", "threads", "parts"):
        values = np.array([s[name] for s in warm])
        figures.rows.append({"what": name, "first": values[0], "least": values.min(), "most": values.max(), "last": values[-1]})
    figures.claims["mb_per_thousand_runs"] = slope(soak.seen)
    figures.findings = {"kinds": dict(soak.counts), "the same": sum(s["same"] for s in soak.seen), "looks": len(soak.seen)}
    print_table(figures.rows)
    print(f"MB a thousand runs: {figures.claims['mb_per_thousand_runs']}", *figures.findings.items(), sep="\n")
    print(f"{time.monotonic() - begun:.0f} s")
    if asked.json:
        figures.save(asked.json)
    if not all(s["same"] for s in soak.seen):
        raise SystemExit("The reference picture changed.")


if __name__ == "__main__":
    main()
