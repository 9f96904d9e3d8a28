"""An oracle as what a student shall please while it is distilled: decoded, differentiable, at a price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..oracles.base import Oracle
from ..training.tilted import Tilt
from .training import Decoder


def check_oracle(oracle: Oracle | None, vae: Any) -> None:
    """Whether SiD can follow the oracle; None is no oracle.

    Raises:
        ValueError: It can't.
    """
    if oracle is None:
        return
    if not oracle.differentiable:
        raise ValueError(
            f"{oracle.name} has no gradient, which distilling needs; disconnect oracle, and teach the student afterwards by "
            "Reward Finetune with 'diffusion_nft'."
        )
    if vae is None:
        raise ValueError("An oracle looks at pictures; connect vae, or disconnect oracle.")


class Pleased:
    """The oracle's reward of latents, as SiD takes it.

    Args:
        model: The teacher.
        vae: Its VAE.
        lines: The prompts, whose numbers count from 1.
        price: See ``Tilt``.

    Attributes:
        networks: What has to be placed.
    """

    def __init__(self, model: Any, vae: Any, oracle: Oracle, lines: Sequence[str], price: float) -> None:
        self.oracle, self.lines, self.decode = oracle, lines, Decoder(model, vae)
        self.networks = [self.decode.network, oracle.network]
        self.tilt = Tilt(self.reward, price)

    def reward(self, latents: Tensor, numbers: Tensor) -> Tensor:
        """Rewards [B] of latents [B, C, ...], as the network has them, with their gradient."""
        return self.oracle.reward(self.decode(latents), [self.lines[int(number) - 1] for number in numbers]).float()
