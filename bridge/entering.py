"""ComfyUI in a process of ours, for what has to know its classes: importable, and nothing else is started."""

from __future__ import annotations

import sys
from pathlib import Path


def enter(home: Path, *flags: str, cpu: bool = True) -> None:
    """Import the ComfyUI in ``home``; where it is imported already, this does nothing.

    Args:
        flags: Of ComfyUI's command line.
        cpu: For the CPU, or for whatever there is.

    Raises:
        FileNotFoundError: There is no ComfyUI.
    """
    if "comfy.model_management" in sys.modules:
        return
    if not (home / "comfy").is_dir():
        raise FileNotFoundError(f"There is no ComfyUI in {home or 'the current folder'}: give its folder with --comfyui.")
    argv, sys.argv = sys.argv, [sys.argv[0], *(["--cpu"] if cpu else []), *flags]
    sys.path.insert(0, str(home.resolve()))
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
        import utils.install_util  # noqa: F401 - before nodes.py, which would let comfy/utils.py take the name
    finally:
        sys.argv = argv
    import comfy.model_management
