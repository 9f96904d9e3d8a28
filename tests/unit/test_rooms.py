"""The rooms of the house: which may import which, and that only the bridge and the nodes know ComfyUI."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "base": (),  # files.py, precision.py
    "samplers": (),
    "networks": ("base",),
    "weights": ("networks", "base"),
    "oracles": ("weights", "networks", "base"),
    "gate": ("oracles", "samplers", "base"),
    "charts": ("gate", "base"),
    "bulk": ("charts", "gate", "base"),
    "training": ("samplers", "oracles", "weights", "networks", "base"),
    "world": ("oracles", "networks", "base"),
    "bridge": ("bulk", "training", "world", "gate", "samplers", "oracles", "weights", "networks", "base"),
    "nodes": ("bridge", "training", "world", "charts", "gate", "samplers", "oracles", "weights", "networks", "base"),
    "fleet": ("nodes", "bridge", "bulk", "charts", "gate", "base"),
    "cli": ("plan", "bulk", "training", "world", "charts", "gate", "samplers", "oracles", "weights", "networks", "base"),
    # Commands that ask ComfyUI's own classes, which the bridge enters.
    "plan": ("cli", "fleet", "bulk", "bridge", "training", "gate", "oracles", "weights", "networks", "base"),
    "recipe": ("training", "world", "samplers", "oracles", "weights", "networks", "base"),  # of the tiny world; not shipped
}
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "node_helpers", "server"}


def room_of(module: tuple[str, ...]) -> str:
    if module[:2] == ("world", "recipe"):
        return "recipe"
    if module[:2] in (("cli", "plan"), ("cli", "draw"), ("cli", "calibrate"), ("cli", "serve")):
        return "plan"
    return "base" if module[0] in ("files", "precision") else module[0]


def imports(source: str, module: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What a module imports: of the pack as paths from its root, of others as they are called with a "" before."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (("", *alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield ("", *(node.module or "").split("."))
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level]
            path = (*base, *(node.module.split(".") if node.module else ()))
            yield from ([path] if path else [(alias.name,) for alias in node.names])


def wrong(source: str, module: tuple[str, ...]) -> list[str]:
    """The imports of a module that point the wrong way."""
    room = room_of(module)
    found = []
    for path in imports(source, module):
        if path[0] == "":
            if path[1] in COMFYUI and room not in ("bridge", "nodes", "fleet"):
                found.append(f"{'/'.join(module)} imports ComfyUI's {path[1]}")
        elif path[0] != "__version__" and room_of(path) not in (room, *ROOMS[room]):
            found.append(f"{'/'.join(module)} imports {'.'.join(path)}")
    return found


def modules() -> Iterator[tuple[tuple[str, ...], Path]]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path.relative_to(ROOT).with_suffix("").parts, path
    yield from (((name,), ROOT / f"{name}.py") for name in ("files", "precision"))


def test_imports_point_one_way_and_only_bridge_and_nodes_know_comfyui() -> None:
    assert [line for module, path in modules() for line in wrong(path.read_text(encoding="utf-8"), module)] == []


def test_nodes_do_not_import_nodes() -> None:
    """What they share lies in the bridge, or in a file without nodes."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py") if path.stem != "__init__"}
    with_nodes = {name for name, source in sources.items() if "(io.ComfyNode)" in source}
    assert len(with_nodes) > 10
    for name, source in sources.items():
        others = {path[1] for path in imports(source, ("nodes", name)) if path[0] == "nodes" and len(path) > 1}
        assert not others & with_nodes, f"nodes/{name}.py imports {others & with_nodes}"


@pytest.mark.parametrize(
    ("source", "module", "count"),
    [
        ("from ..nodes.judge import x", ("bridge", "rows"), 1),
        ("from ..bridge import rows", ("training", "sid"), 1),
        ("def f():\n    import comfy.utils", ("oracles", "base"), 1),
        ("from comfy_api.v0_0_2 import io", ("nodes", "judge"), 0),
        ("from ...benchmarks.world import World", ("world", "recipe", "card"), 1),
        ("from .. import weights", ("networks", "edm"), 1),
        ("from ..files import reading\nimport torch", ("networks", "edm"), 0),
    ],
)
def test_the_check_notices_an_import_that_points_the_wrong_way(source: str, module: tuple[str, ...], count: int) -> None:
    assert len(wrong(source, module)) == count
