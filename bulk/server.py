"""A running ComfyUI, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any


class NoAnswerError(ValueError):
    """Nobody answers there; the message says so."""


class Server:
    """A ComfyUI at an address such as http://127.0.0.1:8188."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # as aiohttp: no proxy in between

    def queue(self, graph: dict[str, Any], client: str) -> str:
        """Have a graph run; the id of its run.

        Raises:
            NoAnswerError: ComfyUI is not there.
            ValueError: It refused; the message is ComfyUI's.
        """
        return str(self.ask("/prompt", {"prompt": graph, "client_id": client})["prompt_id"])

    def ended(self, run: str) -> dict[str, Any] | None:
        """What the history says of a run; None while it isn't over.

        Raises:
            NoAnswerError: ComfyUI is not there.
            ValueError: The run failed, or was interrupted; the message is ComfyUI's.
        """
        entry: dict[str, Any] | None = self.ask(f"/history/{run}").get(run)
        if entry is not None and entry["status"]["status_str"] != "success":
            raise ValueError(_why(entry["status"]))
        return entry

    def interrupt(self, run: str) -> None:
        """Stop a run."""
        self.ask("/interrupt", {"prompt_id": run})

    def file(self, entry: dict[str, str]) -> bytes:
        """A picture that a run has made, as its ``ui`` names it."""
        return self._answer(f"/view?{urllib.parse.urlencode(entry)}", None)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What it answers, read as JSON."""
        return json.loads(self._answer(path, None if body is None else json.dumps(body).encode()) or b"{}")

    def _answer(self, path: str, data: bytes | None) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=60) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise ValueError(f"ComfyUI refused: {_refusal(error.read())}") from error
        except (urllib.error.URLError, OSError) as error:
            raise NoAnswerError(f"No ComfyUI answers at {self.url} ({getattr(error, 'reason', error)}).") from error


def _refusal(answer: bytes) -> str:
    """ComfyUI's sentences about a graph that it won't run."""
    try:
        refusal = json.loads(answer)
        details = [error["details"] or error["message"] for node in refusal["node_errors"].values() for error in node["errors"]]
        return "; ".join(dict.fromkeys(details)) or str(refusal["error"]["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.decode(errors="replace")[:500]


def _why(status: dict[str, Any]) -> str:
    """Why a run ended without success."""
    for kind, data in status["messages"]:
        if kind == "execution_error":
            return str(data["exception_message"]).strip()
        if kind == "execution_interrupted":
            return "It was interrupted; the same command goes on where it was."
    return "ComfyUI did not say what went wrong; see its log."
