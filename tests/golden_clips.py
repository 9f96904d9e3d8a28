"""The tiny CLIPs that PromptKD's golden numbers were made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfyui_apprentice.oracles.towers import build_open_clip, open_clip_config
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent / "data" / "promptkd"
CLASSES = [
    "annual_crop_land",
    "forest",
    "golden retriever",
    "Boeing 737-200",
    "café au lait",
    "t-shirt (white)",
    "St. Bernard's_dog",
]


def golden(name: str) -> dict[str, Tensor]:
    return load_file(DATA / f"{name}.safetensors")


def clip(name: str) -> Any:
    weights = golden(f"{name}_clip")
    ids, rows = weights.pop("token_embedding.used_ids"), weights.pop("token_embedding.used_rows")
    table = torch.zeros(49408, rows.shape[1])
    table[ids] = rows.float()
    weights = {key: value.float() for key, value in {**weights, "token_embedding.weight": table}.items()}
    return build_open_clip(weights, "a tiny CLIP", config=open_clip_config(weights, head_width=64), quick_gelu=True)
