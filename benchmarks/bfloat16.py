"""What bfloat16 costs on this CPU, as it is and where oneDNN is kept from its newer instructions: why it is not always taken.

Every row has a process of its own, since oneDNN reads ``ONEDNN_MAX_CPU_ISA`` once. What is compared is the CPU time of one
call in bfloat16 (autocast) over the same call in float32, in turns, in one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..precision import autocast
from ..world.recipe.sampling import World, unit_noise
from .figures import Claim, Figures, print_table

CPUS = {"as it is": "", "AVX-512 without bfloat16": "AVX512_CORE", "AVX2": "AVX2"}
PICTURES = 8


def calls() -> dict[str, Callable[[], object]]:
    """What is timed: a matrix, a convolution, and the tiny world's U-Net."""
    rng, world = torch.Generator().manual_seed(0), World()
    linear, rows = nn.Linear(512, 512), torch.randn(256, 512, generator=rng)
    convolution, planes = nn.Conv2d(64, 64, 3, padding=1), torch.randn(PICTURES, 64, 16, 16, generator=rng)
    noise, context, sigma = unit_noise(PICTURES, 0), world.context(["panda"] * PICTURES), torch.full((PICTURES,), 5.0)
    return {
        "matrix": lambda: linear(rows),
        "convolution": lambda: convolution(planes),
        "U-Net": lambda: world.teacher(noise * 5, sigma, context),
    }


@torch.inference_mode()
def ratios(call: Callable[[], object], repeats: int) -> list[float]:
    """bfloat16 over float32, a pair of calls at a time, after one pair that warms up."""
    slower = []
    for _ in range(repeats + 1):
        taken = []
        for low in (True, False):
            start = time.process_time()
            with autocast(low):
                call()
            taken.append(max(time.process_time() - start, 1e-6))
        slower.append(taken[0] / taken[1])
    return slower[1:]


def run(quick: bool = False, say: Callable[[str], None] = print) -> Figures:
    """Measure, print the table and the claims."""
    repeats = 3 if quick else 9
    figures = Figures("bfloat16", {"repeats": repeats, "pictures": PICTURES, "threads": torch.get_num_threads()})
    for name, instructions in CPUS.items():
        say(name)
        limited = {"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {}
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(repeats), str(torch.get_num_threads())], env={**os.environ, **limited},
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
        slowdowns: dict[str, Any] = json.loads(done.stdout)
        row: dict[str, Any] = {"CPU": name}
        for what, values in slowdowns.items():
            claim = Claim(float(np.median(values)), min(values), max(values))
            row[what] = f"{claim.value:.2f} ({claim.lo:.2f} to {claim.hi:.2f})"
            figures.claims[f"bfloat16_{what.lower().replace('-', '')}_{(instructions or 'here').lower()}"] = claim
        figures.rows.append(row)
    print("CPU time in bfloat16 over float32, median and range:")
    print_table(figures.rows)
    return figures


def main() -> None:
    """``python -m comfyui_apprentice.benchmarks.bfloat16 REPEATS THREADS``: one row, as JSON."""
    torch.set_num_threads(int(sys.argv[2]))
    slowdowns = {name: ratios(call, int(sys.argv[1])) for name, call in calls().items()}
    print(json.dumps(slowdowns))


if __name__ == "__main__":
    main()
