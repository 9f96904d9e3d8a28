"""``apprentice serve`` as people start it: Ray Serve, a ComfyUI in a worker, the tiny world; asked over HTTP, and drained."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from costs import SERVERS
from harness import START_SECONDS
from PIL import Image

pytest.importorskip("ray.serve")
WORDS = ["glossy red heart on blue", "flat cat face on yellow"]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """Its address, its process, and what it says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["serve", "--port", str(port), "--together", "--batch", "2", "--deadline", "120", "--share", "0.5"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "comfyui_apprentice.cli", *command], stdout=file, stderr=file, cwd=tmp_path,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},  # or it leaves a token in the home of who runs the tests
        )  # fmt: skip
    SERVERS.add(process.pid)
    until = time.monotonic() + START_SECONDS
    try:
        while b"Serving on" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", process, log
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
        SERVERS.discard(process.pid)


def test_a_picture_a_job_with_events_and_a_drain(serving: tuple[str, subprocess.Popen[bytes], Path]) -> None:
    url, process, log = serving
    answer = requests.post(f"{url}/v1/pictures", json={"prompts": WORDS, "seed": 11}, timeout=300).json()
    assert answer["status"] == "done" and [p["prompt"] for p in answer["pictures"]] == WORDS
    for place, picture in enumerate(answer["pictures"]):
        image = Image.open(io.BytesIO(base64.b64decode(picture["png"])))
        assert image.size == (64, 64) and "apprentice" in image.info and "prompt" not in image.info
        assert (picture["seed"], picture["place"]) == (11, place) and picture["evaluations"] >= 2
    job = requests.post(f"{url}/v1/pictures", json={"prompts": WORDS * 8, "wait": False}, timeout=60)
    assert job.status_code == 202
    process.send_signal(signal.SIGTERM)  # what was taken on is still drawn, and told
    with requests.get(f"{url}{job.headers['location']}/events", stream=True, timeout=300) as told:
        events = [line[7:] for line in told.iter_lines(decode_unicode=True) if line.startswith("event: ")]
    assert events == ["queued", *["picture"] * 16, "done"]
    assert process.wait(120) == 0, log.read_text()
    assert "Finishing what was begun" in log.read_text()
