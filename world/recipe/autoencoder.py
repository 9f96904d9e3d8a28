"""Stage ``autoencoder``: 64x64 pictures to 16x16x8 latents, trained on the icons over every background."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...files import save_safetensors_atomically
from ...networks.tiny_autoencoder import SIGMA_DATA, TinyAutoencoder
from ...precision import autocast
from ...training.loop import Ema, Schedule, Watch, train
from ...training.run_folder import RunFolder
from .concepts import STYLES
from .data import BACKGROUND_COLOURS, Icons, on_background, sheet
from .log import log_to

SCHEDULE = Schedule(pictures=40_000, batch=16, learning_rate=1.5e-3, decay=0.6)
KL_WEIGHT = 1e-5


def _batch(icons: Icons, generator: torch.Generator, size: int) -> Tensor:
    """Random icons, three in four on a named background, the rest on any colour: [B, 3, 64, 64] in -1..1."""
    sets, count, poses = icons.rgba.shape[:3]
    where = [torch.randint(n, (size,), generator=generator) for n in (sets, count, poses)]
    named = BACKGROUND_COLOURS[torch.randint(len(BACKGROUND_COLOURS), (size,), generator=generator)]
    free = torch.rand(size, 3, generator=generator)
    colour = torch.where(torch.rand(size, 1, generator=generator) < 0.75, named, free)
    return on_background(icons.rgba[tuple(where)], colour) * 2 - 1


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.diff(dim=-1), images.diff(dim=-2)


def run(work: Path) -> None:
    """Train, measure the latents' mean and spread, save ``work/autoencoder.safetensors``."""
    icons = Icons.load(work, STYLES)
    torch.manual_seed(11)
    model = TinyAutoencoder().to(memory_format=torch.channels_last)

    def loss(generator: torch.Generator, size: int) -> Tensor:
        images = _batch(icons, generator, size).to(memory_format=torch.channels_last)
        with autocast():
            mean, logvar = model.moments(images)
            latents = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator)
            decoded = model.decoder(latents)
        decoded, mean, logvar = decoded.float(), mean.float(), logvar.float()
        difference = F.l1_loss(decoded, images) + F.mse_loss(decoded, images)
        # Sharp outlines are what makes an icon: compare the first differences too.
        for ours, theirs in zip(_edges(decoded), _edges(images), strict=True):
            difference = difference + F.l1_loss(ours, theirs)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        return difference + KL_WEIGHT * kl

    def samples(ema: Ema, pictures: int) -> None:
        shown = TinyAutoencoder()
        shown.load_state_dict(ema.shadow)
        images = _batch(icons, torch.Generator().manual_seed(1), 24)
        with torch.no_grad():
            decoded = shown.decoder(shown.moments(images)[0])
        sheet((torch.cat([images, decoded]) + 1) / 2, 12, 2).save(work / f"autoencoder_{pictures:07d}.png")

    ema = train(
        model, loss, SCHEDULE, RunFolder(work / "autoencoder"), seed=11, ema_half_life=5_000, save_every=500,
        watch=Watch(log_to(work / "autoencoder.log"), on_save=samples),
    )  # fmt: skip
    model.load_state_dict(ema.shadow)
    _measure(model, icons)
    weights = {k: v if k.startswith("latent_") else v.bfloat16() for k, v in model.state_dict().items()}
    save_safetensors_atomically(weights, work / "autoencoder.safetensors")


@torch.no_grad()
def _measure(model: TinyAutoencoder, icons: Icons) -> None:
    """Set the buffers that centre the latents and scale them to ``SIGMA_DATA``."""
    images = _batch(icons, torch.Generator().manual_seed(2), 2048)
    means = torch.cat([model.moments(part)[0] for part in images.split(64)])
    model.latent_mean.copy_(means.mean((0, 2, 3)))
    model.latent_std.copy_(means.std((0, 2, 3)))
    assert SIGMA_DATA == 0.5  # the networks were trained with this value
