"""Stage ``judge``: a second CLIP that no gate ever sees: other vendors, another seed, another width."""

from __future__ import annotations

from pathlib import Path

from .clip import run as train_clip
from .concepts import JUDGE_SETS

SHAPE = {"width": 128, "layers": 4, "text_width": 64, "embed": 64}


def run(work: Path) -> None:
    """Train ``work/judge.safetensors``."""
    train_clip(work, "judge", JUDGE_SETS, seed=47, **SHAPE)
