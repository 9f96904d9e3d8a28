"""``python -m comfyui_apprentice.world.recipe STAGE --work DIR [--threads N]``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch

STAGES = (
    "data", "autoencoder", "clip", "judge", "teacher", "student", "sid", "digits", "clips", "critic", "control", "export", "card",
)  # fmt: skip


def main() -> None:
    """Run one stage; a stage that was stopped goes on where it was."""
    parser = argparse.ArgumentParser(prog="comfyui_apprentice.world.recipe", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (one beside other work)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    stage = importlib.import_module(f".{arguments.stage}", __package__)
    stage.run(arguments.work)


if __name__ == "__main__":
    main()
