"""ComfyUIs that are there already, each with the pack: batches go to whoever is free, over their own API."""

from __future__ import annotations

import io
import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..bridge.headless import Interrupted
from ..bulk.items import Item
from ..bulk.job import Drawn, PictureError
from ..bulk.pool import NoWorkersError, Pool
from ..bulk.server import NoAnswerError, Server
from ..bulk.workflow import OURS, Fills, ends
from ..gate.story import CHUNK
from ..gate.verdict import Judgement, Verdict

SAVE, PREFIX = "ApprenticeSaveImages", "apprentice draw/"
_POLL = 0.2  # seconds between two looks at the history
_AGAIN = 30.0  # seconds until one that didn't answer is asked again


class ComfyUILine:
    """Draws batches on running ComfyUIs; their folder of output keeps the pictures, too.

    Args:
        urls: Their addresses.
        template: The workflow.

    Raises:
        ValueError: None of them answers.
    """

    def __init__(self, urls: Sequence[str], template: Fills) -> None:
        self.template = template
        self.at_once = len(urls)
        self._free, self._dead, self._lock = [Server(url) for url in urls], dict[str, float](), threading.Lock()
        self._stopped = threading.Event()
        there = [server for server in self._free if self._answers(server)]
        if not there:
            raise ValueError(f"None of these answers as a ComfyUI: {', '.join(urls)}. Start one, or mend the addresses.")
        self._pool = Pool(self._next, len(urls), (NoAnswerError,), self._lost, idle=float("inf"), tries=len(urls) + 2)

    def _answers(self, server: Server) -> bool:
        """Whether it does; who doesn't is asked again later."""
        try:
            server.ask("/queue")
        except ValueError:
            self._dead[server.url] = time.monotonic()
            return False
        return True

    def _next(self) -> Server | None:
        """One that nobody uses and that answers."""
        with self._lock:
            for server in list(self._free):
                if time.monotonic() - self._dead.get(server.url, -_AGAIN) >= _AGAIN and self._answers(server):
                    self._free.remove(server)
                    return server
        return None

    def _lost(self, server: Server) -> None:
        with self._lock:
            self._dead[server.url] = time.monotonic()
            self._free.append(server)

    def draw(self, part: Sequence[Item], seed: int) -> Drawn:
        """See ``bulk.job.Draw``."""
        graph = self.template.fill(part, seed)
        end, name = ends(graph), f"{OURS}save"
        files = f"{PREFIX}{part[0].number:07d}-{uuid.uuid4().hex[:8]}"  # several ComfyUIs may count the files of one folder
        inputs = {"images": end.pictures, "verdict": end.verdict, "filename_prefix": files}
        asked = {**graph, name: {"class_type": SAVE, "inputs": inputs}}
        try:
            made = self._pool.run(lambda server: self._run(server, asked, name))
        except NoWorkersError as error:
            raise PictureError(f"{error} No ComfyUI answers any more.") from error
        pictures, stories = zip(*made, strict=True)
        return Drawn(torch.stack(pictures), verdict_of(stories), graph)

    def _run(self, server: Server, graph: dict[str, Any], save: str) -> list[tuple[Tensor, dict[str, Any]]]:
        """Pictures and stories of a graph.

        Raises:
            PictureError: ComfyUI refused it, or a node failed.
            Interrupted: Somebody stopped the job.
        """
        try:
            run = server.queue(graph, uuid.uuid4().hex)
            while (entry := server.ended(run)) is None:
                if self._stopped.wait(_POLL):
                    server.interrupt(run)
                    raise Interrupted
            return [read_png(server.file(file)) for file in entry["outputs"][save]["images"]]
        except NoAnswerError:
            raise
        except ValueError as error:
            raise PictureError(str(error)) from error

    def interrupt(self) -> None:
        """Stop what runs everywhere."""
        self._stopped.set()


def read_png(content: bytes) -> tuple[Tensor, dict[str, Any]]:
    """A picture [H, W, 3] in 0..1 that Save Images has written, and its story.

    Raises:
        ValueError: It has no story.
    """
    with Image.open(io.BytesIO(content)) as picture:
        if CHUNK not in picture.info:
            raise ValueError("The ComfyUI writes no metadata, so no verdict comes back: start it without --disable-metadata.")
        story = json.loads(picture.info[CHUNK])
        return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255), story


def verdict_of(stories: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict that pictures were saved with."""
    first, numbers = stories[0], ("score", "threshold", "draft_score", "nfe")  # NaN and infinity are texts
    rows: list[dict[str, Any]] = [
        {key: float(s[key]) if key in numbers and s[key] is not None else s[key] for key in Judgement.__dataclass_fields__}
        for s in stories
    ]
    judgements = tuple(Judgement(**row) for row in rows)
    return Verdict(
        judgements, first["oracle"], first["oracle_fingerprint"], first["mode"], float(first["value"]),
        student=first["student_fingerprint"], teacher=first["teacher_fingerprint"],
    )  # fmt: skip
