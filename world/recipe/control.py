"""Stage ``control``: a ControlNet (arXiv 2302.05543) for edges, on the frozen teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...networks.preconditioning import karras_sigmas, noise_label, scaled_input
from ...networks.tiny_unet import Denoiser, TinyControlNet, heun
from ...precision import autocast
from ...training.loop import Ema, Schedule, Watch, train
from ...training.sid import edm_weight
from .data import sheet
from .latents import Latents, load_autoencoder
from .log import log_to
from .student import load_teacher
from .teacher import P_MEAN, P_STD, SIGMA_DATA

SCHEDULE = Schedule(pictures=24_000, batch=32, learning_rate=6e-4, decay=0.5)


def edges(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Canny edges of pictures [B, 3, H, W] in 0..1, as ComfyUI's Canny node gives them: white on black, [B, 3, H, W].

    The thresholds vary with ``generator``, so that the ControlNet doesn't depend on the artist's choice.
    """
    from kornia.filters import canny

    low = 0.1 + 0.25 * (torch.rand((), generator=generator).item() if generator else 0.4)
    return canny(images, low, low * 2)[1].repeat(1, 3, 1, 1)


def run(work: Path) -> None:
    """Train ``work/control.ckpt``; a sheet of hints and what was drawn from them."""
    latents = Latents.load(work)
    decoder = load_autoencoder(work / "autoencoder.safetensors")
    teacher = load_teacher(work, len(latents.words))
    torch.manual_seed(71)
    control = TinyControlNet()
    control.start_at(teacher.unet)
    denoiser = Denoiser(teacher.unet)

    def guided(x: Tensor, sigma: Tensor, context: Tensor, hint: Tensor, net: TinyControlNet) -> Tensor:
        residuals = net(scaled_input(x, sigma.view(-1, 1, 1, 1), SIGMA_DATA), hint, noise_label(sigma), context)
        return denoiser(x, sigma, context, control=residuals)

    def loss(generator: torch.Generator, size: int) -> Tensor:
        pictures, ids = latents.batch(generator, size, dropout=0.5)
        sigma = (torch.randn(size, generator=generator) * P_STD + P_MEAN + 0.4).exp()
        noise = torch.randn(pictures.shape, generator=generator) * sigma.view(-1, 1, 1, 1)
        with torch.no_grad(), autocast():
            hint = edges(((decoder.decode(pictures).float() + 1) / 2).clamp(0, 1), generator)
            context = teacher.text(ids)
        with autocast():
            denoised = guided(pictures + noise, sigma, context, hint, control)
        weight = edm_weight(sigma)
        return (weight * (denoised.float() - pictures).square().mean((1, 2, 3))).mean()

    def samples(ema: Ema, pictures: int) -> None:

        net = TinyControlNet().eval()
        net.load_state_dict(ema.shadow)
        with torch.no_grad(), autocast():
            shown, prompts = latents.pictures(torch.Generator().manual_seed(3), 24)
            hint = edges(((decoder.decode(shown).float() + 1) / 2).clamp(0, 1))
            context = teacher.text(latents.words.encode([f"{p.concept} on yellow" for p in prompts]))
            noise = torch.randn(shown.shape, generator=torch.Generator().manual_seed(4))
            drawn = heun(
                lambda x, sigma: guided(x, sigma, context, hint, net).float(), noise, karras_sigmas(10, 0.01, 80.0)
            )
            sheet(torch.cat([hint, (decoder.decode(drawn).float() + 1) / 2]), 12, 2).save(
                work / f"control_{pictures:07d}.png"
            )

    train(
        control, loss, SCHEDULE, work / "control.ckpt", seed=71, ema_half_life=2_000, weight_decay=0.0,
        save_every=250, watch=Watch(log_to(work / "control.log"), on_save=samples),
    )  # fmt: skip
