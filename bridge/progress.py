"""ComfyUI's progress: bars with previews over several packs, and texts on the node that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import latent_preview
from torch import Tensor


def progress(model: comfy.model_patcher.ModelPatcher, steps: int, packs: int = 1) -> Any:
    """A preview callback whose bar runs once over all packs."""
    stock = latent_preview.prepare_callback(model, steps * packs)
    if packs == 1:
        return stock
    done = 0

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        nonlocal done
        stock(min(done, steps * packs - 1), x0, x, steps * packs)
        done += 1

    return callback


def step_reports(model: comfy.model_patcher.ModelPatcher, report: Callable[[int, int, Any], None]) -> Any:
    """A preview callback that tells ``report`` the steps done, all steps, and a preview for ComfyUI's progress bar."""
    previewer = latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        report(step + 1, total, previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None)

    return callback


def show_text(text: str) -> None:
    """Show ``text`` on the node that is running, as the stock nodes show progress text; it goes when the run ends.

    What shall stay is a result: see ``shown``.
    """
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    server = None if context is None else _server()
    if context is not None and server is not None:
        server.send_progress_text(text, _displayed(server, context.node_id))


def shown(text: str, **more: Any) -> dict[str, Any]:
    """The ``ui`` of a node whose result in words is ``text``: it stays on the node, and in ComfyUI's history.

    Args:
        **more: What else the pack's part of the front end is given, by name.
    """
    return {"apprentice_text": [text], **{f"apprentice_{name}": [value] for name, value in more.items()}}


def send(event: str, content: dict[str, Any]) -> None:
    """Send an event of our own about the node that is running to the browser that queued it, if one did."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    server = None if context is None else _server()
    if context is not None and server is not None and server.client_id is not None:
        where = {"node": _displayed(server, context.node_id), "prompt_id": context.prompt_id}
        server.send_sync(event, {**where, **content}, server.client_id)


def _server() -> Any:
    from server import PromptServer

    return getattr(PromptServer, "instance", None)


def _displayed(server: Any, node: str) -> str:
    """The node that the artist sees: of a node within one that expands, the outer one."""
    return str(server.last_node_id) if server.client_id is not None and server.last_node_id is not None else node
