"""ComfyUI in this process, for every family at tiny size: there before the tests' own imports of it."""

from __future__ import annotations

from comfyui_apprentice.benchmarks import tiny_families

tiny_families.start()
