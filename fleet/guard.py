"""What stands before the service's HTTP: host, token, rate and size of a request are looked at before anything else is."""

from __future__ import annotations

import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse

from .jobs import RefusedError
from .serving import Service

_LOCAL = ("localhost", "127.0.0.1", "::1", "[::1]")
_OPEN = ("/healthz", "/readyz", "/openapi.json", "/docs")  # without a token, and as often as anybody likes
_CLIENTS = 10_000  # whose requests are counted
_TOKEN = 16  # letters that a token has at least
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Rules:
    """Who may ask, how much and how often.

    Attributes:
        token: What clients must show; "" for nothing, on this machine alone.
        max_prompts: Of a request.
        max_body: Bytes of a request.
        rate: Requests a minute of a client, by its address; 0 for no bound.
        longest: Seconds that a request may give itself as its deadline.
    """

    token: str = ""
    max_prompts: int = 16
    max_body: int = 65536
    rate: int = 60
    longest: float = 3600.0


def check_host(host: str, token: str) -> None:
    """Raises: ValueError: It listens to others without a token, or with one that is guessed."""
    local = host in _LOCAL
    if not local:
        try:
            local = ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            local = False
    if not local and not token:
        raise ValueError(f"On {host} others can reach the service: give it a secret with --token-file, or take 127.0.0.1.")
    if token and (len(token) < _TOKEN or not token.isascii() or not token.isprintable()):
        made = "python -c 'import secrets; print(secrets.token_hex())'"
        raise ValueError(f"A token has {_TOKEN} letters or more, plain ones, such as of {made}.")


class Guard:
    """The application behind a look at every request."""

    def __init__(self, app: Any, service: Service, rules: Rules) -> None:
        self.app, self.service, self.rules = app, service, rules
        self.spent = OrderedDict[str, tuple[float, float]]()  # client -> when, and how much of its minute it had left

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value for key, value in scope["headers"]}
        told = False

        async def counted(message: Message) -> None:
            nonlocal told
            if message["type"] == "http.response.start":
                told = True
                self.service.metrics.statuses.labels(str(message["status"])).inc()
            await send(message)

        problem = self._problem(scope, headers) or await self._body(headers, receive)
        if isinstance(problem, JSONResponse):
            await problem(scope, receive, counted)
            return
        try:
            await self.app(scope, problem, counted)
        except Exception:  # told without its words, which are the server's own affair
            if told:
                raise
            await refusal(500, "Something went wrong in the service; its log says what.")(scope, receive, counted)
            raise

    def _problem(self, scope: Any, headers: dict[str, bytes]) -> JSONResponse | None:
        rules, host = self.rules, headers.get("host", b"").decode("latin-1")
        if not rules.token and host.rsplit(":", 1)[0] not in _LOCAL:  # a page elsewhere whose name leads here
            return refusal(403, "Without a token the service answers to localhost and 127.0.0.1 alone.")
        if scope["path"] in _OPEN:
            return None
        shown = headers.get("authorization", b"")
        if rules.token and not hmac.compare_digest(shown, f"Bearer {rules.token}".encode()):
            return refusal(401, "Show the service's token: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"})
        wait = self._wait((scope.get("client") or ("",))[0]) if rules.rate and scope["method"] == "POST" else 0.0
        if wait > 0:
            return not_now(RefusedError("rate", f"At most {rules.rate} requests a minute; come back later.", wait), self.service)
        return None

    def _wait(self, client: str) -> float:
        """Seconds until a client may ask again; 0: it may, and has (a bucket that fills in a minute)."""
        now, rate = time.monotonic(), self.rules.rate
        before, left = self.spent.pop(client, (now, float(rate)))
        left = min(left + (now - before) * rate / 60, rate)
        self.spent[client] = (now, left - 1 if left >= 1 else left)
        if len(self.spent) > _CLIENTS:
            self.spent.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) * 60 / rate

    async def _body(self, headers: dict[str, bytes], receive: Receive) -> Receive | JSONResponse:
        """The whole body, to be received again; or what is wrong with it."""
        most, body, more = self.rules.max_body, b"", True
        said = headers.get("content-length", b"0")
        large = said.isdigit() and int(said) > most
        while more and not large:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body, more = body + message.get("body", b""), message.get("more_body", False)
            large = len(body) > most
        if large:
            return refusal(413, f"A request has at most {most:,} bytes.", {"Connection": "close"})
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again


def refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """What went wrong, in a sentence."""
    return JSONResponse({"error": sentence}, status, headers)


def not_now(error: RefusedError, service: Service) -> JSONResponse:
    """What isn't taken on."""
    service.metrics.refused.labels(error.reason).inc()
    status = {"key": 422, "not ready": 503}.get(error.reason, 429)
    return refusal(status, str(error), {"Retry-After": str(math.ceil(error.retry))} if error.retry else None)
