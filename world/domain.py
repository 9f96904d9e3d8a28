"""Pictures of a domain that ship with the tiny world: icons of a vendor that none of PromptKD's two CLIPs has seen."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .weights import CLIPS_FOLDER

DOMAIN = "noto-v1"
SIZE, POSES, TRAIN_POSES = 64, 8, 6  # pixels; poses of every icon; how many of these are for training
# The recipe's backgrounds, which is not installed with the pack.
COLOURS = torch.tensor(
    [(255, 255, 255), (158, 158, 158), (33, 33, 33), (229, 115, 115), (255, 183, 77), (255, 241, 150), (150, 208, 153),
     (120, 186, 245), (186, 120, 205), (248, 187, 216)]
).float() / 255  # fmt: skip


@lru_cache(maxsize=1)
def domain_names() -> tuple[str, ...]:
    """What the icons show, in the order of their labels.

    Raises:
        FileNotFoundError: The file is not there; the installation is incomplete.
    """
    path = CLIPS_FOLDER / f"{DOMAIN}.json"
    if not path.is_file():
        raise FileNotFoundError(f"The tiny world's icons '{path.name}' are missing; install Apprentice again.")
    return tuple(json.loads(path.read_text(encoding="utf-8")))


def domain_pictures(train: bool, backgrounds: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures [N, 64, 64, 3] in 0..1 and their labels [N], shuffled: every icon in every pose on so many backgrounds.

    Args:
        train: Whether they show the poses for training or the two for testing.
        backgrounds: How many colours are drawn for each icon and pose.
        seed: Of the colours and of the order.

    Raises:
        FileNotFoundError: The file is not there; the installation is incomplete.
    """
    names, rng = domain_names(), torch.Generator().manual_seed(seed)
    with Image.open(CLIPS_FOLDER / f"{DOMAIN}.webp") as opened:
        atlas = torch.from_numpy(np.array(opened.convert("RGBA"))).float() / 255
    rgba = atlas.view(len(names), SIZE, POSES, SIZE, 4).permute(2, 0, 1, 3, 4)  # [poses, icons, 64, 64, 4]
    pictures = []
    for pose in range(TRAIN_POSES) if train else range(TRAIN_POSES, POSES):
        for _ in range(backgrounds):
            colour = COLOURS[torch.randint(len(COLOURS), (len(names),), generator=rng)][:, None, None, :]
            pictures.append(rgba[pose, ..., :3] * rgba[pose, ..., 3:] + colour * (1 - rgba[pose, ..., 3:]))
    order = torch.randperm(len(pictures) * len(names), generator=rng)
    return torch.cat(pictures)[order], torch.arange(len(names)).repeat(len(pictures))[order]
