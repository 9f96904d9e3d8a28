"""ComfyUI in this process, for every family at tiny size."""

from __future__ import annotations

import pytest
from comfyui_apprentice.benchmarks import tiny_families as tiny


@pytest.fixture(scope="session", autouse=True)
def _comfyui() -> None:
    tiny.start()
