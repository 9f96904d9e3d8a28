"""The figure of ``apprentice bench fleet``: GPUs by policy, quality over GPUs, bursts, and what the ratio depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .figures import Figures

COLOURS = {"student": "#e0a030", "judge": "#6aa84f", "teacher": "#346eb4"}
SHORT = {
    "teacher only": "teacher only", "student only": "student only", "cascade, fixed threshold": "cascade, fixed",
    "cascade, running threshold": "cascade, running", "cascade, running threshold by load": "cascade, by load",
    "Explore": "Explore",
}  # fmt: skip
LINES = {
    "teacher_only": ("teacher only", "#555555", "-"), "cascade": ("cascade, fixed", "#d05030", "-"),
    "running_by_load": ("cascade, by load", "#346eb4", "-"),
    "cascade_twice_students": ("fixed, twice the students and judges", "#d05030", "--"),
    "running_by_load_twice_students": ("by load, twice the students and judges", "#346eb4", "--"),
}  # fmt: skip


def draw_plot(figures: Figures, path: Path) -> None:
    """Four panels."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, ((gpus, quality), (bursts, tornado)) = plt.subplots(2, 2, figsize=(12, 8.2), layout="constrained")
    pictures, deadline = figures.settings["pictures"] / 1e6, figures.settings["deadline"]
    figure.suptitle(f"{pictures:g} million pictures a day, 99 of 100 within {deadline:g} s; simulated, with assumed seconds")
    _gpus(gpus, figures)
    _quality(quality, figures)
    _bursts(bursts, figures)
    _tornado(tornado, figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _gpus(axis: Any, figures: Figures) -> None:
    """Stacked bars, the far student's below the near one's."""
    rows = figures.rows
    labels = [SHORT[row["policy"]] + (" (far)" if row["student"] == "far" else "") for row in rows]
    left = [0.0] * len(rows)
    for stage, colour in COLOURS.items():
        counts = [row[f"{stage} GPUs"] for row in rows]
        axis.barh(labels, counts, left=left, color=colour, label=stage)
        left = [a + b for a, b in zip(left, counts, strict=True)]
    for place, row in enumerate(rows):
        axis.annotate(f"{row['GPUs']:.0f}", (left[place], place), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize=8)  # fmt: skip
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * max(left))
    axis.set(xlabel="GPUs", title="GPUs that meet the deadline")
    axis.legend(fontsize=8, loc="lower right")


def _quality(axis: Any, figures: Figures) -> None:
    """Gain over the teacher by GPUs: the cascade's shares with a worse and worse oracle, and the other policies."""
    for world, style in (("near", "-"), ("far", "--")):
        points = figures.findings["by share"].get(world, [])
        for key, shade in zip([k for k in (points[0] if points else {}) if k.startswith("gain")], (1.0, 0.6, 0.3), strict=False):
            label = f"cascade, {world} student" if shade == 1 else None
            axis.plot([p["gpus"] for p in points], [p[key] for p in points], style, color="#d05030", alpha=shade, label=label,
                      marker=".", lw=1.4)  # fmt: skip
            noise = key.split(", ")[1] if world == "far" else {1.0: "noise 0", 0.3: "noise 2"}.get(shade, "")
            axis.annotate(noise, (points[-1]["gpus"], points[-1][key]), xytext=(6, {"noise 0": 1, "noise 2": -7}.get(noise, -3)),
                          textcoords="offset points", fontsize=7, color="#888888")  # fmt: skip
    for row in figures.rows:
        if row["policy"] in ("student only", "Explore", "teacher only"):
            mark = {"student only": "s", "Explore": "o", "teacher only": "^"}[row["policy"]]
            far = row["student"] == "far"
            axis.plot(row["GPUs"], row["judge, minus the teacher's"], mark, color="#346eb4", mfc="none" if far else "#346eb4",
                      label=row["policy"] + (", far student" if far else ""), ls="")  # fmt: skip
    axis.axhline(0, color="0.8", lw=1, zorder=0)
    axis.set_xlim(-60, 1.15 * axis.get_xlim()[1])
    axis.set(xlabel="GPUs", ylabel="judge's score minus the teacher's")
    axis.set_title("Quality over GPUs: shares of 0.1 to 0.8")
    axis.legend(fontsize=7.5, loc="lower right")
    axis.grid(alpha=0.3)


def _bursts(axis: Any, figures: Figures) -> None:
    """Late pictures by the height of bursts that the fleet wasn't made for."""
    for line, (label, colour, style) in LINES.items():
        points = [p for p in figures.findings["in bursts"] if p["line"] == line]
        places, late = [p["burst"] for p in points], [100 * p["late value"] for p in points]
        axis.plot(places, late, "o" + style, color=colour, label=label, ms=4)
        ends = [[100 * p[f"late {end}"] for p in points] for end in ("lo", "hi")]
        axis.fill_between(places, *ends, color=colour, alpha=0.1, lw=0)
    axis.axhline(1, color="0.6", lw=1, ls=":")
    axis.set_ylim(0, 110 * max(p["late value"] for p in figures.findings["in bursts"]))
    axis.set(xlabel="height of bursts (times the usual load)", ylabel="late pictures (%)")
    axis.set_title(f"Higher bursts than the {figures.settings['burst']:g} that the fleet is made for")
    axis.legend(fontsize=8, loc="upper left")
    axis.grid(alpha=0.3)


def _tornado(axis: Any, figures: Figures) -> None:
    """The cascade's GPUs over the teacher's, one assumption at a time, the widest on top."""
    base = figures.claims["fleet_gpus_cascade_over_teacher"]
    bars = sorted(figures.findings["around"], key=lambda bar: abs(bar["down"]["value"] - bar["up"]["value"]))
    for place, bar in enumerate(bars):
        for end, colour in (("down", "#8fb4d9"), ("up", "#d98f7a")):
            axis.barh(place, bar[end]["value"], left=base.value, color=colour, height=0.6,
                      label={"down": "first value", "up": "second value"}[end] if place == 0 else None)  # fmt: skip
    axis.axvline(base.value, color="#333333", lw=1)
    axis.axvspan(base.lo, base.hi, color="0.5", alpha=0.15, lw=0)
    axis.set_yticks(range(len(bars)), [bar["what"] for bar in bars], fontsize=8)
    axis.set(xlabel="GPUs of the fixed cascade over the teacher's", title="One assumption changed at a time")
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3, axis="x")


# ------------------------------------------------------------------------------------------------- tables of docs/scale.md

COLUMNS = {
    "GPUs": ("GPUs", "{:.0f}"), "GPUs, 95 %": ("95 %", "{}"), "student GPUs": ("student", "{:.0f}"),
    "judge GPUs": ("judge", "{:.0f}"), "teacher GPUs": ("teacher", "{:.0f}"), "median s": ("median, s", "{:.2f}"),
    "95 of 100 s": ("95 of 100", "{:.2f}"), "99 of 100 s": ("99 of 100", "{:.2f}"),
    "GPU-seconds a picture": ("GPU-s a picture", "{:.2f}"), "cost of 1000": ("$ for 1000", "{:.2f}"),
    "to the teacher": ("to the teacher", "{:.0%}"), "judge, minus the teacher's": ("judge, minus the teacher's", "{:+.2f}"),
    "95 %": ("95 %", "{}"),
}  # fmt: skip
WORDS = {
    "fleet_gpus_cascade_over_teacher": "GPUs, fixed cascade over teacher only",
    "fleet_gpus_running_by_load_over_teacher": "GPUs, running threshold by load over teacher only",
    "fleet_gpus_explore_over_teacher": "GPUs, Explore over teacher only",
    "fleet_cost_ratio_cascade": "GPU-seconds of work a picture, fixed cascade over teacher only",
    "fleet_cost_ratio_explore": "the same, Explore over teacher only",
    "fleet_quality_difference": "judge's score, fixed cascade minus teacher only",
    "fleet_quality_difference_noise_1": "the same with the oracle's noise as wide as its scores spread",
    "fleet_quality_difference_noise_2": "the same with noise twice as wide",
    "fleet_far_quality_difference": "judge's score, fixed cascade minus teacher only, far student",
    "fleet_far_quality_difference_explore": "the same, Explore, far student",
    "fleet_late_in_bursts_teacher_only": "late in bursts of 3 times the load, teacher only",
    "fleet_late_in_bursts_cascade": "the same, fixed cascade",
    "fleet_late_in_bursts_running_by_load": "the same, running threshold by load on the same GPUs",
    "fleet_late_in_bursts_cascade_twice_students": "fixed cascade, twice the students and judges",
    "fleet_late_in_bursts_running_by_load_twice_students": "running threshold by load, twice the students and judges",
    "fleet_half_slice_difference": "half of the slice: change of GPUs, cascade over teacher",
    "fleet_half_slice_gpus_cascade": "half of the slice: GPUs of the cascade over those of the slice",
    "fleet_half_slice_gpus_teacher": "half of the slice: GPUs of the teacher over those of the slice",
    "fleet_erlang_error": "error of the mean wait, M/M/8 at 80 %",
    "fleet_erlang_waiting_error": "error of the probability to wait there",
    "fleet_erlang_quantile_error": "error of the wait that 1 in 100 exceeds there",
    "fleet_erlang_large_error": "error of the mean wait, M/M/100 at 90 %",
    "fleet_pollaczek_error": "error of the mean wait, M/G/1 at 60 %, drafts and answers mixed",
}


def policy_table(rows: list[dict[str, Any]]) -> str:
    """A line a policy."""
    lines = ["| student | policy | " + " | ".join(words for words, _ in COLUMNS.values()) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(COLUMNS))
    for row in rows:
        cells = [form.format(row[name]) for name, (_, form) in COLUMNS.items()]
        lines.append(f"| {row['student']} | {row['policy']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claim_table(claims: dict[str, dict[str, float]]) -> str:
    """A line a figure."""
    lines = ["| figure | value | 95 % interval |", "| --- | ---: | --- |"]
    for name, words in WORDS.items():
        claim = claims[name]
        lines.append(f"| {words} (`{name}`) | {claim['value']:.2f} | {claim['lo']:.2f} to {claim['hi']:.2f} |")
    return "\n".join(lines)
