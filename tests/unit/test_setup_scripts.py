"""quickstart.sh and test.sh: help before any install, and which PyTorch is taken. pip and Python are stood in for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_workflow

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="bash")


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_comes_before_any_install(script: str, option: str, tmp_path: Path) -> None:
    """In a copy without .venv: nothing appears beside it."""
    (tmp_path / "scripts").mkdir()
    for name in (script, "scripts/environment.sh"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run(["bash", script, option], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"bash {script} --help" in done.stdout and done.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["scripts", script])


def test_serve_is_comfyui_in_the_foreground_with_live_previews(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The front end's own setting is 'default': what the server was started with."""
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append([program, *command]) or sys.exit())
    monkeypatch.setattr(sys, "argv", ["run_workflow.py", "--serve", "--port", "8190"])
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        run_workflow.main()
    (command,) = started
    assert command[command.index("--preview-method") + 1] == "auto" and command[command.index("--port") + 1] == "8190"
    assert command[:3] == [sys.executable, sys.executable, str(tmp_path / "main.py")]


def install(tmp_path: Path, *, driver: bool, has_cpu_build: str, reachable: bool) -> tuple[list[str], str]:
    """What ``install_torch`` asks of pip, and what it tells.

    Args:
        driver: Whether there is an NVIDIA driver.
        has_cpu_build: "configured": an index that pip is set up for has it; "public": PyTorch's own has; "": none.
        reachable: Whether PyTorch's own index answers.
    """
    calls = tmp_path / "calls"
    python = tmp_path / "python"
    found = {"configured": "true", "public": '[[ "$*" == *extra-index-url* ]]', "": "false"}[has_cpu_build]
    python.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in\n'
        '  *"import torch"*) exit 1 ;;\n'
        f'  *urlopen*) {"true" if reachable else "false"} ;;\n'
        f'  *"pip install"*) echo "$*" >>"{calls}"; if [[ "$*" == *+cpu* ]]; then {found}; fi ;;\n'
        "esac\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    script = (
        f'source "{ROOT}/scripts/environment.sh"; PYTHON="{python}"; has_nvidia() {{ {"true" if driver else "false"}; }}\n'
        "uname() { echo Linux; }; install_torch"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return calls.read_text(encoding="utf-8").splitlines(), done.stderr


def test_with_a_driver_the_cuda_build_is_taken_and_its_size_told(tmp_path: Path) -> None:
    calls, told = install(tmp_path, driver=True, has_cpu_build="configured", reachable=True)
    assert not any("+cpu" in call for call in calls) and "torch==2.14.1" in calls[0]
    assert "with CUDA: 2.9 GB to download, 5.2 GB on disk" in told


@pytest.mark.parametrize("where", ["configured", "public"])
def test_without_a_driver_the_cpu_build_is_taken_where_an_index_has_it(where: str, tmp_path: Path) -> None:
    calls, told = install(tmp_path, driver=False, has_cpu_build=where, reachable=True)
    assert all("+cpu" in call for call in calls)
    assert any("download.pytorch.org/whl/cpu" in call for call in calls) == (where == "public")
    assert "for CPUs (no NVIDIA driver was found): about 0.2 GB to download" in told and "CUDA:" not in told


@pytest.mark.parametrize("reachable", [False, True])
def test_where_no_index_has_it_the_usual_build_is_taken(reachable: bool, tmp_path: Path) -> None:
    calls, told = install(tmp_path, driver=False, has_cpu_build="", reachable=reachable)
    assert "+cpu" not in calls[-2] and "torch==2.14.1" in calls[-2] and "torchaudio" in calls[-1]
    assert "No index with that build can be reached" in told and "with CUDA" in told
