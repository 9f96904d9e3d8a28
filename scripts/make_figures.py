"""Put the figures of ``benchmarks/results/*.json`` and the table of model files into the docs, and draw the README's plots.

``apprentice bench NAME --json benchmarks/results/NAME.json --plot benchmarks/results/NAME.png``, then this. Between a marker
``<!-- figures: … -->`` and its ``<!-- end of … -->`` nothing is written by hand; a test holds tables and plots equal to results.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
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


def picture_figures(results: dict[str, Any]) -> str:
    """Whether oracles know a picture's prompt from another's."""
    lines = ["| oracle | own prompt over another's | own picture over another's |", "| --- | --- | --- |"]
    for row in results["rows"]:
        name = row["oracle"].lower().replace(" ", "_")
        claims = [results["claims"].get(f"own_{what}_{name}") for what in ("prompt", "picture")]
        cells = [f"{c['value']:.2f} ({c['lo']:.2f} to {c['hi']:.2f})" if c else "doesn't read it" for c in claims]
        lines.append(f"| {row['oracle']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cascade_figures(results: dict[str, Any]) -> str:
    """What a cascade saves, and what it gets wrong."""
    lines = ["| heavy oracle | rank correlation | band | asked about | decided otherwise |", "| --- | ---: | --- | --- | --- |"]
    for row in results["rows"]:
        key = f"{row['band']} {row['heavy oracle']}".replace(" ", "_")
        claims = [results["claims"][f"{what}_{key}"] for what in ("asked", "differing")]
        cells = [f"{c['value']:.1%} ({c['lo']:.1%} to {c['hi']:.1%})" for c in claims]
        lines.append(f"| {row['heavy oracle']} | {row['rank correlation']:.2f} | {row['band']} | " + " | ".join(cells) + " |")
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


EXPLORE_WORDS = {
    "explore_minus_best_of_n": "Explore minus the best fixed number of drafts over all sources, at equal cost",
    "explore_nfe_ratio_to_best_of_n": "cost at which Explore is as good as that, over that's cost",
    "explore_nfe_ratio_to_best_of_one_student": "the same against the best of 12 drafts of one student",
    "explore_without_variety_minus_adaptive": "Explore minus adaptive collaboration, at equal cost",
    "explore_minus_adaptive": "Explore with variety minus adaptive collaboration, at equal cost",
    "explore_diversity_to_adaptive": "diversity, Explore with variety over adaptive",
    "explore_frechet_to_adaptive": "Frechet distance, Explore with variety over adaptive",
    "far_explore_minus_best_of_n": "a teacher far ahead: Explore minus best of 12",
    "far_explore_minus_adaptive": "a teacher far ahead: Explore minus adaptive collaboration",
}


def explore_figures(results: dict[str, Any]) -> str:
    """Policies at equal cost, the same where the teacher is far ahead, and the claims."""
    lines: list[str] = []
    for rows in (results["rows"], results["findings"]["a teacher far ahead"]):
        shown = [
            {
                "policy": r["policy"], "evaluations": f"{r['NFE']:g}", "judge's score": f"{r['judge']:.2f}", "95 %": r["95 %"],
                "its own oracle's": f"{r['oracle']:.2f}", "diversity": f"{r['diversity']:.3f}",
            }
            for r in rows
        ]  # fmt: skip
        lines += ["", "With a student far behind its teacher:", ""] if lines else []
        lines += _table(shown)
    lines += ["", "| figure | value | 95 % interval |", "| --- | ---: | --- |"]
    for name, words in EXPLORE_WORDS.items():
        claim = results["claims"][name]
        lines.append(f"| {words} (`{name}`) | {claim['value']:.2f} | {claim['lo']:.2f} to {claim['hi']:.2f} |")
    return "\n".join(lines)


STYLE_WORDS = {
    "style_kept": "the look, SiD from the published student in two steps over the slow model",
    "style_judge_difference": "judge's score, that minus the slow model with the LoRA",
    "style_judge_over_habit": "judge's score, that minus the LoRA put on the student",
    "style_judge_over_cold": "judge's score, that minus SiD from the teacher",
    "warm_start_ratio": "pictures until 0.9 of the look is kept and the judge is as content as with the slow model, warm to cold",
}


def style_figures(results: dict[str, Any]) -> str:
    """Ways to draw a look fast, and the claims; one seed's have no interval."""
    lines = _table(results["rows"], "---")
    lines += ["", "| figure | value | 95 % interval |", "| --- | ---: | --- |"]
    for name, words in STYLE_WORDS.items():
        claim = results["claims"][name]
        within = "one seed" if claim["lo"] is None or math.isnan(claim["lo"]) else f"{claim['lo']:.3f} to {claim['hi']:.3f}"
        value = "not reached" if claim["value"] is None or math.isinf(claim["value"]) else f"{claim['value']:.3f}"
        lines.append(f"| {words} (`{name}`) | {value} | {within} |")
    return "\n".join(lines)


def student_figures(results: dict[str, Any]) -> str:
    """Each kind of student beside its teacher."""
    words = {"network": "student", "NFE": "evaluations", "one of each": "one of each, minus two of the better"}
    return "\n".join(_table([{words.get(name, name): value for name, value in row.items()} for row in results["rows"]], "---"))


def bfloat16_figures(results: dict[str, Any]) -> str:
    """What bfloat16 costs on several CPUs."""
    names = ("CPU", "matrix", "convolution", "U-Net")
    return "\n".join(_table([{name: row[name] for name in names} for row in results["rows"]], "---"))


def taste_figures(results: dict[str, Any]) -> str:
    """What each number of clicks teaches, and the mean over the artists."""
    alone, say = "published alone", "published oracle's say"
    rows = [{**row, alone: f"{row[alone]:.2f}", say: f"{row[say]:.0%}"} for row in results["rows"]]
    for count in dict.fromkeys(row["clicks"] for row in results["rows"]):
        both = [results["claims"][f"taste_{what}_{count}"] for what in ("accuracy", "gain")]
        shown = ["{value:.3f} [{lo:.3f}, {hi:.3f}]".format(**claim) for claim in both]
        rows.append(dict(zip(rows[0], ("all", count, shown[0], "", shown[1], ""), strict=True)))
    loras = results["findings"].get("LoRAs from clicks alone", [])
    caption = "LoRAs from clicks alone, without an oracle (gain in the artist's unit):"
    return "\n".join([*_table(rows, "---"), *(["", caption, "", *_table(loras, "---")] if loras else [])])


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
    "few_pictures_gain": "120 pictures, from words: harmonic mean of base and novel names, critic minus zero-shot small, points",
    "same_decisions": "part of the tiny world's drafts on which the critic, its tower taught, decides as the large CLIP",
    "cascade_same_decisions": "the same, where it asks the large CLIP about the drafts nearest to its threshold",
    "cascade_asked": "the share of drafts that it asks about",
    "large_gate_gain": "judge's score that the large CLIP gains as the gate",
    "gate_gain_lost": "the part of it that the critic in its place loses",
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
    heads = ("gate, half of the drafts to the teacher", "judge's score", "gain over the drafts", "decides as the large",
             "asking it about three in ten")  # fmt: skip
    lines += ["", f"| {' | '.join(heads)} |", "| --- | ---: | --- | ---: | ---: |"]
    for r in results["findings"]["gates"]:
        quality, alike = r["judge's score"], r["decides as the large one"]
        helped = r["asking it at 30%"]
        lines.append(f"| {r['gate']} | {quality:.2f} | {r['gain over the drafts']} | {alike:.0%} | {helped:.0%} |")
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
    "blackbox_reward_gain": "an oracle that only scores (DiffusionNFT): gain with the oracle that tuned",
    "blackbox_unseen_gain": "likewise, with the judge that nobody was tuned by",
    "blackbox_diversity_ratio": "likewise, variety over before",
    "blackbox_toy_w1": "1-D mixture, from scores alone, alpha 0.5: distance W1 to forward KL's exact law",
    "blackbox_over_path_kl": "likewise, its gain over path KL's, at equal evaluations",
}
TILTED_WORDS = {
    "tilted_student_gain": "SiD towards the tilted teacher: score of the judge that nobody was tuned by, minus plain SiD",
    "tilted_student_gain_over_teacher": "the same minus the teacher, guided, at 24 evaluations",
    "tilted_student_gain_over_distil_then_tune": "the same minus distil, then tune, at equal pictures",
    "tilted_student_gain_over_tune_then_distil": "the same minus tune, then distil, at equal pictures",
    "tilted_student_reward_gain": "score of the oracle that tuned, minus plain SiD",
    "tilted_student_variety": "its diversity, over plain SiD",
    "loop_quality_gain": "judge's score of adaptive collaboration at equal evaluations, tilted student minus shipped",
    "loop_reject_share_change": "part of the drafts below the shipped student's median, tilted minus shipped",
    "tilted_toy_w1": "1-D mixture, price 0.5: distance W1 of the tilted student to the exact law",
    "tilted_toy_std": "its standard deviation in the mode that the reward prefers",
}
"""Of ``bench control --tilted``, without and with ``--toy``, as far as they have been run."""


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
    claims = results["claims"] | toy["claims"]
    for name, words in CONTROL_WORDS.items():
        if (claim := claims.get(name)) is None:  # results of before there was this way
            continue
        lines.append(f"| {words} (`{name}`) | {claim['value']:.3f} | {claim['lo']:.3f} to {claim['hi']:.3f} |")
    return "\n".join([*lines, *_tilted_figures()])


def _tilted_figures() -> list[str]:
    captions = {
        "control-tilted": "SiD towards the tilted teacher, gains and ratios against plain SiD at equal pictures:",
        "control-tilted-toy": "The 1-D mixture by SiD towards the tilted teacher, price 0.5:",
    }
    found = {name: _read(name) for name in captions if (ROOT / "benchmarks" / "results" / f"{name}.json").exists()}
    lines = [line for name, result in found.items() for line in ("", captions[name], "", *_table(result["rows"]))]
    claims = {name: claim for result in found.values() for name, claim in result["claims"].items()}
    if claims:
        lines += ["", "| figure, of `bench control --tilted` | value | 95 % interval |", "| --- | ---: | --- |"]
    return lines + [
        f"| {TILTED_WORDS[name]} (`{name}`) | {claim['value']:.3f} | {claim['lo']:.3f} to {claim['hi']:.3f} |"
        for name, claim in claims.items()
    ]


def _read(name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return results


def _files() -> str:
    from comfyui_apprentice.weights.catalogue import markdown_table

    return markdown_table()


_FIGURES: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "adaptive": (figures, ("adaptive",)),
    "explore": (explore_figures, ("explore",)),
    "oracles": (oracle_figures, ("oracles",)),
    "cascade": (cascade_figures, ("cascade",)),
    "picture-oracles": (picture_figures, ("picture-oracles",)),
    "sid": (sid_figures, ("sid", "sid-speed")),
    "style": (style_figures, ("style",)),
    "students": (student_figures, ("students",)),
    "promptkd": (promptkd_figures, ("promptkd",)),
    "control": (control_figures, ("control", "control-toy", "control-memory")),
    "families": (family_figures, ("families", "families-newest")),
    "bfloat16": (bfloat16_figures, ("bfloat16",)),
    "taste": (taste_figures, ("taste",)),
    "soak": (soak_figures, ("soak",)),
}
"""Where it stands in ``docs/results.md`` -> what writes it, and from which results."""


def _between(text: str, begin: str, end: str, new: str) -> str:
    before, rest = text.split(begin)
    return f"{before}{begin}\n{new}\n{end}{rest.split(end, 1)[1]}"


def filled(name: str, text: str) -> str:
    """The text of ``docs/name`` with everything generated in its place."""
    if name == "models.md":
        return _between(text, "<!-- files: weights/catalogue.py -->", "<!-- end of files -->", _files())
    for table, (write, results) in _FIGURES.items():
        begin, end = f"<!-- figures: benchmarks/results/{table}.json -->", f"<!-- end of {table} -->"
        text = _between(text, begin, end, write(*map(_read, results)))
    return text


Points = dict[str, list[tuple[float, float]]]
"""Of a plot: name of a line or of a point -> (x, y)."""


def adaptive_points() -> Points:
    """Judge's score over network evaluations."""
    results = _read("adaptive")
    rows = {row["method"]: (row["NFE"], row["judge"]) for row in results["rows"]}
    sweep = results["findings"]["sweeps"]["regenerate, keep better"]
    teacher = [place for method, place in rows.items() if method.startswith("teacher only") and place[0] >= 14]
    alone = ("student only", "random routing, regenerate, keep better", "best of 6 drafts")
    lines = {"teacher only": teacher, "adaptive": [(at["nfe"], at["judge"]) for at in sweep]}
    return lines | {name: [rows[name]] for name in alone}


def sid_points() -> Points:
    """Frechet distance over network evaluations."""
    points: Points = {}
    for row in _read("sid")["rows"]:
        name = f"teacher, guidance {row['guidance']}" if row["network"] == "teacher" else f"{row['network']} student"
        if row["Frechet"] < 0.06:
            points.setdefault(name, []).append((row["NFE"], row["Frechet"]))
    return points


def promptkd_points() -> Points:
    """Accuracy on base and on novel names, a model each."""
    return {row["model"]: [(float(row[half].split()[0]), i) for i, half in enumerate(("base", "novel"))]
            for row in _read("promptkd")["rows"]}  # fmt: skip


def control_points() -> Points:
    """Variety kept over the gain by the judge that nobody was tuned by; the laws of KL that are best, and what tuning gave."""
    results = _read("control")
    start, laws = results["findings"]["optimal"]["start"], results["findings"]["optimal"]["laws"]["kl"]
    best = [(law["judge"] - start["judge"], law["diversity"] / start["diversity"]) for law in laws]
    points: Points = {"best law, KL": best}
    for row in results["rows"]:
        number = lambda key, row=row: float(row[key].split()[0])  # noqa: E731
        if number("gain"):
            points[row["law"]] = [(number("gain of it"), number("over before"))]
    return points


PLOTS: dict[str, tuple[Callable[[], Points], str, str]] = {
    "adaptive": (adaptive_points, "network evaluations a picture", "judge's score"),
    "sid": (sid_points, "network evaluations a picture", "Frechet distance (judge's features)"),
    "promptkd": (promptkd_points, "accuracy, %", ""),
    "control": (control_points, "gain by the unseen judge", "variety, over before"),
}
"""Name of ``docs/images/NAME.png`` -> its points, and what the axes are."""


def digest(points: Points) -> str:
    """Of what a plot shows; the picture carries it, so that a plot of other results is noticed."""
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()


def drawn(name: str) -> str:
    """The digest that the picture carries."""
    with Image.open(DOCS / "images" / f"{name}.png") as picture:
        return str(picture.info.get("points"))


def _bars(axes: Any, points: Points) -> None:
    for row, places in enumerate(reversed(points.values())):
        for value, novel in places:
            label = ("base names", "novel names")[int(novel)] if row == 0 else None
            axes.barh(row + 0.2 - 0.4 * novel, value, 0.38, color=("C0", "C1")[int(novel)], label=label)
    axes.set_yticks(range(len(points)), list(reversed(points)))
    axes.set_xlim(0, 80)


def _lines(axes: Any, points: Points) -> None:
    for name, places in points.items():
        style = "-" if len(places) > 8 else "o-" if len(places) > 1 else "o"
        axes.plot(*zip(*sorted(places), strict=True), style, label=name, markersize=4, linewidth=1.2)


def draw(name: str) -> None:
    """Draw ``docs/images/NAME.png``."""
    from matplotlib import pyplot

    of, across, up = PLOTS[name]
    points = of()
    figure, axes = pyplot.subplots(figsize=(5.6, 3.0), layout="constrained")
    (_bars if name == "promptkd" else _lines)(axes, points)
    if name == "sid":
        axes.set_xscale("log")
        axes.set_xticks(ticks := (1, 2, 5, 10, 20, 50), [str(tick) for tick in ticks])
    axes.set(xlabel=across, ylabel=up)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.savefig(DOCS / "images" / f"{name}.png", dpi=110, metadata={"points": digest(points)})
    pyplot.close(figure)


def main() -> None:
    """All tables and plots."""
    for name in ("results.md", "models.md"):
        path = DOCS / name
        path.write_text(filled(name, path.read_text(encoding="utf-8")), encoding="utf-8")
    for name in PLOTS:
        draw(name)


if __name__ == "__main__":
    main()
