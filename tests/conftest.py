"""Shared fixtures: one ComfyUI for all integration tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from costs import Costs
from harness import Comfy, comfyui


def pytest_configure(config: pytest.Config) -> None:
    """One thread a process, here and in every child: beside other work two are many times slower, and sums stay the same."""
    torch.set_num_threads(1)
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    config.pluginmanager.register(Costs())


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """A real ComfyUI with the pack in it."""
    with comfyui(tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture(scope="session")
def models(comfy: Comfy) -> Path:
    """Its models folder, with a small checkpoint of the true SD 1.5 layout, a LoRA and a ControlNet; the weights are random."""
    folder = comfy.base / "models"
    script = Path(__file__).parent / "make_sd15.py"
    subprocess.run([sys.executable, str(script), os.environ["COMFYUI_PATH"], str(folder)], check=True, cwd=comfy.base)
    return folder
