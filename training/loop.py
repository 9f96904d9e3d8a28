"""The one training loop: resumable to the bit, EMA, progress, interruption.

A run is a function of its seed and its settings alone. Every step draws its randomness from a generator seeded by
(seed, step), the learning rate is a function of the pictures seen, and a checkpoint holds weights, EMA and optimiser;
so a run that was stopped and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import write_atomically

# (step, picture count so far, loss averaged since the last report)
Report = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Schedule:
    """Batch size and learning rate as functions of pictures seen: linear warm-up, constant, cosine decay to 1 %."""

    pictures: int
    batch: int
    learning_rate: float
    warmup: float = 0.02
    decay: float = 0.5

    @property
    def steps(self) -> int:
        """Optimiser steps in the whole run."""
        return math.ceil(self.pictures / self.batch)

    def rate(self, step: int) -> float:
        """The learning rate of ``step`` (0-based)."""
        done = step / self.steps
        if done < self.warmup:
            return self.learning_rate * (done + 1 / self.steps) / self.warmup
        if done < 1 - self.decay:
            return self.learning_rate
        phase = (done - (1 - self.decay)) / self.decay
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * phase)))


class Ema:
    """Exponential moving average of parameters: e <- d e + (1 - d) p, with d ramped up over the first pictures.

    ``half_life`` is in pictures; as in EDM the half-life never exceeds ``rampup`` of the pictures seen so far.
    """

    def __init__(self, model: nn.Module, half_life: float, rampup: float = 0.1) -> None:
        self.half_life, self.rampup = half_life, rampup
        self.shadow = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, pictures: int, batch: int) -> None:
        """Fold in the weights after a step that brought the count to ``pictures``."""
        half_life = min(self.half_life, max(pictures * self.rampup, 1e-8))
        decay = 0.5 ** (batch / half_life)
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.shadow[key].lerp_(value, 1 - decay)
            else:
                self.shadow[key].copy_(value)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of all randomness of one step (a CPU generator, so that devices agree)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) & 0x7FFFFFFFFFFFFFFF)


def train(
    model: nn.Module,
    loss: Callable[[torch.Generator, int], Tensor],
    schedule: Schedule,
    checkpoint: Path,
    *,
    seed: int = 0,
    ema_half_life: float = 20_000,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    save_every: int = 500,
    report_every: int = 100,
    report: Report | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    on_save: Callable[[Ema, int], None] | None = None,
    after_step: Callable[[Ema], None] | None = None,
) -> Ema:
    """Minimise ``loss(generator, batch)`` over the parameters of ``model`` and return their moving average.

    Resumes from ``checkpoint`` when that file is there; saves to it every ``save_every`` steps, when interrupted, and
    at the end.

    Args:
        loss: Gets the step's generator and the batch size; returns a scalar.
        interrupted: Asked after each step; when true, the state is saved and ``KeyboardInterrupt`` raised.
        on_save: Called after each save with the moving average and the pictures seen, for samples and plots.
        after_step: Called after each step, once the moving average is up to date.

    Raises:
        KeyboardInterrupt: The run was interrupted; the checkpoint is up to date.
        FloatingPointError: The loss is no longer finite; the last checkpoint is from before.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    ema = Ema(model, ema_half_life)
    start = _resume(checkpoint, model, optimiser, ema)
    running, since = 0.0, 0
    for step in range(start, schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        value = loss(step_generator(seed, step), schedule.batch)
        if not torch.isfinite(value):
            raise FloatingPointError(f"The loss became {value.item()} at step {step}; lower the learning rate.")
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        pictures = (step + 1) * schedule.batch
        ema.update(model, pictures, schedule.batch)
        if after_step:
            after_step(ema)
        running, since = running + value.item(), since + 1
        if report and since == report_every:
            report(step + 1, pictures, running / since)
            running, since = 0.0, 0
        stop = interrupted()
        if stop or (step + 1) % save_every == 0 or step + 1 == schedule.steps:
            _save(checkpoint, model, optimiser, ema, step + 1)
            if on_save:
                on_save(ema, pictures)
        if stop:
            raise KeyboardInterrupt
    return ema


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, ema: Ema, step: int) -> None:
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "ema": ema.shadow, "step": step}
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def _resume(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, ema: Ema) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    for key, value in state["ema"].items():
        ema.shadow[key].copy_(value)
    return int(state["step"])


@contextmanager
def autocast(enabled: bool = True, device: str = "cpu") -> Iterator[None]:
    """bfloat16 autocast on ``device``; half the time of float32 on a CPU that knows bfloat16."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
        yield
