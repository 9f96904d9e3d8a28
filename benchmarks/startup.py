"""What the pack adds to ComfyUI's start-up, in CPU time, beside what ComfyUI itself takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from .figures import Claim, Figures, print_table

_CODE = """
import asyncio, importlib.util, sys, time
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config, nodes, server, execution
core = time.process_time()
spec = importlib.util.spec_from_file_location("pack", ROOT + "/__init__.py", submodule_search_locations=[ROOT])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
async def load():
    extension = await pack.comfy_entrypoint()
    for node in await extension.get_node_list():
        node.GET_SCHEMA()
asyncio.run(load())
print(core, time.process_time() - core)
"""


def comfyui_home() -> Path:
    """The folder of the ComfyUI in ``$COMFYUI_PATH``.

    Raises:
        FileNotFoundError: There is none there.
    """
    home = Path(os.environ.get("COMFYUI_PATH", ""))
    if not (home / "main.py").exists():
        raise FileNotFoundError("Set COMFYUI_PATH to the folder of a ComfyUI; bash test.sh fetches one into .cache/ComfyUI.")
    return home


def run(repeats: int = 5) -> Figures:
    """Measure in fresh processes of the ComfyUI in ``$COMFYUI_PATH``.

    Raises:
        FileNotFoundError: There is no ComfyUI there.
    """
    home = comfyui_home()
    root = Path(__file__).resolve().parents[1]
    times = []
    for _ in range(repeats):
        code = f"ROOT = {str(root)!r}\n{_CODE}"
        done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=True)
        times.append([float(part) for part in done.stdout.split()[-2:]])
    core, pack = np.array(times).T
    figures = Figures("startup", {"repeats": repeats})
    figures.rows = [
        {"what": "ComfyUI's own imports", "CPU s, median": float(np.median(core)), "least": core.min(), "most": core.max()},
        {"what": "Apprentice on top", "CPU s, median": float(np.median(pack)), "least": pack.min(), "most": pack.max()},
    ]
    figures.claims = {"import_cpu_seconds": Claim(float(np.median(pack)), float(pack.min()), float(pack.max()))}
    print_table(figures.rows)
    return figures
