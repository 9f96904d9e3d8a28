"""Stage ``digits``: a pixel-space EDM network of coloured handwritten digits and its SiD student, to try Load EDM Network with.

The pictures are scikit-learn's 8x8 digits (UCI, CC BY 4.0), each class in a colour of its own on dark blue.
"""

from __future__ import annotations

import colorsys
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...files import save_safetensors_atomically
from ...networks.edm import build_edm
from ...training.distill import Settings, card, distil
from ...training.edm_task import edm_task
from ...training.loop import Schedule, Watch, train
from ...training.run_folder import RunFolder
from ...training.sid import add_noise, fake_score_loss, log_normal_level
from ...weights.edm_pickle import Snapshot, snapshot_metadata
from ..weights import EDM_FOLDER
from .log import log_to

CLASSES, SIZE = 10, 8
CONFIG: dict[str, Any] = {
    "_class_name": "EDMPrecond", "model_type": "SongUNet", "img_resolution": SIZE, "img_channels": 1, "label_dim": CLASSES,
    "model_channels": 16, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0,
}  # fmt: skip
SETTINGS = Settings(batch=64, generator_rate=3e-4, fake_rate=1e-3, alpha=1.0, decay=0.5)
"""Learning rates a hundred times those of the published runs, which suit networks five hundred times as large."""

TEACHER = Schedule(pictures=120_000, batch=64, learning_rate=2e-3, decay=0.6)
STUDENT = Settings(**{**SETTINGS.__dict__, "pictures": 48_000})
COLOURED = {**CONFIG, "img_channels": 3}
NIGHT = torch.tensor([0.06, 0.08, 0.22])


def digits() -> tuple[Tensor, Tensor]:
    """The data set: pictures [1797, 1, 8, 8] in -1..1, and their classes [1797].

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.images).float()[:, None] / 8 - 1, torch.from_numpy(data.target).long()


def train_edm(
    config: dict[str, Any], images: Tensor, labels: Tensor | None, schedule: Schedule, folder: RunFolder, *, seed: int = 0,
    watch: Watch | None = None,
) -> Snapshot:  # fmt: skip
    """The network of ``config`` trained on pictures [N, C, H, W] in -1..1 (EDM, Table 1), which ``folder`` resumes.

    Args:
        labels: Their classes, one-hot [N, classes]; none for an unconditional network.

    Returns:
        Its configuration and weights, as ``read_edm`` gives them.
    """
    torch.manual_seed(seed)
    network = build_edm(config)

    def loss(rng: torch.Generator, batch: int) -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=rng)
        sigma = log_normal_level(torch.randn(batch, 1, 1, 1, generator=rng))
        x = add_noise(images[rows], sigma, torch.randn(batch, *images.shape[1:], generator=rng))
        return fake_score_loss(images[rows], network(x, sigma, None if labels is None else labels[rows]), sigma).mean()

    return config, train(network, loss, schedule, folder, seed=seed, watch=watch).shadow


def coloured(grey: Tensor, classes: Tensor) -> Tensor:
    """Grey digits [B, 1, 8, 8] in -1..1 in their class's colour: [B, 3, 8, 8] in -1..1."""
    colours = torch.tensor([colorsys.hsv_to_rgb(number / CLASSES, 0.65, 1.0) for number in range(CLASSES)])
    ink = (grey + 1) / 2
    return (NIGHT.view(1, 3, 1, 1) * (1 - ink) + colours[classes].view(-1, 3, 1, 1) * ink) * 2 - 1


def run(work: Path) -> None:
    """Train teacher and student; write both into ``world/edm``."""
    grey, classes = digits()
    images, labels = coloured(grey, classes), F.one_hot(classes, CLASSES).float()
    watch = Watch(log_to(work / "digits.log"))
    teacher = train_edm(COLOURED, images, labels, TEACHER, RunFolder(work / "digits"), seed=91, watch=watch)
    student = distil(
        edm_task(teacher), STUDENT, RunFolder(work / "digits_sid"), watch=Watch(log_to(work / "digits_sid.log"))
    ).shadow
    names = json.dumps([f"digit {number}" for number in range(CLASSES)])
    licence = "Apache-2.0; trained on scikit-learn's digits (UCI, CC BY 4.0)"
    about = snapshot_metadata(COLOURED) | {"class_names": names, "licence": licence}
    EDM_FOLDER.mkdir(exist_ok=True)
    for name, tensors, more in (
        ("coloured digits teacher", teacher[1], {}),
        ("coloured digits SiD student", student, card(STUDENT, "coloured digits teacher", "", preset="sid-edm")),
    ):
        save_safetensors_atomically(
            {key: value.bfloat16() for key, value in tensors.items()}, EDM_FOLDER / f"{name}.safetensors", more | about
        )
