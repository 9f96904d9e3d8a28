"""Stage ``teacher``: the text-conditioned EDM diffusion model over the latents, with its text encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...networks.preconditioning import karras_sigmas
from ...networks.tiny_text import TinyTextEncoder
from ...networks.tiny_unet import Denoiser, TinyUNet, heun
from ...precision import autocast
from ...training.loop import Ema, Schedule, Watch, train
from ...training.sid import edm_weight
from ..weights import SIGMA_MAX, SIGMA_MIN
from .concepts import BACKGROUNDS, CONCEPTS, STYLES, Prompt
from .data import sheet
from .latents import Latents, load_autoencoder
from .log import log_to

SCHEDULE = Schedule(pictures=260_000, batch=32, learning_rate=1.2e-3, decay=0.5)
SIGMA_DATA = 0.5
P_MEAN, P_STD = -0.4, 1.4  # ln sigma of the training noise


class TextToImage(nn.Module):
    """Text encoder and U-Net, trained together."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.text = TinyTextEncoder(words)
        self.unet = TinyUNet()

    def denoise(self, x: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
        """D(x; sigma, prompt), see ``Denoiser``."""
        return Denoiser(self.unet)(x, sigma, self.text(ids))


def edm_loss(model: TextToImage, latents: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
    """EDM eq. 2 with the weighting of Table 1: lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
    sigma = (torch.randn(len(latents), generator=generator) * P_STD + P_MEAN).exp()
    noise = torch.randn(latents.shape, generator=generator) * sigma.view(-1, 1, 1, 1)
    with autocast():
        denoised = model.denoise(latents + noise, sigma, ids)
    weight = edm_weight(sigma)
    return (weight * (denoised.float() - latents).square().mean((1, 2, 3))).mean()


@torch.no_grad()
def draw(
    model: TextToImage, latents: Latents, prompts: list[str], steps: int = 12, guidance: float = 2.0, seed: int = 0
) -> Tensor:
    """Latents [B, 32, 8, 8] drawn with Heun and classifier-free guidance."""
    noise = torch.randn(len(prompts), 32, 8, 8, generator=torch.Generator().manual_seed(seed))
    ids, empty = latents.words.encode(prompts), latents.words.encode([""] * len(prompts))

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        both = model.denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([ids, empty]))
        cond, uncond = both.float().chunk(2)
        return uncond + guidance * (cond - uncond)

    with autocast():
        return heun(guided, noise, karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX))


def sample_prompts() -> list[str]:
    """One prompt for every fourth concept, styles and backgrounds in turn, for the sheets."""
    return [
        Prompt(c, STYLES[i % 3], list(BACKGROUNDS)[(7 * i) % 10]).text() for i, c in enumerate(CONCEPTS[::4])
    ][:48]


def run(work: Path) -> None:
    """Train ``work/teacher.ckpt``; a sheet of samples at every tenth save."""
    latents = Latents.load(work)
    decoder = load_autoencoder(work / "autoencoder.safetensors")
    torch.manual_seed(21)
    model = TextToImage(len(latents.words))

    def loss(generator: torch.Generator, size: int) -> Tensor:
        pictures, ids = latents.batch(generator, size)
        return edm_loss(model, pictures, ids, generator)

    def samples(ema: Ema, pictures: int) -> None:
        if (pictures // SCHEDULE.batch) % 1000 and pictures < SCHEDULE.pictures:
            return
        shown = TextToImage(len(latents.words)).eval()
        shown.load_state_dict(ema.shadow)
        decoded = decoder.decode(draw(shown, latents, sample_prompts()))
        sheet((decoded + 1) / 2, 12, 2).save(work / f"teacher_{pictures:07d}.png")

    train(
        model, loss, SCHEDULE, work / "teacher.ckpt", seed=21, ema_half_life=10_000, save_every=250,
        watch=Watch(log_to(work / "teacher.log"), on_save=samples),
    )  # fmt: skip
