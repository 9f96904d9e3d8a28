"""Stage ``export``: the trained networks into ``world/weights``, with what is needed to use them in the metadata."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from ...files import save_safetensors_atomically
from ...networks.tiny_autoencoder import FOLD, INNER_CHANNELS, TinyAutoencoder
from ...training.run_folder import RunFolder
from ..weights import FOLDER, half, load_oracle
from . import sid
from .concepts import GATE_SETS
from .data import BACKGROUND_COLOURS, Icons, on_background
from .judge import SHAPE as JUDGE_SHAPE
from .latents import load_autoencoder, vocabulary

LICENCE = "Apache-2.0; trained on icons under Apache-2.0 and MIT, see CARD.md"


def run(work: Path, target: Path = FOLDER) -> None:
    """Export whatever has been trained; a network whose checkpoint is missing is left as it is."""
    words = json.dumps(vocabulary(Icons.load(work, ("noto",)).tags).words)
    autoencoder = load_autoencoder(work / "autoencoder.safetensors")
    _save(target, "autoencoder", load_file(work / "autoencoder.safetensors"), {"preview": _preview(autoencoder, work)})
    for name, source, shape in (("oracle", "clip", {}), ("judge", "judge", JUDGE_SHAPE)):
        if (ema := _ema(work, source)) is not None:
            _save(target, name, half(ema), {"words": words, "shape": json.dumps(shape)})
    if (ema := _ema(work, "teacher")) is not None:
        _save(target, "text", half(_below(ema, "text.")), {"words": words})
        _save(target, "teacher", half(_below(ema, "unet.")))
    for source, name in (("student", "student_consistency"), ("control", "control")):
        if (ema := _ema(work, source)) is not None:
            _save(target, name, half(ema))
    if (ema := _ema(work, "sid")) is not None:
        _save(target, "student_sid", half(ema), sid.about())
        curve = [json.loads(line) for line in (work / "sid_curve.jsonl").read_text().splitlines()]
        (target.parent / "sid_curve.json").write_text(json.dumps(curve, indent=1) + "\n")
    if (target / "judge.safetensors").exists():
        _save(target, "reference", _reference(work))
    total = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    print(f"{target}: {total / 2**20:.1f} MiB")


def _ema(work: Path, name: str) -> dict[str, Tensor] | None:
    path = RunFolder(work / name).checkpoint
    return torch.load(path, map_location="cpu", weights_only=True)["ema"] if path.exists() else None


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _save(target: Path, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    save_safetensors_atomically(tensors, target / f"{name}.safetensors", {"licence": LICENCE, **(metadata or {})})


@torch.no_grad()
def _reference(work: Path) -> dict[str, Tensor]:
    """Mean and covariance of the judge's features over the real pictures on every background: for Frechet distances."""
    network, icons, features = load_oracle("judge").network, Icons.load(work, GATE_SETS), []
    for colour in BACKGROUND_COLOURS:
        for vendor in range(len(GATE_SETS)):
            images = on_background(icons.rgba[vendor, icons.has[vendor], 0], colour.expand(int(icons.has[vendor].sum()), -1))
            features.append(network.encode_image(images * 2 - 1))
    every = torch.cat(features).double()
    return {"mean": every.mean(0), "covariance": every.T.cov()}


@torch.no_grad()
def _preview(autoencoder: TinyAutoencoder, work: Path) -> str:
    """The linear map from inner latents to colours (-1..1) that previews use, by least squares."""
    table = load_file(work / "latents.safetensors")["table"]
    chosen = torch.randperm(table[..., 0, 0, 0].numel(), generator=torch.Generator().manual_seed(5))[:512]
    latents = table.flatten(0, 3)[chosen].float()
    small = F.avg_pool2d(torch.cat([autoencoder.decode(part) for part in latents.split(64)]), 4)
    inner = F.pixel_shuffle(latents, FOLD).movedim(1, -1).reshape(-1, INNER_CHANNELS)
    design = torch.cat([inner, torch.ones(len(inner), 1)], 1)
    solution = torch.linalg.lstsq(design, small.movedim(1, -1).reshape(-1, 3)).solution
    return json.dumps({"factors": solution[:-1].tolist(), "bias": solution[-1].tolist()})
