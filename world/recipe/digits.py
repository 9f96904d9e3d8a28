"""Stage ``digits``: a pixel-space EDM network of coloured handwritten digits and its SiD student, to try Load EDM Network with.

The pictures are scikit-learn's 8x8 digits (UCI, CC BY 4.0), each class in a colour of its own on dark blue.
"""

from __future__ import annotations

import colorsys
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...benchmarks.digits import CLASSES, CONFIG, SETTINGS, digits
from ...files import save_safetensors_atomically
from ...networks.edm import build_edm
from ...training.distill import Settings, card, distil
from ...training.edm_task import edm_task
from ...training.loop import Schedule, Watch, train
from ...training.run_folder import RunFolder
from ...training.sid import add_noise, fake_score_loss, log_normal_level
from ...weights.edm_pickle import snapshot_metadata
from ..weights import EDM_FOLDER
from .log import log_to

TEACHER = Schedule(pictures=120_000, batch=64, learning_rate=2e-3, decay=0.6)
STUDENT = Settings(**{**SETTINGS.__dict__, "pictures": 48_000})
COLOURED = {**CONFIG, "img_channels": 3}
NIGHT = torch.tensor([0.06, 0.08, 0.22])


def coloured(grey: Tensor, classes: Tensor) -> Tensor:
    """Grey digits [B, 1, 8, 8] in -1..1 in their class's colour: [B, 3, 8, 8] in -1..1."""
    colours = torch.tensor([colorsys.hsv_to_rgb(number / CLASSES, 0.65, 1.0) for number in range(CLASSES)])
    ink = (grey + 1) / 2
    return (NIGHT.view(1, 3, 1, 1) * (1 - ink) + colours[classes].view(-1, 3, 1, 1) * ink) * 2 - 1


def run(work: Path) -> None:
    """Train teacher and student; write both into ``world/edm``."""
    grey, classes = digits()
    images, labels = coloured(grey, classes), F.one_hot(classes, CLASSES).float()
    torch.manual_seed(91)
    network = build_edm(COLOURED)

    def loss(rng: torch.Generator, batch: int) -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=rng)
        sigma = log_normal_level(torch.randn(batch, 1, 1, 1, generator=rng))
        x = add_noise(images[rows], sigma, torch.randn(batch, 3, 8, 8, generator=rng))
        return fake_score_loss(images[rows], network(x, sigma, labels[rows]), sigma).mean()

    teacher = train(network, loss, TEACHER, RunFolder(work / "digits"), seed=91, watch=Watch(log_to(work / "digits.log"))).shadow
    student = distil(
        edm_task((COLOURED, teacher)), STUDENT, RunFolder(work / "digits_sid"), watch=Watch(log_to(work / "digits_sid.log"))
    ).shadow
    names = json.dumps([f"digit {number}" for number in range(CLASSES)])
    licence = "Apache-2.0; trained on scikit-learn's digits (UCI, CC BY 4.0)"
    about = snapshot_metadata(COLOURED) | {"class_names": names, "licence": licence}
    EDM_FOLDER.mkdir(exist_ok=True)
    for name, tensors, more in (
        ("coloured digits teacher", teacher, {}),
        ("coloured digits SiD student", student, card(STUDENT, "coloured digits teacher", "", preset="sid-edm")),
    ):
        save_safetensors_atomically(
            {key: value.bfloat16() for key, value in tensors.items()}, EDM_FOLDER / f"{name}.safetensors", more | about
        )
