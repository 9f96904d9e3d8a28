"""A stranger's install: the registry's package in an empty ComfyUI, under the registry's name, with the command beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from harness import Comfy, comfyui
from run_workflow import to_prompt
from shipping import archive, shipped


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ComfyUI's folder with the package in ``custom_nodes/apprentice``, nothing of the repository in sight."""
    folder = tmp_path_factory.mktemp("stranger")
    with zipfile.ZipFile(archive(folder / "node.zip")) as package:
        package.extractall(folder / "custom_nodes" / "apprentice")
    return folder


@pytest.fixture(scope="module")
def environment(base: Path) -> Path:
    """A Python with this one's libraries, but for the package, which ``pip install -e .`` puts there; no network is needed."""
    place = base / "venv"
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    (Path(sysconfig.get_path("purelib", vars={"base": str(place)})) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    command = [*pip, "install", "-q", "-e", ".", "--no-deps", "--no-build-isolation"]
    subprocess.run(command, cwd=base / "custom_nodes" / "apprentice", env=_bare(), check=True, capture_output=True, text=True)
    return python


def _bare() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COMFYUI_PATH")}


def apprentice(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(environment.with_name("apprentice")), *arguments]
    return subprocess.run(command, cwd=environment.parent, env={**_bare(), "COLUMNS": "200"}, capture_output=True, text=True)


def test_the_command_of_the_registrys_package_lists_and_explains(base: Path, environment: Path) -> None:
    listed = apprentice(environment, "models", "list", "--comfyui", str(base))
    assert listed.returncode == 0, listed.stderr
    assert "ImageReward.pt" in listed.stdout and "missing" in listed.stdout
    helped = apprentice(environment, "--help")
    assert helped.returncode == 0 and all(word in helped.stdout for word in ("models", "inspect", "calibrate", "finetune"))


def test_benchmarks_that_do_not_ship_are_told_in_a_sentence(environment: Path) -> None:
    refused = apprentice(environment, "bench", "adaptive", "--quick")
    words = " ".join(refused.stderr.replace("│", " ").split())
    assert refused.returncode == 2 and "benchmarks come with the repository, not with the registry's package" in words
    assert "Traceback" not in refused.stderr


def test_the_registrys_package_boots_and_draws_an_example(base: Path, environment: Path) -> None:
    with comfyui(base, python=str(environment)) as server:
        assert "ApprenticeSampler" in server.schemas
        pictures = _draw(server, base)
        assert server.refused() == []
    assert len(pictures) == 9 and all((base / "output" / p["subfolder"] / p["filename"]).stat().st_size for p in pictures)


def _draw(server: Comfy, base: Path) -> list[dict[str, str]]:
    workflow = json.loads((base / "custom_nodes" / "apprentice" / "example_workflows" / "adaptive.json").read_text())
    run = server.run(to_prompt(workflow, server.schemas))
    return [image for output in run.outputs.values() for image in output.get("images", []) if image["type"] == "output"]


def test_a_wheel_has_everything_that_the_registrys_package_has_but_papers(base: Path) -> None:
    """Docs and the like lie beside the package; web, locales and examples are in it."""
    build = f"import setuptools.build_meta; setuptools.build_meta.build_wheel({str(base)!r})"
    source = base / "custom_nodes" / "apprentice"
    subprocess.run([sys.executable, "-c", build], cwd=source, env=_bare(), check=True, capture_output=True, text=True)
    with zipfile.ZipFile(next(base.glob("*.whl"))) as wheel:
        inside = {name.removeprefix("comfyui_apprentice/") for name in wheel.namelist()}
    beside = {path for path in shipped() if "/" not in path and not path.endswith(".py")}
    papers = {path for path in shipped() if path.startswith(("docs/", "world/sheet.png"))}
    assert sorted(set(shipped()) - papers - beside - inside) == []
