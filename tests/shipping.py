"""The registry's package, made as comfy-cli makes it: what git has, less .comfyignore, with what pyproject includes."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from pathspec import PathSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def shipped() -> list[str]:
    """Paths in the package, below the repository's root; files that git doesn't have yet count too, for they will be added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    left_out = PathSpec.from_lines("gitwildmatch", (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines())
    included = tuple(pyproject()["tool"]["comfy"].get("includes", ()))
    return sorted(
        path
        for path in set(listed)
        if path and (ROOT / path).is_file() and (path.startswith(included or ("\0",)) or not left_out.match_file(path))
    )


def archive(target: Path) -> Path:
    """The package as the registry keeps it."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as package:
        for path in shipped():
            package.write(ROOT / path, path)
    return target
