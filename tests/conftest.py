"""Shared fixtures: one ComfyUI for all integration tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from harness import Comfy, comfyui


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """A real ComfyUI with the pack in it."""
    with comfyui(tmp_path_factory.mktemp("comfyui")) as server:
        yield server
