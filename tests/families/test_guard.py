"""What every node refuses, and what its errors don't say."""

from __future__ import annotations

import math
from typing import Any

import folder_paths
import pytest
from comfyui_apprentice.nodes import NODES
from comfyui_apprentice.nodes.guard import _ranges, guarded, relative

NUMBERS = [(node, name, low, high) for node in NODES for name, (low, high) in _ranges(node).items()]


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_numbers_that_are_none_or_out_of_range_are_refused_before_any_work(node: Any) -> None:
    for name, (low, high) in _ranges(node).items():
        for value in (math.nan, math.inf, -math.inf, low - 1, high * 2 + 1, [low, math.nan]):
            with pytest.raises(ValueError, match=f"^{name} is .*; it must be a number from"):
                node.execute(**{name: value})


def test_there_are_numbers_in_most_nodes() -> None:
    assert len({node for node, *_ in NUMBERS}) > 15 and all(low > -math.inf and high < math.inf for *_, low, high in NUMBERS)


@pytest.mark.parametrize(
    ("folder", "shown"),
    [
        (folder_paths.get_output_directory, "output"), (folder_paths.get_input_directory, "input"),
        (lambda: folder_paths.get_folder_paths("loras")[0], "models/loras"), (lambda: folder_paths.models_dir, "models"),
        (lambda: folder_paths.base_path, "ComfyUI"),
    ],
)  # fmt: skip
def test_errors_name_folders_as_people_know_them(folder: Any, shown: str) -> None:
    class Failing(NODES[0]):  # type: ignore[misc, valid-type]
        @classmethod
        def execute(cls, error: Exception) -> Any:
            raise error

    path = f"{folder()}/sub/file.txt"
    node = guarded(Failing)
    for error in (ValueError(f"There is no file {path}; choose another."), FileNotFoundError(2, "No such file", path)):
        with pytest.raises(type(error)) as raised:
            node.execute(error=error)
        assert f"{shown}/sub/file.txt" in str(raised.value) and str(folder()) not in str(raised.value)
    assert relative("nothing here") == "nothing here"
