"""Shared fixtures: one ComfyUI for all integration tests."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))

import offline
from costs import Costs
from harness import Comfy, comfyui


def pytest_configure(config: pytest.Config) -> None:
    """One thread a process, here and in every child: beside other work two are many times slower, and sums stay the same."""
    offline.block()
    torch.set_num_threads(1)
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    config.pluginmanager.register(Costs())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers in every run, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a library asked for, and was silent about when it was refused."""
    gc.unfreeze()  # or models would outlive the modules that put them away
    if offline.REFUSED:
        print("addresses outside of this machine:", *offline.REFUSED)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """What is there before a file's tests is no garbage: Python would look through it all each time that ComfyUI collects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """A real ComfyUI with the pack in it."""
    with comfyui(tmp_path_factory.mktemp("comfyui")) as server:
        yield server
        assert server.refused() == [], "a node asked for an address outside of this machine"


@pytest.fixture(scope="session")
def models(comfy: Comfy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its models folder, with a small checkpoint of the true SD 1.5 layout, a LoRA and a ControlNet; the weights are random.

    Made once for all workers.
    """
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small_sd15"
    script, folder = Path(__file__).parent / "make_sd15.py", comfy.base / "models"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            subprocess.run([sys.executable, str(script), os.environ["COMFYUI_PATH"], str(made)], check=True, cwd=comfy.base)
    for file in made.rglob("*.safetensors"):
        place = folder / file.relative_to(made)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, place)
    return folder
