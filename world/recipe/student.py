"""Stage ``student``: consistency distillation (arXiv 2303.01469, Algorithm 2) of the guided teacher, for 1 to 4 steps.

The guidance of the teacher is distilled in, as latent consistency models do (arXiv 2310.04378): the student draws at CFG 1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...networks.preconditioning import karras_sigmas
from ...networks.tiny_unet import Denoiser, TinyUNet
from ...precision import autocast
from ...training.loop import Ema, Schedule, Watch, train
from ...training.run_folder import RunFolder
from ...training.variety import pseudo_huber
from ..weights import GUIDANCE, SIGMA_MAX, SIGMA_MIN
from .data import sheet
from .latents import Latents, load_autoencoder
from .log import log_to
from .teacher import SIGMA_DATA, TextToImage, sample_prompts

SCHEDULE = Schedule(pictures=48_000, batch=32, learning_rate=3e-4, decay=0.7, warmup=0.03)
LEVELS = 18  # noise levels of the teacher's path that the student is made consistent along


def load_teacher(work: Path, words: int) -> TextToImage:
    """The teacher's moving average, for inference."""
    state = torch.load(RunFolder(work / "teacher").checkpoint, map_location="cpu", weights_only=True)
    model = TextToImage(words)
    model.load_state_dict(state["ema"])
    return model.eval().requires_grad_(False)


def consistency_loss(
    student: TinyUNet, teacher: TextToImage, latents: Tensor, ids: Tensor, empty: Tensor, sigmas: Tensor,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """The student at sigma_n+1 should say what it says one guided Euler step of the teacher further down.

    ``sigmas`` falls from sigma_max to sigma_min, then 0. At the lowest level the target is the picture itself.
    """
    b = len(latents)
    n = torch.randint(len(sigmas) - 1, (b,), generator=generator)
    high, low = sigmas[n], sigmas[n + 1]
    x = latents + torch.randn(latents.shape, generator=generator) * high.view(-1, 1, 1, 1)
    with torch.no_grad(), autocast():
        words = teacher.text(torch.cat([ids, empty]))
        cond, uncond = Denoiser(teacher.unet)(x.repeat(2, 1, 1, 1), high.repeat(2), words).float().chunk(2)
        context = words[:b]
    guided = uncond + GUIDANCE * (cond - uncond)
    stepped = x + (x - guided) * ((low - high) / high).view(-1, 1, 1, 1)
    with torch.no_grad(), autocast():
        target = Denoiser(student)(stepped, low.clamp(min=SIGMA_MIN / 2), context).float()
    target = torch.where((low > 0).view(-1, 1, 1, 1), target, stepped)
    with autocast():
        said = Denoiser(student)(x, high, context)
    # Between the even weights of 1/log-spacing and iCT's 1/spacing (arXiv 2310.14189, Table 1): even ones let the low levels,
    # whose c_out is small, drift until backgrounds are mottled.
    weight = high.sqrt() / (high - low)
    return (weight * pseudo_huber(said.float() - target)).mean() / SIGMA_DATA


@torch.no_grad()
def draw(student: TinyUNet, context: Tensor, sigmas: list[float], seed: int = 0) -> Tensor:
    """Multistep consistency sampling (Algorithm 1): denoise, add fresh noise at the next level, repeat."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(len(context), 32, 8, 8)
    for sigma in sigmas:
        x = x + torch.randn(x.shape, generator=generator) * sigma
        with autocast():
            x = Denoiser(student)(x, torch.full((len(x),), sigma), context).float()
    return x


def run(work: Path) -> None:
    """Train ``work/student``; sheets of 1 and 4 steps."""
    latents = Latents.load(work)
    decoder = load_autoencoder(work / "autoencoder.safetensors")
    teacher = load_teacher(work, len(latents.words))
    torch.manual_seed(61)
    student = TinyUNet()
    student.load_state_dict(teacher.unet.state_dict())
    sigmas = karras_sigmas(LEVELS, SIGMA_MIN, SIGMA_MAX)

    def loss(generator: torch.Generator, size: int) -> Tensor:
        pictures, ids = latents.batch(generator, size, dropout=0.05)
        empty = latents.words.encode([""] * size)
        return consistency_loss(student, teacher, pictures, ids, empty, sigmas, generator)

    def samples(ema: Ema, pictures: int) -> None:
        shown = TinyUNet().eval()
        shown.load_state_dict(ema.shadow)
        context = teacher.text(latents.words.encode(sample_prompts()))
        for name, levels in (("1", [SIGMA_MAX]), ("4", [SIGMA_MAX, 6.0, 1.5, 0.4])):
            decoded = decoder.decode(draw(shown, context, levels))
            sheet((decoded + 1) / 2, 12, 2).save(work / f"student{name}_{pictures:07d}.png")

    train(
        student, loss, SCHEDULE, RunFolder(work / "student"), seed=61, ema_half_life=4_000, weight_decay=0.0,
        save_every=250, watch=Watch(log_to(work / "student.log"), on_save=samples),
    )  # fmt: skip
