"""SiD towards the tilted teacher: one loss that distils and pleases.

The generator's law q is moved towards p* ∝ p exp(r / price), p the teacher's law (with its guidance, if it has any), r a reward
that can be differentiated: the same law that Reward Finetune tunes a model to (``control``, eq. 1). q is best where

    (1) J(q) = KL(q || p) - E_q[r] / price = KL(q || p*) + a constant

is least. E_q[r] needs clean pictures alone, and its gradient is exact. KL(q || p) is where SiD's loss comes in. With p_s and q_s
the laws after noise of level s, D their denoisers, score = (D(x) - x) / s^2, de Bruijn's identity (Stam 1959; Lyu 2009, theorem
1) d KL(q_s || p_s) / d(s^2) = -E|score_q - score_p|^2 / 2 gives

    (2) KL(q || p) = integral over s of E|D_p - D_q|^2 / s^3 ds = E_u[s'(u) / s(u)^3 |D_p - D_q|^2],      s = s(u), u uniform

So SiD's Fisher divergences over all levels are the KL, if each level weighs s'(u) / s(u)^3. SiD's own weight 1 / w is another: it
says less about little noise, by far. A reward beside it finds changes at that scale nearly free: the tilted law of a Gaussian of
variance 1 and the reward -x^2 / 2 at price 1 has standard deviation 0.71, and SiD with its own weights comes to 0.18 there. So
with a reward ``kl_weight`` takes the place of 1 / w, and prices are in units of the score per nat of a picture.

What holds, and how far:

- The gradient of |D_p - D_q|^2 has two parts, as D_q follows the generator and as pictures are drawn from it. With the fake
  score held fixed and at its best, SiD's loss has half of the first plus (1 - alpha) of the second (by differentiating E[u(x)
  (D_q(x) - x_g)] = 0, which holds for every u). So at alpha 0.5 its gradient is half of (2)'s exactly; hence the factor 2 of
  ``kl_weight``. At other alphas only the part of first order in 1 / price is that: of the Gaussian above, alpha 1 reaches 0.74.
- Other divergences. Tilting the teacher's denoiser instead, D* = D + s^2 grad log E_p[exp(r(x0) / price) | x], has its optimum at
  p* for any weight, any alpha, and any divergence between scores. But the expectation isn't known; with r(D(x)) for it (exact
  for a linear reward of a Gaussian) the Gaussian above comes to 0.58, at a quarter of the price to 0.18 instead of 0.45.
  With a sum of noised KLs (DMD's) or an f-divergence in place of (1), adding a reward leads to another law than p*.
- Little noise: below ``LEAST`` the weight stays what it is there. Networks' errors in the score have no bound there and nobody
  sees such changes, so they are underpriced.
- Levels end at a highest one; what (2) has beyond it, 0.6 % of a shift at a noise of 13 standard deviations, is left out.

Beside published work: Diff-Instruct++ (arXiv 2410.20898) and DMDR (2511.13649) add a reward to a loss of DMD's kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .sid import finite, generator_loss

LEAST = 0.1  # noise to picture, below which levels aren't weighed by any more
_STEP = 0.005  # of u, for the slope of levels: longer than a timestep of a thousand


class Levels(Protocol):
    """``EdmLevels`` or ``TimestepLevels``."""

    def of_generator(self, u: Tensor) -> Tensor:
        """The level from u, uniform."""


@dataclass(frozen=True)
class Tilt:
    """What the student shall please.

    Attributes:
        reward: (pictures or latents [B, ...], labels) -> rewards [B] with their gradient, higher is better.
        price: Reward that a nat must earn, above 0; high: as the teacher draws, low: as the oracle likes.
    """

    reward: Callable[[Tensor, Any], Tensor]
    price: float

    def __post_init__(self) -> None:
        if not self.price > 0:
            raise ValueError(f"The price is {self.price:g}; it must be above 0.")


def noise_to_picture(noising: Callable[[Tensor, Tensor, Tensor], Tensor], level: Tensor) -> Tensor:
    """s of a level: how much noise there is, over how much picture; sigma itself but for flow models."""
    one, none = torch.ones_like(level), torch.zeros_like(level)
    return noising(none, level, one) / noising(one, level, none)


def kl_weight(levels: Levels, noising: Callable[[Tensor, Tensor, Tensor], Tensor], u: Tensor) -> Tensor:
    """Eq. 2, twice: 2 s'(u) / max(s(u), LEAST)^3, with the slope as a difference over a hundredth of the levels.

    Args:
        u: [B, 1, ...] in 0..1.

    Returns:
        Like ``u``.
    """
    low, high = (u - _STEP).clamp(min=0), (u + _STEP).clamp(max=1 - 1e-6)
    s, below, above = (noise_to_picture(noising, levels.of_generator(at)) for at in (u, low, high))
    return 2 * (above - below) / (high - low) / s.clamp(min=LEAST) ** 3


def tilted_loss(
    tilt: Tilt, images: Tensor, y_real: Tensor, y_fake: Tensor, labels: Any, weight: Tensor, alpha: float
) -> Tensor:
    """Eq. 1, picture by picture: SiD's loss with (2)'s weights, less r / price.

    Pictures that aren't finite, in a network's answer, in the reward or in its gradient, have NaN.

    Args:
        images, y_real, y_fake: As ``generator_loss`` has them [B, ...].
        labels: What the pictures shall show.
        weight: [B, 1, ...], see ``kl_weight``.

    Returns:
        [B].
    """
    rewards = _rewards(tilt, images, labels)
    kept = rewards.isfinite() & finite(images, y_real, y_fake)
    loss = generator_loss(images[kept], y_real[kept], y_fake[kept], alpha, weight[kept])
    losses = loss.flatten(1).sum(1) - rewards[kept] / tilt.price
    return losses.new_full((len(images),), torch.nan).masked_scatter(kept, losses)


def _rewards(tilt: Tilt, images: Tensor, labels: Any) -> Tensor:
    """r [B] with its gradient, NaN where that isn't finite.

    It is worked out here and now: behind the generator one picture's NaN would be in every weight's gradient.
    """
    seen = images.detach().requires_grad_(images.requires_grad)
    rewards = tilt.reward(seen, labels).to(images.dtype)
    if not rewards.requires_grad:
        return rewards
    (slope,) = torch.autograd.grad(rewards.sum(), seen)
    finite = slope.flatten(1).isfinite().all(1)
    slope = torch.where(finite.view(-1, *[1] * (slope.ndim - 1)), slope, 0)
    change = ((images - images.detach()) * slope).flatten(1).sum(1)  # 0
    return torch.where(finite, rewards.detach(), torch.nan) + change
