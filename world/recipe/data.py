"""Stage ``data``: fetch the icon sets, render every concept in several poses, write one safetensors file.

Nothing here is random beyond the seed: the same packages give the same bytes.
"""

from __future__ import annotations

import io
import json
import math
import random
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from ...files import save_safetensors_atomically
from .concepts import BACKGROUNDS, ICON_SETS, ICONS

SIZE = 64
POSES = 12  # pose 0 is the icon as its vendor drew it, centred; the others are shifted, scaled, turned, mirrored
EMOJIBASE = ("emojibase-data", "17.0.0")
# Mirroring these would change what they mean or spell.
_NEVER_MIRRORED = {"crescent-moon", "pool-8-ball"}


def fetch_package(name: str, version: str, folder: Path) -> Path:
    """The unpacked npm package ``name@version`` below ``folder``; downloaded with ``npm pack`` when it is not there.

    Raises:
        RuntimeError: npm is missing, or the registry has no such version.
    """
    target = folder / name.replace("/", "__") / version
    if (target / "package.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    try:
        packed = subprocess.run(
            ["npm", "pack", f"{name}@{version}", "--silent"], cwd=target, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"Could not fetch {name} {version} with npm: install Node.js, or check the network.") from error
    archive = target / packed.stdout.strip().splitlines()[-1]
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if member.isfile():
                path = target / Path(*Path(member.name).parts[1:])
                path.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None  # a regular file always has contents
                path.write_bytes(source.read())
    archive.unlink()
    return target


def pose_of(icon: str, index: int, rng: random.Random) -> tuple[float, float, float, float, bool]:
    """(scale, degrees, shift x, shift y as fractions of the picture, mirrored) of pose ``index``."""
    if index == 0:
        return 0.92, 0.0, 0.0, 0.0, False
    return (
        rng.uniform(0.76, 0.98),
        rng.uniform(-9, 9),
        rng.uniform(-0.05, 0.05),
        rng.uniform(-0.05, 0.05),
        rng.random() < 0.4 and icon not in _NEVER_MIRRORED,
    )


def render(body: str, width: float, height: float, pose: tuple[float, float, float, float, bool]) -> np.ndarray:
    """The SVG ``body`` drawn in ``pose`` on a transparent ground: uint8 [64, 64, 4], straight alpha."""
    import resvg_py

    scale, degrees, dx, dy, mirrored = pose
    cx, cy = width / 2, height / 2
    place = (
        f"translate({cx + dx * width} {cy + dy * height}) rotate({degrees}) "
        f"scale({-scale if mirrored else scale} {scale}) translate({-cx} {-cy})"
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{SIZE}" height="{SIZE}"><g transform="{place}">{body}</g></svg>'
    )
    # Twice the size and a box filter: smoother than the renderer's own antialiasing at 64 pixels.
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    premultiplied = np.asarray(image, np.float32)
    alpha = premultiplied[..., 3:] / 255
    premultiplied = np.concatenate([premultiplied[..., :3] * alpha, premultiplied[..., 3:]], -1)
    small = premultiplied.reshape(SIZE, 2, SIZE, 2, 4).mean((1, 3))
    small[..., :3] /= np.maximum(small[..., 3:] / 255, 1e-6)
    return np.clip(small + 0.5, 0, 255).astype(np.uint8)


def run(work: Path, seed: int = 0) -> None:
    """Render all sets into ``work/data.safetensors``: ``<set>`` uint8 [icons, POSES, 64, 64, 4] and ``<set>.has`` bool."""
    tensors: dict[str, torch.Tensor] = {}
    for set_name, (package, version, _licence) in ICON_SETS.items():
        folder = fetch_package(package, version, work / "npm")
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        pictures = np.zeros((len(ICONS), POSES, SIZE, SIZE, 4), np.uint8)
        has = np.zeros(len(ICONS), bool)
        for i, icon in enumerate(ICONS):
            source = icons["icons"].get(icons.get("aliases", {}).get(icon, {}).get("parent", icon))
            if source is None:
                continue
            has[i] = True
            width = float(source.get("width", icons["width"]))
            height = float(source.get("height", icons["height"]))
            for p in range(POSES):
                rng = random.Random(f"{seed}|{set_name}|{icon}|{p}")
                pictures[i, p] = render(source["body"], width, height, pose_of(icon, p, rng))
        tensors[set_name], tensors[f"{set_name}.has"] = torch.from_numpy(pictures), torch.from_numpy(has)
    emojibase = fetch_package(*EMOJIBASE, work / "npm")
    tags = _tags(json.loads((emojibase / "en" / "data.json").read_text(encoding="utf-8")))
    save_safetensors_atomically(tensors, work / "data.safetensors", {"tags": json.dumps(tags)})


def _tags(emojibase: list[dict]) -> list[list[str]]:
    """For every icon, the single-word keywords that emojibase gives it."""
    by_name = {_slug(entry["label"]): entry.get("tags", []) for entry in emojibase}
    return [[t for t in by_name.get(icon, []) if t.isalpha() and t.isascii() and len(t) > 2] for icon in ICONS]


def _slug(label: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in label.lower()).split())


@dataclass
class Icons:
    """The rendered icons of some vendors: ``rgba`` uint8 [sets, icons, poses, 64, 64, 4], ``has`` bool [sets, icons]."""

    rgba: torch.Tensor
    has: torch.Tensor
    tags: list[list[str]]

    @classmethod
    def load(cls, work: Path, sets: tuple[str, ...]) -> Icons:
        """Read ``work/data.safetensors`` for these vendors."""
        with safe_open(work / "data.safetensors", "pt") as file:
            tags = json.loads(file.metadata()["tags"])
            rgba = torch.stack([file.get_tensor(s) for s in sets])
            has = torch.stack([file.get_tensor(f"{s}.has") for s in sets])
        return cls(rgba, has, tags)


BACKGROUND_COLOURS = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32) / 255


def on_background(rgba: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Alpha-composite uint8 ``rgba`` [B, H, W, 4] onto ``colour`` [B, 3] in 0..1; returns [B, 3, H, W] in 0..1."""
    picture = rgba.float() / 255
    alpha = picture[..., 3:]
    return (picture[..., :3] * alpha + colour[:, None, None, :] * (1 - alpha)).permute(0, 3, 1, 2)


def sheet(images: torch.Tensor, columns: int, zoom: int = 1) -> Image.Image:
    """A contact sheet of ``images`` [B, 3, H, W] in 0..1."""
    b, _, h, w = images.shape
    rows = math.ceil(b / columns)
    canvas = torch.ones(3, rows * (h + 2), columns * (w + 2))
    for i, image in enumerate(images.float().clamp(0, 1)):
        y, x = (i // columns) * (h + 2), (i % columns) * (w + 2)
        canvas[:, y : y + h, x : x + w] = image
    picture = Image.fromarray((canvas.permute(1, 2, 0) * 255).round().byte().numpy())
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
