"""One run in several processes (``accelerate launch``): every one takes its rows of the same batch.

All processes draw the randomness of the whole batch from the same generator, compute the gradients of their own rows, and
add them up. So the number of processes changes the time that a run takes and, to rounding, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import environ
from typing import Any

import torch
from torch import Tensor

from .loop import Watch


@dataclass(frozen=True)
class Processes:
    """This process among all."""

    rank: int = 0
    count: int = 1
    accelerator: Any = None

    @classmethod
    def launched(cls) -> Processes:
        """As ``accelerate launch`` set them up; one process otherwise.

        Raises:
            ValueError: accelerate is not installed.
        """
        if int(environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ValueError("Several processes need accelerate: pip install accelerate.") from error
        accelerator = Accelerator()
        return cls(accelerator.process_index, accelerator.num_processes, accelerator)

    @property
    def main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """This process's part of a batch.

        Raises:
            ValueError: The batch can't be shared out evenly.
        """
        if batch % self.count:
            raise ValueError(f"A batch of {batch} can't be shared by {self.count} processes; make it a multiple of {self.count}.")
        size = batch // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over all processes, in one exchange."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="sum")
        for parameter, part in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in their order; the gradient of a loss that every process computes on all of them goes to
        each one's own rows."""
        return rows if self.count == 1 else _Gather.apply(rows, self)  # type: ignore[no-any-return]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process: so that all of them stop at the same step."""
        if self.count == 1:
            return flag
        total = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), reduction="sum")
        return float(total) > 0

    def watch(self, watch: Watch) -> Watch:
        """``watch``, but who stops one process stops all of them, at the same step."""
        return replace(watch, interrupted=lambda: self.any(watch.interrupted()))

    def end(self) -> None:
        """Leave the others, after which nothing can be exchanged. Without it a process may crash as it exits, as gloo does."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over processes of numbers that each computed for its own rows."""
        if self.count == 1:
            return values
        total = self.accelerator.reduce(torch.tensor(list(values.values()), device=self.accelerator.device), reduction="sum")
        return dict(zip(values, total.tolist(), strict=True))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        ctx.rows = slice(processes.rank * len(rows), (processes.rank + 1) * len(rows))
        gathered: Tensor = processes.accelerator.gather(rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.rows], None
