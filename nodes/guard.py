"""What holds for every node: its numbers are finite and in range before it works, and its errors name no folder of the server."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io


def guarded(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """``node``, with ``check_numbers`` before it runs and ``relative`` paths in what it raises."""
    run = node.execute.__func__  # type: ignore[attr-defined]
    ranges = functools.cache(lambda: _ranges(node))

    @functools.wraps(run)
    def execute(cls: Any, *args: Any, **inputs: Any) -> Any:
        check_numbers(inputs, ranges())
        try:
            return run(cls, *args, **inputs)
        except Exception as error:
            _make_relative(error)
            raise

    node.execute = classmethod(execute)  # type: ignore[assignment, method-assign]
    return node


def _ranges(node: type[io.ComfyNode]) -> dict[str, tuple[float, float]]:
    numbers = [i for i in node.define_schema().inputs if isinstance(i, io.Int.Input | io.Float.Input)]
    low = lambda i: -math.inf if i.min is None else i.min  # noqa: E731
    return {i.id: (low(i), math.inf if i.max is None else i.max) for i in numbers}


def check_numbers(values: dict[str, Any], ranges: dict[str, tuple[float, float]]) -> None:
    """Whether numbers are numbers, and in range; ComfyUI's own check lets NaN through, and whatever comes over a wire.

    Raises:
        ValueError: One isn't.
    """
    for name, (low, high) in ranges.items():
        given = values.get(name)
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, int | float) and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} is {value:g}; it must be a number from {low:g} to {high:g}.")


def relative(text: str) -> str:
    """``text`` with this machine's folders as people who can't see it know them: models/…, input/…, output/…"""
    for folder, shown in _places():
        text = text.replace(folder + os.sep, f"{shown}/").replace(folder, shown)
    return text


def _places() -> Iterator[tuple[str, str]]:
    """ComfyUI's folders and what they are called, the innermost first; where a path is given with links, without them too."""
    shown_as = {
        folder_paths.get_output_directory(): "output", folder_paths.get_input_directory(): "input",
        folder_paths.get_temp_directory(): "temp", folder_paths.models_dir: "models", folder_paths.base_path: "ComfyUI",
        str(Path(__file__).resolve().parents[1]): "Apprentice",
    }  # fmt: skip
    for kind, (folders, _extensions) in folder_paths.folder_names_and_paths.items():
        shown_as |= {folder: f"models/{kind}" for folder in folders if folder not in shown_as}
    shown_as |= {os.path.realpath(folder): shown for folder, shown in shown_as.items()}
    yield from sorted(shown_as.items(), key=lambda pair: -len(pair[0]))


def _make_relative(error: Exception) -> None:
    """Change an error's own words; those of operating systems are put together from the file's name."""
    error.args = tuple(relative(part) if isinstance(part, str) else part for part in error.args)
    for name in ("filename", "filename2"):
        if isinstance(path := getattr(error, name, None), str):
            setattr(error, name, relative(path))
