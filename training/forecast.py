"""What a run will take, said before it starts: pictures, time and memory, by one pass of the very networks that will work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..files import human_size
from .variety import ANCHOR, CONSISTENCY, OFF, PATH_STEPS

STATE = 16  # bytes that a parameter that learns takes beside itself: gradient, two moments of Adam, the average, float32 each


@dataclass(frozen=True)
class Forecast:
    """Of one run, from its first step to its last.

    Attributes:
        pictures: That are drawn or looked at while it learns.
        seconds: About.
        memory: Bytes on the computing device, about.
    """

    pictures: int
    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"{self.pictures:,} pictures, {duration(self.seconds)}, about {human_size(self.memory)} of memory"


def duration(seconds: float) -> str:
    """For people, in the unit that is read most easily."""
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.0f} h" if seconds < 72 * 3600 else f"about {seconds / 86400:.0f} days"


def looking(work: Callable[[], Any]) -> float:
    """Seconds of ``work`` without gradients, the second time; the first one makes ready."""
    with torch.no_grad(), _unchanged():
        work()
        return _seconds(work)


def learning(work: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, int]:
    """Seconds of one pass of ``x`` through ``work`` and back, and the bytes that it keeps on the way. No gradient is left."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def there_and_back() -> None:
        start = x.detach().clone().requires_grad_()
        torch.autograd.grad(work(start).float().sum(), start, allow_unused=True)

    with torch.enable_grad(), _unchanged():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            there_and_back()
        return _seconds(there_and_back), sum(kept.values())


def held(networks: Iterable[nn.Module], learned: Sequence[Tensor]) -> int:
    """Bytes of the networks' weights, and of what is kept of those that learn; what two networks share counts once."""
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for network in networks
        for value in (*network.parameters(), *network.buffers())
    }
    return sum(storages.values()) + STATE * sum(value.numel() for value in learned)


def sid_passes(kappa1: float, kappa2: float, kappa4: float) -> tuple[int, int]:
    """Passes of a network for each picture of SiD, without and with gradient; guidance doubles those that it is of."""
    return 1, 1 + sum(2 if kappa != 1 else 1 for kappa in (kappa1, kappa2, kappa4))


def variety_passes(kind: str, kappa4: float) -> tuple[int, int]:
    """Likewise of what keeps the variety beside it."""
    guided = 2 if kappa4 != 1 else 1
    return {OFF: (0, 0), ANCHOR: (PATH_STEPS[ANCHOR] * guided, 1), CONSISTENCY: (1 + guided, 1)}[kind]


def finetune_passes(algorithm: str, steps: int, regressed: int) -> tuple[int, int]:
    """Likewise for each picture of a fine-tuning whose draws have ``steps``, of which ``regressed`` are learned from."""
    return {
        "adjoint_matching": (steps + regressed, steps + regressed), "path_kl": (steps, steps),
        "weighted_regression": (regressed, regressed), "preview": (steps, 1), "direct": (1, 2),
        "diffusion_nft": (steps + regressed, regressed) if steps > 1 else (4, 2),
    }[algorithm]  # fmt: skip


def _seconds(work: Callable[[], Any]) -> float:
    _wait()
    begun = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - begun


def _wait() -> None:
    devices = getattr(torch, "accelerator", torch.cuda)  # older versions of torch know CUDA alone
    if devices.is_available():
        devices.synchronize()


@contextmanager
def _unchanged() -> Any:
    """Random numbers go on as if nothing had been drawn."""
    with torch.random.fork_rng():
        yield
