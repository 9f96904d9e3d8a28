"""Put the figures of ``benchmarks/results/*.json`` and the table of model files into the README; a test holds them equal.

``apprentice bench NAME --json benchmarks/results/NAME.json --plot benchmarks/results/NAME.png``, then this.
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


def oracle_figures(results: dict[str, Any]) -> str:
    """Speed and memory of the oracles, and what the thresholds make of a good and a bad one."""
    lines = [
        "| oracle (base size) | batch | ours, scores a second | ratio to the authors' path | memory of scoring, ours / theirs |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for r in results["rows"]:
        memory = f"{r['ours (MiB)']} / {r['reference (MiB)']} MiB"
        speed = f"{r['ours (scores/s)']:.1f} | {r['ratio']:.2f} ({r['spread']})"
        lines.append(f"| {r['oracle']} | {r['batch']} | {speed} | {memory} |")
    shown = (0.65, 0.85, 1.0)
    lines += ["", "| threshold | " + " | ".join(f"gain at accuracy {a:g} | to the teacher" for a in shown) + " |"]
    lines.append("| --- |" + " ---: | ---: |" * len(shown))
    dial = results["findings"]["thresholds"]
    for mode in dict.fromkeys(r["threshold"] for r in dial):
        of_mode = [next(r for r in dial if r["threshold"] == mode and r["accuracy"] == a) for a in shown]
        cells = [f"{r['gain (judge)']:.2f} | {r['share to the teacher']:.0%}" for r in of_mode]
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    claim = results["claims"]["fast_look_rank_correlation"]
    lines += ["", f"Rank correlation of scores on the linear preview with those on the full picture "
              f"(`fast_look_rank_correlation`): {claim['value']:.2f} ({claim['lo']:.2f} to {claim['hi']:.2f})."]  # fmt: skip
    return "\n".join(lines)


SID_WORDS = {
    "sid_frechet_ratio": "Frechet distance, SiD in one step over the teacher at its best",
    "sid_judge_difference": "judge's score, SiD in one step minus that teacher",
    "sid_diversity_ratio": "diversity, SiD in one step over that teacher",
    "sid_cpu_seconds_per_image": "CPU seconds a picture of training (32x32, 3.5 M parameters, float32, one thread)",
    "sid_peak_gb": "peak memory of that, GB",
}


def sid_figures(results: dict[str, Any], speed: dict[str, Any]) -> str:
    """The students beside the teacher, and what a training step costs."""
    lines = ["| network | steps | guidance | evaluations | Frechet | judge's score | 95 % | diversity |",
             "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |"]  # fmt: skip
    for r in results["rows"]:
        cells = f"{r['NFE']} | {r['Frechet']:.4f} | {r['judge']:.2f} | {r['95 %']} | {r['diversity']:.3f}"
        lines.append(f"| {r['network']} | {r['steps']} | {r['guidance']} | {cells} |")
    lines += ["", "| figure | value | 95 % interval |", "| --- | ---: | --- |"]
    for name, words in SID_WORDS.items():
        claim = (results["claims"] | speed["claims"])[name]
        lines.append(f"| {words} (`{name}`) | {claim['value']:.2f} | {claim['lo']:.2f} to {claim['hi']:.2f} |")
    return "\n".join(lines)


def bfloat16_figures(results: dict[str, Any]) -> str:
    """What bfloat16 costs on several CPUs."""
    names = ("CPU", "matrix", "convolution", "U-Net")
    return "\n".join(_table([{name: row[name] for name in names} for row in results["rows"]], "---"))


def _table(rows: list[dict[str, Any]], rule: str = "---:") -> list[str]:
    """Rows with the same keys; ``rule`` is what all columns but the first are ruled with."""
    lines = ["| " + " | ".join(rows[0]) + " |", "| --- |" + f" {rule} |" * (len(rows[0]) - 1)]
    return lines + ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]


def family_figures(results: dict[str, Any], newest: dict[str, Any]) -> str:
    """Which checks hold in which family, and what is different in the newest ComfyUI that was tried."""
    names = list(results["rows"][0])
    others = [
        f"{row['family']}, {name}: {there[name]}"
        for row, there in zip(results["rows"], newest["rows"], strict=True) for name in names if row[name] != there[name]
    ]  # fmt: skip
    but = f", but for {'; '.join(others)}" if others else ""
    lines = _table(results["rows"], "---")
    return "\n".join([*lines, "", f"On ComfyUI {newest['settings']['comfyui']} every cell is the same{but}."])


def soak_figures(results: dict[str, Any]) -> str:
    """What one ComfyUI held between many runs."""
    rows = [{name: f"{value:.0f}" if name != "what" else value for name, value in row.items()} for row in results["rows"]]
    kinds, slope = results["findings"]["kinds"], results["claims"]["mb_per_thousand_runs"]
    runs = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda pair: -pair[1]))
    return "\n".join([
        *_table(rows), "",
        f"{results['settings']['runs']:,} runs ({runs}); {slope['value']:.0f} MB a thousand runs ({slope['lo']:.0f} to "
        f"{slope['hi']:.0f}); the reference picture was the same to the bit at {results['findings']['the same']} of "
        f"{results['findings']['looks']} looks.",
    ])  # fmt: skip


PROMPTKD_WORDS = {
    "base_gain": "base names, distilled minus zero-shot, points",
    "novel_gain": "novel names, distilled minus zero-shot, points",
    "same_decisions": "part of the tiny world's drafts on which the critic as a gate decides as the large CLIP does",
    "speed_ratio": "pictures a second, critic over large CLIP (CPU time)",
    "hook_cost": "time that the prompt hooks add to a ViT-B/16",
}


def promptkd_figures(results: dict[str, Any]) -> str:
    """Accuracies, the claims, and what the critic does as a gate."""
    lines = ["| model | base | novel | harmonic mean |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {r['model']} | {r['base']} | {r['novel']} | {r['harmonic mean']} |" for r in results["rows"]]
    lines += ["", "| figure | value | 95 % interval |", "| --- | ---: | --- |"]
    for name, words in PROMPTKD_WORDS.items():
        claim, places = results["claims"][name], 3 if name == "hook_cost" else 2
        value, low, high = (f"{claim[key]:.{places}f}" for key in ("value", "lo", "hi"))
        lines.append(f"| {words} (`{name}`) | {value} | {low} to {high} |")
    lines += ["", "| gate, half of the drafts to the teacher | judge's score | gain over the drafts | decides as the large |",
              "| --- | ---: | --- | ---: |"]  # fmt: skip
    for r in results["findings"]["gates"]:
        quality, alike = r["judge's score"], r["decides as the large one"]
        lines.append(f"| {r['gate']} | {quality:.2f} | {r['gain over the drafts']} | {alike:.0%} |")
    return "\n".join(lines)


CONTROL_WORDS = {
    "reward_gain": "score of the oracle that tuned, tuned minus before",
    "unseen_judge_gain": "score of the judge that nobody was tuned by, tuned minus before",
    "diversity_ratio": "diversity, tuned over before",
    "student_reward_gain": "the student tuned directly: score of the oracle that tuned, minus before",
    "student_unseen_judge_gain": "the same by the judge that nobody was tuned by",
    "student_diversity_ratio": "its diversity, tuned over before",
    "start_reward_gain": "the teacher from promising noise (alpha 0.3): score of the oracle that picked, minus any noise",
    "start_unseen_judge_gain": "the same by the judge that picked nothing",
    "start_diversity_ratio": "its diversity, over any noise",
    "loop_quality_gain": "judge's score of adaptive collaboration at equal evaluations, with the new student minus the old",
    "loop_reject_share_change": "part of the drafts below the old median, new student minus old",
    "toy_w1": "1-D mixture, KL, alpha 0.5: distance W1 to the exact law",
    "toy_cpu_seconds": "CPU seconds of that",
}


def control_figures(results: dict[str, Any], toy: dict[str, Any], memory: dict[str, Any]) -> str:
    """The tiny world's laws, the loop, the toy, memory, and the claims."""
    findings = results["findings"]
    tables = {
        "Networks tuned, on prompts that no training showed; gains and ratios against what they were:": results["rows"],
        "The loop closed, student judged, tuned, and drafting again:": findings["loop"],
        "The start tuned instead of the network (the teacher, guided, without fresh noise):": findings["start"],
        "The 1-D mixture against its exact law, alpha 0.5:": toy["rows"],
        "What is held for backward passes, on the tiny world's U-Net (LoRA of rank 16, four pictures):": memory["rows"],
    }
    lines = [line for caption, rows in tables.items() for line in (caption, "", *_table(rows), "")][:-1]
    lines += ["", "| figure | value | 95 % interval |", "| --- | ---: | --- |"]
    for name, words in CONTROL_WORDS.items():
        claim = (results["claims"] | toy["claims"])[name]
        lines.append(f"| {words} (`{name}`) | {claim['value']:.3f} | {claim['lo']:.3f} to {claim['hi']:.3f} |")
    return "\n".join(lines)


def _between(text: str, begin: str, end: str, new: str) -> str:
    before, rest = text.split(begin)
    return f"{before}{begin}\n{new}\n{end}{rest.split(end, 1)[1]}"


def filled(readme: str) -> str:
    """``readme`` with the figures and the table of files in their places."""
    from comfyui_apprentice.weights.catalogue import markdown_table

    read = lambda name: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())  # noqa: E731
    readme = _between(readme, BEGIN, END, figures(read("adaptive")))
    begin, end = "<!-- figures: benchmarks/results/oracles.json -->", "<!-- end of oracles -->"
    readme = _between(readme, begin, end, oracle_figures(read("oracles")))
    begin, end = "<!-- figures: benchmarks/results/promptkd.json -->", "<!-- end of promptkd -->"
    readme = _between(readme, begin, end, promptkd_figures(read("promptkd")))
    begin, end = "<!-- figures: benchmarks/results/control.json -->", "<!-- end of control -->"
    readme = _between(readme, begin, end, control_figures(read("control"), read("control-toy"), read("control-memory")))
    sid = sid_figures(read("sid"), read("sid-speed"))
    readme = _between(readme, "<!-- figures: benchmarks/results/sid.json -->", "<!-- end of sid -->", sid)
    begin, end = "<!-- figures: benchmarks/results/bfloat16.json -->", "<!-- end of bfloat16 -->"
    readme = _between(readme, begin, end, bfloat16_figures(read("bfloat16")))
    begin, end = "<!-- figures: benchmarks/results/soak.json -->", "<!-- end of soak -->"
    readme = _between(readme, begin, end, soak_figures(read("soak")))
    begin, end = "<!-- figures: benchmarks/results/families.json -->", "<!-- end of families -->"
    readme = _between(readme, begin, end, family_figures(read("families"), read("families-newest")))
    return _between(readme, "<!-- files: weights/catalogue.py -->", "<!-- end of files -->", markdown_table())


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
