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
    """Show ``text`` on the node that is running, as the stock nodes show progress text."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    server = getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)
