"""The browser's gate and Python's give the same answers: `node --test` on numbers that gate/thresholds.py made."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

from comfyui_apprentice.gate import thresholds
from playwright._impl._driver import compute_driver_executable

ROOT = Path(__file__).parents[2]


def node() -> str:
    """A Node.js: the machine's, or the one that Playwright brings."""
    return shutil.which("node") or str(compute_driver_executable()[0])


def cases() -> list[dict[str, Any]]:
    rng = random.Random(0)
    made = []
    for number in range(120):
        count = rng.choice([1, 2, 3, 8, 20])
        scores = [rng.choice([rng.random(), 0.5, math.nan]) if number % 3 == 0 else rng.random() for _ in range(count)]
        calibration = sorted(rng.random() for _ in range(50)) if rng.random() < 0.5 else None
        baselines = [rng.random() for _ in scores]
        share, k, gain, budget = rng.random(), rng.choice([0, 100, 100 * rng.random()]), rng.random() - 0.5, rng.uniform(0, 60)
        reference = calibration or [s for s in scores if math.isfinite(s)]
        gates = {
            "absolute": (share, thresholds.absolute(scores, share)),
            "worst share": (share, thresholds.worst_share(scores, share)),
            "budget": (budget, thresholds.budget(scores, budget, 4, 40)),
            "expected gain": (gain, thresholds.expected_gain(scores, baselines, gain)),
        }
        if reference:
            gates["percentile"] = (k, thresholds.percentile(scores, k, reference))
        for mode, (value, gate) in gates.items():
            if mode == "expected gain" and not reference:
                continue
            made.append({
                "mode": mode, "value": value, "scores": [s if math.isfinite(s) else None for s in scores], "baselines": baselines,
                "calibration": calibration, "costs": {"student": 4, "teacher": 40}, "accepted": list(gate.accepted),
            })  # fmt: skip
    return made


def test_the_boards_mathematics_agrees_with_the_gates(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    defaults = {mode: unit.default for mode, unit in thresholds.UNITS.items()}
    file.write_text(json.dumps({"gates": cases(), "defaults": defaults}), encoding="utf-8")
    files = sorted(str(path) for path in (ROOT / "tests" / "js").glob("*.test.js"))
    environment = {**os.environ, "APPRENTICE_GATE_CASES": str(file)}
    done = subprocess.run([node(), "--test", *files], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "# skipped 0" in done.stdout and "# pass 0" not in done.stdout
