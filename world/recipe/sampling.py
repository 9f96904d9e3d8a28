"""The tiny world in plain torch, for sheets and measurements: student, teacher, refinement, with every evaluation counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...networks.preconditioning import karras_sigmas
from ...networks.tiny_unet import Denoiser
from ...precision import autocast
from ...samplers.schedules import refine_sigmas, tiny_world_sigmas
from ..weights import DEFAULT_STUDENT, GUIDANCE, SIGMA_MAX, SIGMA_MIN, load_autoencoder, load_oracle, load_text, load_unet

Denoise = Callable[[Tensor, Tensor], Tensor]
BATCH = 32


@dataclass
class Drawn:
    """Latents [B, 32, 8, 8], evaluations a picture, how far the teacher's guess of the picture moved on its way, and how
    curved that way was [B]; both 0 of students."""

    latents: Tensor
    nfe: int
    path: Tensor
    curvature: Tensor


def curvature(points: Tensor, times: Tensor) -> Tensor:
    """How far a trajectory is from a straight line at one speed [B], 0 on such a line (arXiv 2301.12003, of one trajectory).

    C = 1/(T dim) integral |dx/dt - (x(t_n) - x(t_0))/(t_n - t_0)|^2 dt with T = |t_n - t_0|, exact for a polyline.

    Args:
        points: [n + 1, B, ...].
        times: [n + 1], rising or falling.
    """
    points, times = points.double().flatten(2), times.double()
    lengths = times.diff().view(-1, 1, 1)
    velocities = points.diff(dim=0) / lengths
    straight = (points[-1] - points[0]) / (times[-1] - times[0])
    return ((velocities - straight).square() * lengths).sum(0).mean(1) / (times[-1] - times[0])


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DPM-Solver++(2M) (arXiv 2211.01095, Algorithm 2; ComfyUI's ``dpmpp_2m``), the path length of the denoised picture, and
    the curvature of the way there over sigma.

    The path length is sum |D_i+1 - D_i| / sqrt(dim).
    """
    ones, old, path, points = x.new_ones(len(x)), None, torch.zeros(len(x)), [x]
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        d = denoise(x, sigma * ones)
        if old is not None:
            path += (d - old).flatten(1).norm(dim=1) / d[0].numel() ** 0.5
        if following == 0:
            x = d
        else:
            h = (sigma / following).log()
            corrected = d
            if old is not None:
                r = (sigmas[i - 1] / sigma).log() / h
                corrected = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * old
            x = (following / sigma) * x - torch.expm1(-h) * corrected
        old = d
        points.append(x)
    return x, path, curvature(torch.stack(points), sigmas)


class World:
    """Teacher, students, both judges, and prompts as vectors."""

    def __init__(self) -> None:
        self.text, self.words = load_text()
        self.teacher, self._students = Denoiser(load_unet("teacher")), dict[str, Denoiser]()
        self.decoder = load_autoencoder()
        self.oracle, self.judge = load_oracle("oracle"), load_oracle("judge")

    def student(self, name: str = DEFAULT_STUDENT) -> Denoiser:
        """The student of this name, loaded once.

        Raises:
            FileNotFoundError: Its weights are not there.
        """
        if name not in self._students:
            self._students[name] = Denoiser(load_unet(f"student_{name}"))
        return self._students[name]

    def context(self, prompts: list[str]) -> Tensor:
        """Word vectors of prompts."""
        return self.text(self.words.encode(prompts))

    @torch.inference_mode()
    def draft(self, prompts: list[str], noise: Tensor, steps: int, seed: int = 0, student: str = DEFAULT_STUDENT) -> Drawn:
        """A student's drafts from unit noise [B, 32, 8, 8]; the noise between steps follows from ``seed`` and the place."""
        network, sigmas = self.student(student), tiny_world_sigmas(steps)
        parts = []
        for rows in torch.arange(len(prompts)).split(BATCH):
            context, x = self.context([prompts[i] for i in rows]), torch.zeros_like(noise[rows])
            for number, sigma in enumerate(sigmas):
                fresh = noise[rows] if number == 0 else some_noise(rows.tolist(), seed + 7919 * number)
                x = x + fresh * sigma
                with autocast():
                    x = network(x, torch.full((len(rows),), sigma), context).float()
            parts.append(x)
        return Drawn(torch.cat(parts), steps, *torch.zeros(2, len(prompts)))

    @torch.inference_mode()
    def teach(self, prompts: list[str], start: Tensor, sigmas: Tensor, guidance: float = GUIDANCE) -> Drawn:
        """The teacher with guidance from ``start``, already noisy at ``sigmas[0]``."""
        latents, paths, bends = [], [], []
        for rows in torch.arange(len(prompts)).split(BATCH):
            context = self.context([prompts[i] for i in rows] + [""] * len(rows))

            def guided(x: Tensor, sigma: Tensor, context: Tensor = context) -> Tensor:
                with autocast():
                    both = self.teacher(x.repeat(2, 1, 1, 1), sigma.repeat(2), context).float()
                conditional, unconditional = both.chunk(2)
                return unconditional + guidance * (conditional - unconditional)

            x, path, bend = dpmpp_2m(guided, start[rows], sigmas)
            latents.append(x)
            paths.append(path)
            bends.append(bend)
        return Drawn(torch.cat(latents), 2 * (len(sigmas) - 1), torch.cat(paths), torch.cat(bends))

    def redraw(self, prompts: list[str], noise: Tensor, steps: int, guidance: float = GUIDANCE) -> Drawn:
        """The teacher from unit noise."""
        sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
        return self.teach(prompts, noise * SIGMA_MAX, sigmas, guidance)

    def refine(self, prompts: list[str], drafts: Tensor, noise: Tensor, steps: int, rollback: float) -> Drawn:
        """The teacher from the drafts, taken back by ``rollback``; ``steps`` is for the whole schedule."""
        start = SIGMA_MIN ** (1 - rollback) * SIGMA_MAX**rollback
        sigmas = refine_sigmas(karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX), start)
        return self.teach(prompts, drafts + noise * sigmas[0], sigmas)

    @torch.inference_mode()
    def pictures(self, latents: Tensor) -> Tensor:
        """Pictures [B, 64, 64, 3] in 0..1."""
        decoded = torch.cat([self.decoder.decode(part) for part in latents.split(64)])
        return ((decoded + 1) / 2).clamp(0, 1).movedim(1, -1)

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> Tensor:
        """The judge's unit features [B, 64]; not those of published FIDs."""
        network = self.judge.network
        return torch.cat([network.encode_image(part.movedim(-1, 1) * 2 - 1) for part in pictures.split(64)])


def some_noise(rows: list[int], seed: int) -> Tensor:
    """Noise [B, 32, 8, 8] of some places; each depends on the seed and its place alone."""
    return torch.stack([torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(seed * 100_003 + i)) for i in rows])


def unit_noise(count: int, seed: int) -> Tensor:
    """Noise [count, 32, 8, 8]; row i depends on the seed and on i alone."""
    return some_noise(list(range(count)), seed)
