"""Apprentice: a fast student draws, an oracle judges, the slow teacher improves only the weak pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.v0_0_2 import ComfyExtension

__version__ = "0.5.0"
WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """What ComfyUI calls; imported here so that networks and training run without ComfyUI."""
    from .nodes import ApprenticeExtension

    return ApprenticeExtension()
