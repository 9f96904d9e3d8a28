"""``python -m comfyui_apprentice.cli``."""

from . import app

app()
