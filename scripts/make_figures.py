"""Put the figures of ``benchmarks/results/adaptive.json`` into the README, between its two markers; a test holds them equal.

``apprentice bench adaptive --json benchmarks/results/adaptive.json --plot benchmarks/results/adaptive.png``, then this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "adaptive.json"
BEGIN, END = "<!-- figures: benchmarks/results/adaptive.json -->", "<!-- end of figures -->"
SHOWN = ("student only", "refine all", "random routing, regenerate", "adaptive refine", "adaptive regenerate", "best of")
WORDS = {
    "adaptive_minus_random": "adaptive minus random routing",
    "adaptive_minus_student": "adaptive minus student only",
    "adaptive_minus_teacher": "adaptive minus the teacher's best within the same cost",
    "adaptive_minus_best_of_n": "adaptive minus best of N drafts",
    "frechet_ratio_to_teacher": "Frechet distance, adaptive over that teacher",
    "nfe_ratio_at_equal_quality": "cost, adaptive over teacher at equal quality",
    "share_of_better_drafts": "share of drafts that beat the full teacher's picture",
}


def figures(results: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = ["| method | evaluations a picture | judge's score | 95 % |", "| --- | ---: | ---: | --- |"]
    for row in results["rows"]:
        if row["method"].startswith((*SHOWN, "teacher only")):
            lines.append(f"| {row['method']} | {row['NFE']:g} | {row['judge']:.2f} | {row['95 %']} |")
    lines += ["", "| figure | value | 95 % interval |", "| --- | ---: | --- |"]
    for name, words in WORDS.items():
        claim = results["claims"][name]
        lines.append(f"| {words} (`{name}`) | {claim['value']:.2f} | {claim['lo']:.2f} to {claim['hi']:.2f} |")
    return "\n".join(lines)


def filled(readme: str, results: dict[str, Any]) -> str:
    """``readme`` with the figures in their place."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{figures(results)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8"), json.loads(RESULTS.read_text())), encoding="utf-8")
