"""A part of the pictures that nothing is learned from: it says which epoch's weights are kept, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """The pictures to learn from, and those held out: ``share`` of ``count``, drawn by ``seed``.

    Raises:
        ValueError: Nothing is left to learn from, or too few are held out to tell anything.
    """
    if not share:
        return list(range(count)), []
    held = round(share * count)
    if not 2 <= held < count - 1:
        raise ValueError(f"A share of {share:g} of {count} pictures holds out {held}: take more pictures, or another share.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held:]), sorted(order[:held])


class BestWeights(nn.Module):
    """The weights of the epoch with the lowest loss on what is held out; part of a run's state, so that it resumes.

    Args:
        modules: What learns.
        patience: After so many epochs without a lower loss the run is at its end.
    """

    loss: Tensor
    last: Tensor
    epoch: Tensor
    best: Tensor

    def __init__(self, modules: Sequence[nn.Module], patience: int) -> None:
        super().__init__()
        self.__dict__["_values"] = [value for module in modules for value in module.state_dict(keep_vars=True).values()]
        self.patience = patience
        for name, number in (("loss", math.inf), ("last", math.inf), ("epoch", 0.0), ("best", 0.0)):
            self.register_buffer(name, torch.tensor(number))
        for i, value in enumerate(self.__dict__["_values"]):
            self.register_buffer(f"value_{i}", value.detach().clone())

    @torch.no_grad()
    def look(self, loss: float, epoch: int) -> None:
        """Note the loss on what is held out after ``epoch`` epochs, and keep the weights if none was lower."""
        self.last.fill_(loss)
        self.epoch.fill_(epoch)
        if loss < float(self.loss):
            self.loss.fill_(loss)
            self.best.fill_(epoch)
            for i, value in enumerate(self.__dict__["_values"]):
                self.get_buffer(f"value_{i}").copy_(value)

    @property
    def over(self) -> bool:
        """Whether the last epochs have brought nothing."""
        return float(self.epoch - self.best) >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best weights back."""
        for i, value in enumerate(self.__dict__["_values"]):
            value.copy_(self.get_buffer(f"value_{i}"))
