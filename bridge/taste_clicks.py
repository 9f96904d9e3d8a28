"""Clicks from the browser: routes of ComfyUI's own server, and the files that they fill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths
import torch
from aiohttp import web
from torch import Tensor

from ..oracles.base import Oracle
from ..training.clicks import Array, ClickedPicture, ClickFile, Clicks
from .board import shown
from .memory import on_device

ROUTE = "/apprentice/taste"
_ENDING = ".jsonl"
_BODY_BYTES = 4096
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def folder() -> Path:
    """Where files of clicks lie."""
    return Path(folder_paths.get_user_directory()) / "default" / "apprentice" / "taste"


def names() -> list[str]:
    """The tastes that there are clicks for."""
    return sorted(path.name.removesuffix(_ENDING) for path in folder().glob(f"*{_ENDING}"))


def click_file(name: str) -> ClickFile:
    """The clicks of one taste; ``name`` is one that ``folders.check_name`` lets pass."""
    return ClickFile(folder() / f"{name}{_ENDING}")


def features_of(oracle: Oracle, file: ClickFile, clicks: Clicks) -> dict[str, Array]:
    """Features of all clicked pictures as ``oracle`` sees them, by name; the file keeps what it didn't have yet."""
    there = clicks.features.get(oracle.fingerprint(), {})
    if len({len(row) for row in there.values()}) > 1:  # a stranger's file: one network has one number of them
        there = {}
    missing = [key for key in clicks.clicked if key not in there]
    new: dict[str, Array] = {}
    with on_device(oracle.network) as device, torch.no_grad():
        for key in missing:
            new[key] = oracle.features(_as_image(clicks.pictures[key]).to(device))[0].double().cpu().numpy()
    if new:
        with suppress(ValueError):  # a full file: they are worked out again next time
            file.remember(oracle.fingerprint(), new)
    every = {**there, **new}
    return {key: every[key] for key in clicks.clicked}


def scores_of(oracle: Oracle, clicks: Clicks, keys: list[str]) -> list[float]:
    """A judge's scores of clicked pictures."""
    with on_device(oracle.network):
        pictures = [clicks.pictures[key] for key in keys]
        return [float(oracle.score(_as_image(picture), [picture.prompt])[0]) for picture in pictures]


def _as_image(picture: ClickedPicture) -> Tensor:
    return torch.from_numpy(picture.pixels.copy())[None].float() / 255


def register(routes: web.RouteTableDef, check_name: Callable[[str, str], str]) -> None:
    """Add the routes to a server's.

    Args:
        check_name: Raises ValueError for what can't be a file's name.
    """

    def told(work: Callable[[ClickFile, dict[str, Any]], web.StreamResponse]) -> Handler:
        """A handler that answers with a sentence where ``work`` raises one."""

        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                name = check_name(request.match_info["name"], "taste")
                return await asyncio.to_thread(work, click_file(name), await _body(request))
            except ValueError as error:
                return web.json_response({"error": str(error)}, status=400)
            except OSError as error:
                return web.json_response({"error": f"The clicks can't be kept: {error.strerror}."}, status=500)

        return handler

    @routes.get(ROUTE)
    async def listed(_request: web.Request) -> web.StreamResponse:
        counts = await asyncio.to_thread(lambda: {name: _counts(click_file(name)) for name in names()})
        return web.json_response({"names": counts})

    routes.post(f"{ROUTE}/{{name}}/clicks")(told(_click))
    routes.post(f"{ROUTE}/{{name}}/undo")(told(lambda file, _: web.json_response(_counted(file.undo()))))
    routes.get(f"{ROUTE}/{{name}}/file")(told(_sent))
    routes.delete(f"{ROUTE}/{{name}}")(told(_deleted))


async def _body(request: web.Request) -> dict[str, Any]:
    """The request's JSON object; empty where it has none.

    Raises:
        ValueError: It is something else, or long.
    """
    if (request.content_length or 0) > _BODY_BYTES:
        raise ValueError("That is too long for a click.")
    text = await request.content.read(_BODY_BYTES + 1)
    if not text:
        return {}
    try:
        content = json.loads(text) if len(text) <= _BODY_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError("A click is a JSON object with better and worse.")
    return content


def _click(file: ClickFile, body: dict[str, Any]) -> web.StreamResponse:
    better, worse = str(body.get("better", "")), str(body.get("worse", ""))
    there = {key: shown(key) for key in (better, worse)}
    pictures = {key: ClickedPicture(p.picture, p.prompt, p.improved, p.origin) for key, p in there.items() if p is not None}
    return web.json_response(_counted(file.add(pictures, better, worse)))


def _sent(file: ClickFile, _: dict[str, Any]) -> web.StreamResponse:
    if not file.path.exists():
        raise ValueError(f"There are no clicks under the name '{file.path.stem}'.")
    return web.FileResponse(file.path, headers={"Content-Disposition": 'attachment; filename="taste.jsonl"'})


def _deleted(file: ClickFile, _: dict[str, Any]) -> web.StreamResponse:
    file.delete()
    return web.json_response({"deleted": True})


def _counts(file: ClickFile) -> dict[str, Any]:
    try:
        return _counted(file.read(pixels=False))
    except ValueError as error:
        return {"clicks": 0, "pictures": 0, "error": str(error)}


def _counted(clicks: Clicks) -> dict[str, Any]:
    return {"clicks": len(clicks.pairs), "pictures": len(clicks.pictures)}
