"""No network but this machine's own: an audit hook that refuses every other address, in the tests and in their ComfyUIs."""

from __future__ import annotations

import ipaddress
import sys
from typing import Any

REFUSED: list[str] = []
"""What was asked for and refused; a library may swallow the refusal."""


def block() -> None:
    """From now on, for the rest of this process."""
    sys.addaudithook(_hook)


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = given[1]
        host = address[0] if isinstance(address, tuple) else ""  # a path: between processes
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = given[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and host != "localhost" and not _own(host):
        REFUSED.append(host)
        raise ConnectionRefusedError(f"The tests have no network, and something asks for {host}.")


def _own(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
