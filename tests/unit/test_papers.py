"""docs/papers.md names functions and tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPERS = ("2312.10835", "2404.04057", "2406.01561", "2206.00364", "2403.02781", "2402.15194", "2403.06279", "2409.08861")
PLACE = re.compile(r"`([\w/]+\.py)::([\w.]+)`")


def missing(text: str) -> list[str]:
    """What of a page's tables is wrong: rows without a function or a test, and names that are not there."""
    wrong = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or cells[0] == "equation" or set(cells[0]) <= {"-"}:
            continue
        where, tests = (PLACE.findall(cell) for cell in cells[2:]) if len(cells) == 4 else ([], [])
        if not where or not tests:
            wrong.append(f"no function or no test: {line}")
        wrong += [f"{path}::{name}" for path, name in where if path.startswith("tests/") or not is_there(path, name)]
        wrong += [f"{path}::{name}" for path, name in tests if not name.startswith("test_") or not is_there(path, name)]
    return wrong


def is_there(path: str, name: str) -> bool:
    """Whether the file defines this function, class, or method (``Class.method``)."""
    if not (ROOT / path).is_file():
        return False
    body: list[ast.stmt] = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for part in name.split("."):
        defined = {node.name: node.body for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if part not in defined:
            return False
        body = defined[part]
    return True


def test_every_equation_has_its_function_and_its_test() -> None:
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert missing(page) == []
    assert len(PLACE.findall(page)) > 60
    assert all(f"https://arxiv.org/abs/{paper}" in page for paper in PAPERS)


FUNCTION, TEST = "`training/sid.py::generator_loss`", "`tests/unit/test_sid.py::test_no_gradient_flows_through_the_weight`"


@pytest.mark.parametrize(("where", "test"), [
    ("`training/sid.py::no_such_loss`", TEST), ("`training/no_such_file.py::generator_loss`", TEST),
    ("`training/control.py::Process.no_method`", TEST), (TEST, TEST), ("the loss", TEST),
    (FUNCTION, "`tests/unit/test_sid.py::test_nothing`"), (FUNCTION, FUNCTION), (FUNCTION, "by hand"),
])  # fmt: skip
def test_the_check_notices_what_is_not_there(where: str, test: str) -> None:
    assert missing(f"| eq. 1 | what it says | {where} | {test} |")
    assert not missing(f"| eq. 1 | what it says | {FUNCTION} | {TEST} |")
