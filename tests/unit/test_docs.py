"""Links, commands, paths, names and figures in the docs: each is what it says. No ComfyUI."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from comfyui_apprentice.cli import app
from comfyui_apprentice.samplers.presets import AUTO, CUSTOM, PRESETS, find_preset, recognise
from comfyui_apprentice.weights import budget
from harness import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "world" / "CARD.md", *sorted((ROOT / "docs").glob("*.md"))]
HELP = sorted((ROOT / "web" / "docs").glob("*/en.md"))
README = ROOT / "README.md"
UsageError: Any = typer.BadParameter.__base__  # click's, wherever typer has it from
INCOMPLETE = ("MissingParameter", "NoArgsIsHelpError", "BadOptionUsage")  # the last: an option without its value


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """``text`` without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def quoted(text: str) -> Iterator[str]:
    """What stands in backticks, without line breaks."""
    for code in re.findall(r"`([^`]+)`", prose(text)):
        yield " ".join(code.split())


def lines_of_blocks(text: str) -> Iterator[str]:
    """The commands in blocks of bash."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.splitlines()


# Links


def anchors(text: str) -> set[str]:
    """How GitHub calls the headings."""
    names: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names.append(f"{slug}-{names.count(slug)}" if slug in names else slug)
    return set(names)


def links_of(text: str) -> list[str]:
    """What links and pictures lead to."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text)) + re.findall(r'<img src="([^"]+)"', prose(text))


def broken_links(text: str, page: Path = README) -> list[str]:
    """Links to files or headings that aren't there."""
    broken = []
    for link in links_of(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(text if target == page else read(target))):
            broken.append(link)
    return broken


# Commands


def wrong_command(words: list[str], whole: bool) -> str:
    """Why ``apprentice words…`` isn't a command; "" where it is. ``whole``: with all that it needs."""
    command, context = typer.main.get_command(app), None
    if "…" in words:
        words, whole = [word for word in words if word != "…"], False
    try:
        while True:
            arguments = list(words)
            subcommands = getattr(command, "commands", None)
            if subcommands is None:
                command.make_context(command.name, arguments, parent=context)
                return ""
            if not words:
                return "" if not whole else "a command is missing"
            if words[0] not in subcommands:
                return f"there is no '{words[0]}'"
            command, words = subcommands[words[0]], words[1:]
    except UsageError as error:
        return "" if type(error).__name__ in INCOMPLETE and not whole else error.format_message()


def wrong_script(words: list[str]) -> str:
    """Why ``bash words…`` or ``python words…`` isn't a command: no such file, or one that doesn't know the option."""
    if words[0] == "-m":
        inside = ROOT / words[1].removeprefix("comfyui_apprentice.").replace(".", "/")
        file, words = (inside / "__main__.py" if inside.is_dir() else inside.with_suffix(".py")), words[2:]
    else:
        file, words = ROOT / words[0], words[1:]
    if not file.is_file():
        return f"there is no {file.relative_to(ROOT)}"
    source = read(file)
    unknown = [word for word in words if (word.startswith("--") and word not in source)]
    unknown += [word for word in words if "/" in word and not (ROOT / word).exists()]
    return f"no {unknown[0]}" if unknown else ""


def missing_extras(words: list[str]) -> str:
    """Why ``pip words…`` isn't a command: an extra that pyproject.toml doesn't have, or no such file."""
    extras = re.findall(r"^(\w+) = \[", read(ROOT / "pyproject.toml"), flags=re.MULTILINE)
    asked = [extra for word in words for extra in re.findall(r"\.\[(\w+)\]", word)]
    files = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-r"]
    return next((f"no {name}" for name in asked if name not in extras), "") or next(
        (f"no {file}" for file in files if not (ROOT / file).exists()), ""
    )


def wrong_commands(text: str, _page: Path = README) -> list[str]:
    """Commands that the docs name and that wouldn't be understood."""
    wrong = []
    for line, whole in [*((line, True) for line in lines_of_blocks(text)), *((code, False) for code in quoted(text))]:
        for command in re.split(r"&&|;", line):
            words = shlex.split(re.sub(r"\s#.*$", "", f" {command}").strip()) if command.count("'") % 2 == 0 else []
            if words[:4] == ["accelerate", "launch", "-m", "comfyui_apprentice.cli"]:
                words = ["apprentice", *words[4:]]
            if not words[1:]:
                continue
            check: dict[str, Callable[[list[str]], str]] = {
                "apprentice": lambda rest, whole=whole: wrong_command(rest, whole), "bash": wrong_script,
                "python": wrong_script, "pip": missing_extras,
            }  # fmt: skip
            if words[0] in check and (why := check[words[0]](words[1:])):
                wrong.append(f"{command.strip()}: {why}")
    return wrong


# Names


def lost_paths(text: str, _page: Path = README) -> list[str]:
    """Paths of the repository, in backticks, that aren't there."""
    rooms = {path.name for path in ROOT.iterdir()}
    lost = []
    for code in quoted(text):
        plain = code.rstrip("/")
        looks = re.fullmatch(r"[\w.-]+(/[\w.*-]+)+", plain) and plain.split("/")[0] in rooms
        if (looks or re.fullmatch(r"\w+\.(py|sh|toml)", plain)) and not any(ROOT.glob(plain)):
            lost.append(code)
    return lost


@cache
def titles() -> dict[str, str]:
    """Node id -> its title, without what stands in brackets."""
    nodes = json.loads(read(ROOT / "locales" / "en" / "nodeDefs.json"))
    return {node_id: re.sub(r" \(.*\)", "", node["display_name"]) for node_id, node in nodes.items()}


NAMED = re.compile(r"\*\*((?:[A-Z]\w*)(?: (?:[A-Z]\w*|of|by))+)\*\*")
NOT_NODES = {"Score identity Distillation"}


def unknown_nodes(text: str, _page: Path = README) -> list[str]:
    """Ids in backticks, and titles in bold, of nodes that aren't there."""
    ids = [code for code in quoted(text) if re.fullmatch(r"Apprentice[A-Z]\w+", code) and code not in titles()]
    return ids + [name for name in NAMED.findall(prose(text)) if name not in {*titles().values(), *NOT_NODES}]


def problems(check: Callable[..., list[str]], pages: list[Path]) -> dict[str, list[str]]:
    """Page -> what ``check`` finds wrong there."""
    found = {name_of(page): check(read(page), page) for page in pages}
    return {page: wrong for page, wrong in found.items() if wrong}


def test_every_link_leads_somewhere() -> None:
    assert problems(broken_links, PAGES) == {}


def test_every_command_is_understood() -> None:
    assert problems(wrong_commands, PAGES + HELP) == {}


def test_every_path_is_there() -> None:
    assert problems(lost_paths, PAGES) == {}


def test_every_node_is_there() -> None:
    assert problems(unknown_nodes, PAGES) == {}


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("[a](docs/nothing.md)", broken_links), ("[a](docs/results.md#nowhere)", broken_links), ("[a](#nowhere)", broken_links),
        ("![a](docs/images/nothing.png)", broken_links), ('<img src="docs/images/nothing.png">', broken_links),
        ("```bash\napprentice nothing\n```", wrong_commands), ("```bash\napprentice distill sid a.pkl\n```", wrong_commands),
        ("`apprentice bench adaptive --slow`", wrong_commands), ("`apprentice convert a b c`", wrong_commands),
        ("```bash\naccelerate launch -m comfyui_apprentice.cli distill lcm …\n```", wrong_commands),
        ("`bash quickstart.sh --nothing`", wrong_commands), ("`bash nothing.sh`", wrong_commands),
        ("`python scripts/nothing.py`", wrong_commands), ("`python -m tests.fuzz --sum 3`", wrong_commands),
        ("`pip install -e '.[nothing]'`", wrong_commands), ("`pip install -r nothing.txt`", wrong_commands),
        ("`samplers/nothing.py`", lost_paths), ("`benchmarks/nothing/*.json`", lost_paths), ("`nothing.py`", lost_paths),
        ("`ApprenticeNothing`", unknown_nodes), ("**Load Nothing**", unknown_nodes),
    ],
)  # fmt: skip
def test_each_check_can_fail(text: str, check: Callable[..., list[str]]) -> None:
    assert len(check(text)) == 1


@pytest.mark.parametrize(
    "text",
    ["[a](docs/results.md#on-a-cpu)", "[a](https://example.org/nothing)", "`apprentice models list`", "`apprentice bench`",
     "```bash\napprentice models pull imagereward --comfyui ~/ComfyUI   # what for\n```", "`bash quickstart.sh --serve`",
     "`python -m tests.fuzz --count 2000`", "`pip install -e '.[bench]'`", "`files.py`", "`sdxl-turbo/trailing`",
     "`ApprenticeJudge`", "**Load Oracle**", "**Choose**"],
)  # fmt: skip
def test_no_check_fails_without_cause(text: str) -> None:
    assert broken_links(text) == wrong_commands(text) == lost_paths(text) == unknown_nodes(text) == []


# What stands in tables


def test_presets_are_all_listed_and_none_else() -> None:
    table = read(ROOT / "docs" / "students.md").split("| preset | schedule |")[1].split("\n\n")[0]
    listed = {code for row in table.splitlines() for code in quoted(row.split(" | ")[0])}
    assert listed == {*PRESETS, CUSTOM, AUTO}


def test_presets_of_the_readme_are_of_the_files_beside_them() -> None:
    """As the table says: file, then preset; what is recognised by its name is drawn with that preset."""
    table = read(README).split("| family | student")[1].split("\n\n")[0]
    presets = re.findall(r": `([^`]+)`", table)
    assert len(presets) == 8 and all(find_preset(preset)[0] for preset in presets)
    for file, preset in re.findall(r"`([\w.-]+)`: `([^`]+)`", table):
        assert (known := recognise([file])) and re.sub(r"/\d+step$", "", known[0]) == preset


def test_errors_of_the_readme_are_those_of_the_code() -> None:
    rooms = [ROOT / room for room in ("nodes", "bridge", "gate", "oracles", "samplers", "weights", "training")]
    source = "\n".join(read(path) for room in rooms for path in room.glob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    table = read(README).split("| it says, or you see | do |")[1].split("\n\n")[0]
    sentences = re.findall(r'^\| "(.*?)" \|', table, flags=re.MULTILINE)
    assert len(sentences) >= 6

    def is_said(sentence: str) -> bool:
        return re.search(r"[^\n]*?".join(re.escape(part) for part in sentence.split("…")), source) is not None

    assert [sentence for sentence in sentences if not is_said(sentence)] == []
    assert not is_said("There is no file '…' in models/nothing")


def test_folders_of_files_are_those_of_the_nodes() -> None:
    text = read(ROOT / "docs" / "models.md")
    named = set(re.findall(r"`models/(\w+)`", text))
    sources = "".join(read(path) for room in ("nodes", "bridge") for path in (ROOT / room).glob("*.py"))
    ours = set(re.findall(r'"(\w+)"', sources))
    assert {"oracles", "edm", "promptkd", "promptkd_clips", "promptkd_teachers", "calibrations"} <= named & ours
    assert named - ours <= {"vae_approx"}, "ComfyUI's own"


def test_the_budget_of_a_file_is_the_one_that_is_told() -> None:
    assert (budget.MOST_STEPS, budget.MOST_SECONDS, budget.MOST_UNFOLDED) == (1_000_000, 60, 8)
    told = " ".join(read(ROOT / "docs" / "security.md").split())
    assert "a million steps, 60 seconds of one core, and eight times the file's own bytes" in told


# Figures in running text: page, results, claim, format, and whether the interval stands beside it
FIGURES = [
    ("README.md", "adaptive", "adaptive_minus_random", "{:.2f}", True),
    ("README.md", "explore", "explore_without_variety_minus_adaptive", "{:.2f}", True),
    ("README.md", "explore", "explore_nfe_ratio_to_best_of_one_student", "{:.2f}", True),
    ("README.md", "explore", "explore_minus_best_of_n", "{:.2f}", True),
    ("README.md", "explore", "explore_diversity_to_adaptive", "{:.2f}", True),
    ("README.md", "explore", "explore_minus_adaptive", "{:.2f}", True),
    ("README.md", "sid", "sid_judge_difference", "{:.2f}", True),
    ("README.md", "sid", "sid_frechet_ratio", "{:.2f}", True),
    ("README.md", "promptkd", "base_gain", "{:.2f}", True),
    ("README.md", "promptkd", "novel_gain", "{:.2f}", True),
    ("README.md", "control", "unseen_judge_gain", "{:.2f}", True),
    ("README.md", "control", "diversity_ratio", "{:.2f}", True),
    ("docs/results.md", "students", "sid_1_complement_by_the_judge", "{:.2f}", True),
    ("docs/results.md", "students", "consistency_1_curvature_by_distance", "{:.2f}", True),
    ("docs/results.md", "students", "consistency_1_complexity_by_distance", "{:.2f}", True),
    ("docs/results.md", "students", "sid_1_curvature_by_distance", "{:.2f}", True),
    ("docs/results.md", "students", "sid_1_complexity_by_distance", "{:.2f}", True),
    ("docs/results.md", "students", "teacher_9_share", "{:.2f}", True),
    ("docs/results.md", "promptkd", "same_decisions", "{:.0%}", False),
    ("docs/memory.md", "memory", "memory_account_ratio", "{:.2f}", True),
    ("docs/scale.md", "draw", "draw_overhead", "{:.1%}", True),
    ("docs/scale.md", "draw", "draw_ray_overhead", "{:.1%}", True),
    ("docs/scale.md", "draw", "draw_cpu_seconds", "{:.2f}", False),
    ("docs/scale.md", "draw", "draw_ray_ratio_1", "{:.2f}", True),
    ("docs/scale.md", "draw", "draw_ray_ratio_2", "{:.2f}", True),
    ("docs/scale.md", "draw", "draw_ray_world_ratio_1", "{:.2f}", True),
    ("docs/scale.md", "draw", "draw_ray_world_ratio_2", "{:.2f}", True),
    ("docs/results.md", "digits", "digits_student", "{:.2f}", False),
    ("docs/results.md", "control-tilted", "tilted_student_gain", "{:.2f}", True),
    ("docs/results.md", "control-tilted", "tilted_student_variety", "{:.2f}", True),
    ("docs/results.md", "control-tilted", "loop_quality_gain", "{:.2f}", True),
    ("docs/results.md", "digits", "digits_ratio", "{:.2f}", True),
    ("docs/serving.md", "serve", "serve_miss_rate", "late in {:.3f}", False),
    ("docs/serving.md", "serve", "serve_miss_rate_fixed", "{:.2f}", True),
    ("docs/serving.md", "serve", "serve_share_without_load", "{:.2f}", True),
    ("docs/serving.md", "serve", "serve_share_under_load", "{:.2f}", True),
    ("docs/serving.md", "serve", "serve_kills", "Over {:.0f} killed workers", False),
    ("docs/serving.md", "serve", "serve_lost_or_doubled", "{:.0f} requests were lost or answered twice", False),
]


def shown(claim: dict[str, float], form: str, interval: bool) -> str:
    text = form.format(claim["value"]).replace("%", " %")
    return f"{text} ({form.format(claim['lo'])} to {form.format(claim['hi'])}" if interval else text


@pytest.mark.parametrize(("page", "results", "claim", "form", "interval"), FIGURES)
def test_figures_in_the_text_are_those_measured(page: str, results: str, claim: str, form: str, interval: bool) -> None:
    measured: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{results}.json").read_text())["claims"][claim]
    text = " ".join(read(ROOT / page).split()).replace("points (", "(")
    assert shown(measured, form, interval) in text


def test_the_readme_is_read_in_five_minutes() -> None:
    text = read(README)
    words = re.sub(r"\]\([^)]*\)|[|*`#]|---:?", " ", text).split()
    assert len(words) <= 1200 and (ROOT / "docs" / "images" / "comfyui.webp").stat().st_size < 200_000


def test_what_the_readme_links_to_is_in_the_registrys_package() -> None:
    """Pictures too; but for what only a clone has, which no link leads to."""
    left_out = read(ROOT / ".comfyignore").split()
    links = links_of(read(README))
    assert len(links) > 20 and [link for link in links if any(link.startswith(part) for part in left_out)] == []


FORMS = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]


@pytest.mark.parametrize("path", FORMS, ids=name_of)
def test_files_for_other_programs_are_yaml(path: Path) -> None:
    assert yaml.safe_load(read(path))


def test_the_hook_checks_with_the_linter_of_the_tests() -> None:
    hook = yaml.safe_load(read(ROOT / ".pre-commit-config.yaml"))["repos"][0]["hooks"][0]
    assert f'"{hook["additional_dependencies"][0]}"' in read(ROOT / "pyproject.toml")


def test_the_citation_names_the_version_and_the_papers() -> None:
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors", "type"} <= set(citation)
    assert f'version = "{citation["version"]}"' in read(ROOT / "pyproject.toml")
    papers = {reference["identifiers"][0]["value"].removeprefix("arXiv:") for reference in citation["references"]}
    named = set(re.findall(r"\b(2[34]\d\d\.\d{5})\b", read(README)))
    assert named <= papers and all(reference["title"] and reference["authors"] for reference in citation["references"])
