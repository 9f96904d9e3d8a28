"""An imitation of the hub on loopback, and a model file that it has."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from comfyui_apprentice.weights.catalogue import ModelFile

CONTENT = random.Random(0).randbytes(200_000)
COMMIT, OTHER = "a" * 40, "b" * 40
SHA = hashlib.sha256(CONTENT).hexdigest()
FILE = ModelFile(
    oracles=("judge",),
    local="judge.safetensors",
    repo="owner/judge",
    filename="model.safetensors",
    licence="MIT",
    revision=COMMIT,
    sha256=SHA,
    size=len(CONTENT),
)
UNPINNED = replace(FILE, revision=None, sha256=None, size=None, rough_size=200_000)


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """A repository, its storage on a second address (as Hugging Face has it), and what goes wrong with them.

    Attributes:
        content: What the repository declares to hold.
        stored: What the storage really sends.
        lfs: Whether the file is in Git LFS: declared by SHA-256 and served by the storage.
        breaks: At how many bytes of the answer the storage hangs up; one entry an answer.
        status: What is answered instead, with the hub's error code.
        down: What the storage answers instead; 0: nothing else.
        log: Every request: server, method, path, Range.
        piece, pause: Bytes that are sent at a time, and seconds after each.
    """

    content: bytes = CONTENT
    stored: bytes = CONTENT
    lfs: bool = True
    declares: bool = True
    commit: str = COMMIT
    breaks: list[int] = field(default_factory=list)
    status: tuple[int, str] | None = None
    down: int = 0
    log: list[tuple[str, str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""
    storage: str = ""
    piece: int = 1 << 30
    pause: float = 0.0

    def ranges(self) -> list[str | None]:
        """Range of each request for content, in order."""
        return [range_ for _, method, _, range_ in self.log if method == "GET"]

    def has(self, path: str) -> bool:
        return path == f"/owner/judge/resolve/{self.commit}/model.safetensors"


def handler(hub: Hub, role: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            hub.log.append((role, self.command, self.path, self.headers.get("Range")))
            if role == "hub":
                self.resolve()
            elif hub.down:
                self.empty(hub.down)
            else:
                self.send(hub.stored)

        def resolve(self) -> None:
            path = self.path.replace("/resolve/main/", f"/resolve/{hub.commit}/")
            if hub.status:
                self.empty(hub.status[0], {"X-Error-Code": hub.status[1], "X-Error-Message": "no"})
            elif path == "/owner/heads/raw/" + COMMIT + "/a%2Bb.pth":  # a GitHub file
                self.empty(302, {"Location": f"{hub.storage}/a+b.pth"})
            elif not hub.has(path):
                self.empty(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit})
            elif hub.lfs:
                digest = hashlib.sha256(hub.content).hexdigest()
                self.empty(302, {
                    "Location": f"{hub.storage}/blob?signed=1", "X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes",
                    "X-Linked-Size": str(len(hub.content)), "X-Linked-Etag": f'"{digest if hub.declares else "xyz"}"',
                })  # fmt: skip
            else:
                self.send(hub.stored, {"X-Repo-Commit": hub.commit, "ETag": f'"{git_id(hub.content)}"'})

        def send(self, content: bytes, headers: dict[str, str] | None = None) -> None:
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if self.headers.get("Range") else 0
            body = content[start:]
            ranged = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
            plain = {"Content-Length": str(len(body)), "Accept-Ranges": "bytes"}
            self.head(206 if start else 200, {**plain, **ranged, **(headers or {})})
            if self.command == "HEAD":
                return
            stop = hub.breaks.pop(0) if hub.breaks else None
            sent = body[:stop]
            for start in range(0, len(sent), hub.piece):
                self.wfile.write(sent[start : start + hub.piece])
                time.sleep(hub.pause)
            self.close_connection = stop is not None

        def empty(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.head(status, {"Content-Length": "0", **(headers or {})})

        def head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler


@contextmanager
def imitation() -> Iterator[Hub]:
    """The hub and its storage, until the block ends."""
    state, servers = Hub(), []
    for role in ("hub", "storage"):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(state, role))
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed is no news
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
    state.endpoint, state.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield state
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
