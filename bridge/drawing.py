"""The settings of one sampler run, and what an artist may connect in their place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .fingerprints import model_name
from .guiders import stock_sigmas
from .noise import batch_noise
from .rows import Latent


@dataclass(frozen=True)
class Drawing:
    """The settings of one stock sampler run, and in their place what is connected.

    Attributes:
        sampler: A name, or a SAMPLER.
        sigmas: In place of steps, scheduler and denoise.
        guider: In place of the model's conditionings and cfg.
        noise: A NOISE, in place of the seed's.
    """

    steps: int
    cfg: float
    sampler: Any
    scheduler: str
    seed: int
    denoise: float = 1.0
    sigmas: Tensor | None = None
    guider: Any = None
    noise: Any = None

    def connected(self, sigmas: Any = None, sampler: Any = None, guider: Any = None, noise: Any = None) -> Drawing:
        """These settings with what is connected in their place.

        Raises:
            ValueError: SIGMAS that nobody can draw at.
        """
        if sigmas is not None and (sigmas.ndim != 1 or len(sigmas) < 2 or not bool(sigmas.isfinite().all())):
            raise ValueError(
                f"SIGMAS are at least two noise levels, and these are {len(sigmas.flatten())}: raise the steps or the denoise of "
                "the node that makes them."
            )
        return replace(
            self, sampler=self.sampler if sampler is None else sampler, sigmas=None if sigmas is None else sigmas.cpu(),
            guider=guider, noise=noise, seed=self.seed if noise is None else noise.seed,
        )  # fmt: skip

    def model(self, model: Any) -> Any:
        """``model``, or the guider's own, which must be the same.

        Raises:
            ValueError: It is another.
        """
        if self.guider is None:
            return model
        guided = self.guider.model_patcher
        origin = getattr(guided, "cached_patcher_init", None)  # in newer ComfyUIs a guider may load its model once more
        if guided.model is not model.model and (origin is None or origin != getattr(model, "cached_patcher_init", None)):
            raise ValueError(
                f"The GUIDER draws with another model ({model_name(guided)}) than the one connected ({model_name(model)}): "
                "connect the guider's model to this node too, or take the guider off."
            )
        return guided

    def names_no_preset(self) -> bool:
        """Whether nothing is left for a preset to say: levels and sampler are connected."""
        return self.sigmas is not None and not isinstance(self.sampler, str)

    def first_noise(self, latent: Latent) -> Tensor:
        """The whole batch's noise."""
        noise: Tensor = batch_noise(latent, self.seed) if self.noise is None else self.noise.generate_noise(latent)
        return noise

    def levels(self, model: Any, denoise: float) -> Tensor:
        """The connected noise levels, or the stock sampler's."""
        return stock_sigmas(model, self.sampler, self.scheduler, self.steps, denoise) if self.sigmas is None else self.sigmas
