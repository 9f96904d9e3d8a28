"""A ComfyUI with each front end, shared by all files of a worker; the stock one is that of the integration tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from browser.page import open_page
from harness import Comfy, Graph, comfyui
from playwright.sync_api import Page

FRONT_ENDS = ("stock", "1.58.1")


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """ComfyUI with the newer front end."""
    root = os.environ.get("APPRENTICE_FRONT_ENDS", "")
    if not root:
        pytest.fail("APPRENTICE_FRONT_ENDS is not set; run bash test.sh, which fetches the newer front end.")
    with comfyui(tmp_path_factory.mktemp("newer"), "--front-end-root", root) as server:
        yield server


@pytest.fixture(params=FRONT_ENDS, scope="module")
def front_end_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def front_end(request: pytest.FixtureRequest, front_end_name: str) -> Comfy:
    """ComfyUI with one of the front ends, and nothing of other tests in its cache."""
    server: Comfy = request.getfixturevalue("comfy" if front_end_name == "stock" else "newer")
    other = Graph()  # ComfyUI keeps what the last graph had; POST /free may come to pass only after the next one
    other.add("PreviewAny", source=other.add("PrimitiveInt", value=1))
    server.run(other)
    return server


@pytest.fixture(scope="module")
def page(front_end: Comfy) -> Iterator[Page]:
    """One page a file and front end: each test goes on where the one before it stopped, or opens a workflow of its own."""
    with open_page(front_end.url, os.environ.get("APPRENTICE_CHROMIUM")) as page:
        yield page
