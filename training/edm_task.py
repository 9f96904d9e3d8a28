"""SiD on EDM's networks: from a teacher's file to what ``distil`` takes, and from a run to a student's file.

Three copies of one network play: the teacher, the fake score network and the generator. As in the official loop, dropout is
on in a network where it learns and only there: in the fake score's half while it is fitted, in the generator's half while it
is moved. Where a network only draws or judges it is off, and in the teacher it always is. How much, the network's own
configuration says (0.13 on CIFAR-10, 0.05 on FFHQ and AFHQ, 0.1 on ImageNet). Its masks, and nothing else of a run, depend
on the number of processes and on the size of the parts. Labels are never dropped, whatever the configuration says.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..files import save_safetensors_atomically, write_atomically
from ..networks.edm import EDMPrecond, restore_edm
from ..precision import DTYPES, autocast
from ..samplers.edm import tile
from ..samplers.schedules import sid_edm_sigmas
from ..weights.edm_pickle import UNET, Snapshot, snapshot_metadata
from .augment import LABELS
from .distill import PRESETS, Preset, Settings, Task, card
from .domain_data import pictures_in, read_picture
from .run_folder import RunFolder
from .sid import Denoise, Labels, edm_denoise, generate
from .sid_iteration import Players, edm_players

PRECISIONS = tuple(DTYPES)
HALF_EPS = 1e-6
"""Adam's eps in float16, as in the official runs."""

EDM_PRESETS: dict[str, Preset] = {name: preset for name, preset in PRESETS.items() if not name.startswith("sd")}
"""The published runs on EDM's networks."""


# ------------------------------------------------------------------------------------------------ the networks


def fit_settings(settings: Settings, config: Mapping[str, Any], precision: str = "fp32") -> Settings:
    """``settings`` for the network of ``config``: augmentation only where it was trained with it, and Adam's eps.

    A network is told of EDM's augmentation by nine numbers (``augment_dim``); one that can't be told would draw it.
    """
    augment = settings.augment if config.get("augment_dim") == len(LABELS) else 0.0
    return replace(settings, augment=augment, eps=HALF_EPS if precision == "fp16" else 1e-8)


def build_network(teacher: Snapshot, name: str = "This file", dropout: float | None = None) -> EDMPrecond:
    """The network in ``teacher``, in float32, with weights of its own.

    Args:
        teacher: What ``read_edm`` gave.
        name: Of the file, for messages.
        dropout: Instead of the configuration's.

    Raises:
        ValueError: It is no EDM network, or its weights don't fit it.
    """
    config, weights = teacher
    if config.get("_class_name") == UNET:
        raise ValueError(f"{name} holds a U-Net of Stable Diffusion; this training is for EDM's pixel-space networks.")
    return copy.deepcopy(restore_edm({**config, **({} if dropout is None else {"dropout": dropout})}, weights, name))


def edm_task(
    teacher: Snapshot, *, name: str = "This file", device: torch.device | str = "cpu", precision: str = "fp32",
    dropout: float | None = None, real: Path | None = None, start: Snapshot | None = None,
) -> Task:  # fmt: skip
    """What ``distil`` takes, for an EDM network: three copies of ``teacher``; classes, if any, are drawn evenly.

    Args:
        teacher: What ``read_edm`` gave.
        name: Of its file, for messages.
        device: Where the networks go.
        precision: ``fp32``; ``fp16``, of F alone as in the official runs and on NVIDIA GPUs; ``bf16``, by autocast.
        dropout: Of the two networks that learn; the configuration's if left out.
        real: A folder of real pictures, for the adversarial loss.
        start: What the student begins as, if not as the teacher.

    Raises:
        ValueError: It is no EDM network, the start is another kind of network, or the options don't suit it or the device.
    """
    device = torch.device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is '{precision}', not one of: {', '.join(PRECISIONS)}.")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"fp16 needs an NVIDIA GPU, and this is {device.type}: use bf16 or fp32.")
    frozen = build_network(teacher, name, dropout).to(device)
    frozen.use_fp16 = precision == "fp16"
    frozen.model.label_dropout = 0.0
    fake, generator = copy.deepcopy(frozen), copy.deepcopy(frozen)
    if start is not None:
        begin_as(generator, start)
    for network in (fake, generator):
        drop_where_it_learns(network)
    players = edm_players(frozen, fake, generator)
    channels, size, classes = frozen.img_channels, frozen.img_resolution, frozen.label_dim
    return Task(
        in_bfloat16(players, device) if precision == "bf16" else players, generator, fake, (channels, size, size),
        lambda rng, batch: (draw_classes(rng, batch, classes), None), lambda steps: tuple(sid_edm_sigmas(steps)),
        device=device, real=None if real is None else RealPictures(real, channels, size, classes),
    )  # fmt: skip


@torch.no_grad()
def begin_as(network: nn.Module, start: Snapshot) -> None:
    """Give ``network`` the weights of another EDM network.

    Raises:
        ValueError: They don't fit it.
    """
    weights = build_network(start, "The student").state_dict()
    shapes, theirs = ({key: value.shape for key, value in state.items()} for state in (network.state_dict(), weights))
    if shapes != theirs:
        raise ValueError("The student has other layers than the teacher: give one that was made from a network of the same kind.")
    network.load_state_dict(weights)


def draw_classes(rng: torch.Generator, batch: int, classes: int) -> Tensor | None:
    """One-hot labels [batch, classes], every class as likely; none for an unconditional network."""
    return F.one_hot(torch.randint(classes, (batch,), generator=rng), classes).float() if classes else None


def drop_where_it_learns(network: nn.Module) -> None:
    """Have ``network`` in training mode, dropout on, in every call in which it learns, and in no other."""

    def before(module: nn.Module, _arguments: Any) -> None:
        learns = torch.is_grad_enabled() and next(module.parameters()).requires_grad
        if module.training != learns:
            module.train(learns)

    network.register_forward_pre_hook(before)


def in_bfloat16(players: Players, device: torch.device) -> Players:
    """``players`` whose networks compute in bfloat16 where they can; weights, sums and pictures stay float32."""

    def lowered(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, sigma: Tensor, labels: Labels) -> Any:
            with autocast(True, device.type):
                return call(x, sigma, labels)

        return run

    features = players.fake_features
    return replace(
        players, teacher=lowered(players.teacher), fake=lowered(players.fake), generator=lowered(players.generator),
        fake_features=None if features is None else lowered(features),
    )  # fmt: skip


class RealPictures:
    """Real pictures for the adversarial loss, read from a folder and those below it as they are needed.

    Args:
        folder: With pictures of any format that ``pictures_in`` takes; any size, cropped to a square at the centre.
        channels: 1 for grey, 3 for RGB.
        size: Height and width of the network's pictures.
        classes: Of the network; a folder has none.

    Raises:
        ValueError: There are no pictures, or the network draws by class or in neither grey nor RGB.
    """

    def __init__(self, folder: Path, channels: int, size: int, classes: int = 0) -> None:
        if classes:
            raise ValueError("The network draws by class, and pictures in a folder have none: leave --real out.")
        if channels not in (1, 3):
            raise ValueError(f"The network draws in {channels} channels, which pictures in files don't have.")
        self.files = pictures_in(folder)
        self.mode, self.size = "RGB" if channels == 3 else "L", size

    def __call__(self, rng: torch.Generator, batch: int) -> Tensor:
        """``batch`` of them [B, C, H, W] in -1..1."""
        rows = torch.randint(len(self.files), (batch,), generator=rng).tolist()
        return torch.stack([self.read(self.files[row]) for row in rows])

    def read(self, path: Path) -> Tensor:
        """One picture [C, H, W] in -1..1.

        Raises:
            ValueError: It can't be read.
        """
        import numpy as np
        from PIL import Image, ImageOps

        fitted = ImageOps.fit(read_picture(path, self.mode), (self.size, self.size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 127.5 - 1)
        return pixels[None] if self.mode == "L" else pixels.movedim(-1, 0)


# ----------------------------------------------------------------------------------------------------- samples


def drawn_with(task: Task, weights: Mapping[str, Tensor]) -> Denoise:
    """The generator as a denoiser with other ``weights``: the moving average's, which draw better."""

    class Weighted(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return functional_call(task.generator, dict(weights), args, kwargs)

    return edm_denoise(Weighted())


@torch.no_grad()
def sample(task: Task, weights: Mapping[str, Tensor], z: Tensor, labels: Labels, steps: int = 1) -> Tensor:
    """The student's pictures [B, C, H, W], about -1..1, on the CPU, with ``weights``; noise between steps is a function of z."""
    device, rng = torch.device(task.device), torch.Generator().manual_seed(len(z))
    between = [torch.randn(z.shape, generator=rng).to(device) for _ in range(steps - 1)]
    given = labels.to(device) if isinstance(labels, Tensor) else labels
    return generate(drawn_with(task, weights), z.to(device), given, task.sigmas(steps), between, task.noising).cpu()


class Samples:
    """A grid of pictures of the same noise again and again, so that one sees the student change.

    Args:
        task: Whose generator draws.
        folder: Where the grids go.
        steps: Of the student.
        count: Pictures in the grid; classes, if any, come in turn.
    """

    def __init__(self, task: Task, folder: RunFolder, steps: int = 1, count: int = 64) -> None:
        self.task, self.folder, self.steps = task, folder, steps
        self.z = torch.randn(count, *task.shape, generator=torch.Generator().manual_seed(0))
        classes = getattr(task.generator, "label_dim", 0)
        self.labels = F.one_hot(torch.arange(count) % classes, classes).float() if classes else None

    def __call__(self, weights: Mapping[str, Tensor], pictures: int) -> None:
        """Draw with ``weights`` and write the grid."""
        from PIL import Image

        drawn = ((sample(self.task, weights, self.z, self.labels, self.steps) + 1) * 127.5).round().clamp(0, 255)
        grid = tile(drawn.movedim(1, -1))[0].byte().numpy()
        image = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid[..., :3])
        write_atomically(self.folder.samples(pictures), lambda part: image.save(part, format="PNG"))


# ---------------------------------------------------------------------------------------------- the student's file


def save_student(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], path: Path, settings: Settings, teacher: str, fingerprint: str,
    precision: str = "fp32", about: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write a student as ``read_edm`` and the node Load EDM Network read it, with its card; atomically.

    Args:
        weights: The moving average.
        config: The teacher's configuration, which is the student's but for the precision that it was trained in.
        path: Ends in ``.safetensors``.
        teacher: The teacher's name.
        fingerprint: Of its file.
        about: Added to the metadata.
    """
    student_config = {**config, "use_fp16": precision == "fp16"}
    more = {"base": "EDM", "preset": "sid-edm", "precision": precision}
    if settings.adversarial:
        more["method"] = "SiDA (arXiv 2410.14919)"
    save_safetensors_atomically(
        {key: value.cpu() for key, value in weights.items()}, path,
        {**card(settings, teacher, fingerprint, **more), **(about or {}), **snapshot_metadata(student_config)},
    )  # fmt: skip
