"""What keeps a student's variety: a loss beside SiD's, which seeks the likeliest pictures and forgets the rest.

Both take the student back to the teacher's own way from a noise to a picture, which leads everywhere that the teacher draws:

- ``anchor``: what the student's first step says is drawn towards what the teacher makes of the same noise in K Euler steps
  (DP-DMD, arXiv 2602.03139, whose velocity from noise to the K-step point is here the picture that the straight line through
  both ends in; with all of the way it is the regression of DMD, 2311.18828). With several steps that is all that the first
  one learns, SiD teaches the last, and the gradient stays within a step: DP-DMD's division of labour. With one step it pulls
  against a reward, too (``tilted``): it takes 0.1 of reward / price an element from a shift, and all of less.
- ``consistency``: along the teacher's way the student says the same at both ends of every step (arXiv 2303.01469, Algorithm
  2; beside a score distillation as in rCM, 2510.08431), from the student's own pictures under noise, for there are no others.

Levels are those of ``sid``: x = y + sigma n, or (1 - t) y + t n of flow models, in both of which a step of the teacher is x +
(lower - level) (x - D) / level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks.preconditioning import karras_sigmas
from .sid import SIGMA_MIN, Denoise, Labels, guided, sid_weight

OFF, ANCHOR, CONSISTENCY = "off", "anchor", "consistency"
VARIETIES = (OFF, ANCHOR, CONSISTENCY)

Denoised = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma [B, 1, 1, 1]) of given conditions."""


@dataclass(frozen=True)
class Variety:
    """Which of the two, and along which of the teacher's levels.

    Attributes:
        kind: ``ANCHOR`` or ``CONSISTENCY``.
        path: The teacher's levels, falling, the student's first level first; it ends at 0 but for an anchor of several steps.
        weight: Of the loss, which has the size of SiD's where both are an element's worth.
    """

    kind: str
    path: tuple[float, ...]
    weight: float


PATH_STEPS = {ANCHOR: 12, CONSISTENCY: 18}
WEIGHTS = {ANCHOR: 0.05, CONSISTENCY: 0.05}


def karras_path(first: float, steps: int, least: float = SIGMA_MIN) -> tuple[float, ...]:
    """Levels from ``first`` to ``least``, spaced as EDM's eq. 5 spaces them, then 0."""
    return tuple(karras_sigmas(steps, least, first).tolist())


def variety_of(kind: str, sigmas: Sequence[float], path: Callable[[float, int], Sequence[float]]) -> Variety:
    """The loss of a student that is called at ``sigmas``.

    Args:
        path: (first level, steps) -> the teacher's levels in so many steps, from there to 0.
    """
    levels = tuple(path(sigmas[0], PATH_STEPS[kind]))
    if kind == ANCHOR and len(sigmas) > 1:  # of the teacher's steps those that the student's first one stands for
        levels = (*(level for level in levels if level > sigmas[1]), sigmas[1])
    return Variety(kind, levels, WEIGHTS[kind])


def euler_step(x: Tensor, denoised: Tensor, level: Tensor | float, lower: Tensor | float) -> Tensor:
    """A step of the probability flow from ``level`` to ``lower`` (EDM, Algorithm 1 without its correction; for flow models the
    same line): x + (lower - level) (x - D) / level."""
    return x + (x - denoised) * ((lower - level) / level)


def straight_end(start: Tensor, reached: Tensor, first: float, level: float) -> Tensor:
    """Where the straight line from ``start`` at ``first`` through ``reached`` at ``level`` ends, without noise.

    x_K - sigma_K (x_0 - x_K) / (sigma_0 - sigma_K): DP-DMD's target, its mean velocity (x_0 - x_K) / (1 - t_K), as a picture.
    """
    return reached - (start - reached) * (level / (first - level))


@torch.no_grad()
def anchor_target(teacher: Denoised, start: Tensor, path: Sequence[float]) -> Tensor:
    """What the teacher makes of ``start``, already noisy at ``path[0]``, in Euler steps along ``path``; see ``straight_end``."""
    x = start
    for level, lower in zip(path, path[1:], strict=False):
        x = euler_step(x, teacher(x, _levels(x, level)), level, lower)
    return straight_end(start, x, path[0], path[-1])


def anchor_loss(first: Tensor, target: Tensor) -> Tensor:
    """(first - target)^2 / w, element by element [B, C, H, W], with SiD's w: the scale of a picture's error is no matter."""
    return (first - target) ** 2 / sid_weight(first, target)


def pseudo_huber(difference: Tensor) -> Tensor:
    """sqrt(|d|^2 + c^2) - c a picture [B], with c = 0.00054 sqrt(dim) (arXiv 2310.14189, eq. 7)."""
    c = 0.00054 * difference[0].numel() ** 0.5
    return (difference.flatten(1).square().sum(1) + c * c).sqrt() - c


def consistency_loss(student: Denoised, teacher: Denoised, x: Tensor, place: Tensor, path: Tensor) -> Tensor:
    """The student at a level should say what it says one Euler step of the teacher further down [B] (arXiv 2303.01469, eq. 10).

    Weighed by sqrt(level) / (level - lower), between the even weights of 1/log-spacing and iCT's 1/spacing (2310.14189, Table
    1), their mean over ``path`` being 1. At the lowest level the target is the picture that the teacher comes to.

    Args:
        x: Pictures, noisy at ``path[place]``.
        place: Of each picture's level [B], 0 to len(path) - 2.
        path: Levels, falling to 0.
    """
    weights = path[:-1].sqrt() / (path[:-1] - path[1:])
    level, lower = (_levels(x, path[place + i]) for i in range(2))
    with torch.no_grad():
        stepped = euler_step(x, teacher(x, level), level, lower)
        # Where no noise is left nothing is asked: networks need not be defined at 0.
        asked = torch.where(lower > 0, lower, level)
        target = torch.where(lower > 0, student(stepped, asked), stepped)
    return (weights / weights.mean())[place] * pseudo_huber(student(x, level) - target)


def variety_loss(
    variety: Variety, generator: Denoise, teacher: Denoise, labels: Labels, empty: Labels, kappa: float,
    noising: Callable[[Tensor, Tensor, Tensor], Tensor], z: Tensor, noise: Tensor, u: Tensor, images: Tensor, steps: int,
) -> Tensor:  # fmt: skip
    """Picture by picture [B], to be added to the generator's loss; one more network pass or three.

    Args:
        kappa: Guidance of the teacher.
        z: What the student drew ``images`` from.
        noise, u: Of SiD's own loss, noise like ``z`` and a level's place in 0..1 [B, 1, 1, 1]. They serve here once more, so that
            a run draws the same with this loss and without.
        images: What the student drew, with their gradient.
        steps: In how many.
    """

    def student(x: Tensor, level: Tensor) -> Tensor:
        return generator(x, level, labels).to(images.dtype)

    def guide(x: Tensor, level: Tensor) -> Tensor:
        return guided(teacher, x, level, labels, empty, kappa).to(images.dtype)

    if variety.kind == CONSISTENCY:
        path = torch.tensor(variety.path, device=z.device, dtype=z.dtype)
        place = (u.flatten() * (len(path) - 1)).long().clamp(max=len(path) - 2)
        x = noising(images.detach(), _levels(z, path[place]), noise)
        # A picture's Huber distance is about sqrt(dim) of an element's.
        scale = images[0].numel() ** 0.5
        return variety.weight * scale * consistency_loss(student, guide, x, place, path)
    first = _levels(z, variety.path[0])
    start = noising(torch.zeros_like(z), first, z)
    said = images if steps == 1 else student(start, first)
    return variety.weight * anchor_loss(said, anchor_target(guide, start, variety.path)).flatten(1).sum(1)


def _levels(x: Tensor, level: Tensor | float) -> Tensor:
    """Levels [B, 1, 1, 1] for ``x``, one for all or each its own [B]."""
    shape = len(x), *(1 for _ in x.shape[1:])
    return torch.as_tensor(level, device=x.device, dtype=x.dtype).expand(len(x)).reshape(shape)
