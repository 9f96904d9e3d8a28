"""Networks built to fit their weights, so that a small file can't ask for a big one.

A network is built twice: first without memory, of no more parts than the weights can fill, and where names and shapes agree, for
good.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registry

from ..files import UnsafeCheckpoint

_PARTS_A_WEIGHT, _SPARE_PARTS = 6, 2_000  # published networks have about two parts a weight
MOST_PARTS = 200_000  # Stable Diffusion 1.5 has 2,200, SDXL 6,000
_LARGEST_NUMBER, MOST_SETTINGS = 1_000_000, 10_000  # in a configuration; vocabularies have up to 260,000 words
MOST_NESTED = 8
LONGEST_NAME = 1_000
_SPARE_BUFFERS = 64 << 20  # masks and frequencies that a network makes itself; CLIP's take 24 kB


class TooManyParts(ValueError):  # noqa: N818 - it names what was found
    """A network that no file of this size can fill."""


def without_memory(weights: int) -> AbstractContextManager[None]:
    """``of_limited_size``, and without memory: within it networks are on torch's "meta" device."""
    return of_limited_size(weights, torch.device("meta"))


@contextmanager
def of_limited_size(weights: int, device: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """Within it networks have no more parts than so many ``weights`` can fill.

    Raises:
        TooManyParts: As soon as there are more, however many the settings ask for.
    """
    left, thread = min(_PARTS_A_WEIGHT * weights + _SPARE_PARTS, MOST_PARTS), threading.get_ident()

    def count(_module: nn.Module, _name: str, _part: object) -> None:
        nonlocal left
        if threading.get_ident() == thread:  # torch's hooks hear of every module that anybody makes
            left -= 1
            if left < 0:
                raise TooManyParts(f"its settings ask for more layers than its {weights} weights can fill")

    listen = registry.register_module_parameter_registration_hook, registry.register_module_module_registration_hook
    hooks = [register(count) for register in listen]
    try:
        with device or nullcontext():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def refuse_hollow(weights: Mapping[str, Tensor], name: str) -> None:
    """Refuse what lets a small file ask for a big network: empty tensors that have sizes all the same, and endless names.

    Raises:
        UnsafeCheckpoint: There is one.
    """
    if any(len(key) > LONGEST_NAME for key in weights):
        raise UnsafeCheckpoint(f"{name} has a weight whose name is longer than any network's: use another file.")
    hollow = next((key for key, value in weights.items() if not value.numel() and any(value.shape)), None)
    if hollow is not None:
        shape = list(weights[hollow].shape)
        raise UnsafeCheckpoint(f"{name} claims the shape {shape} for '{hollow[:60]}', which is empty: use another file.")


def refuse_immodest(settings: Any, name: str) -> None:
    """Refuse a configuration with numbers, or a number of settings, that no network has: lists are made of them.

    Raises:
        UnsafeCheckpoint: There is one.
    """
    waiting, seen = [settings], 0
    while waiting:
        value, seen = waiting.pop(), seen + 1
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        if len(waiting) > MOST_SETTINGS or seen > MOST_SETTINGS:
            raise UnsafeCheckpoint(f"{name} has more settings in its configuration than any network: use another file.")
        if isinstance(value, int | float) and _LARGEST_NUMBER < abs(value) < float("inf"):
            raise UnsafeCheckpoint(f"{name} has a larger number in its configuration than any network: use another file.")


def refuse_oversized(sketch: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse a network, built without memory, whose own buffers would take more than the weights justify.

    Raises:
        TooManyParts: They would.
    """
    buffers = sum(value.numel() * value.element_size() for key, value in sketch.named_buffers() if key not in weights)
    if buffers > _SPARE_BUFFERS + sum(value.numel() * value.element_size() for value in weights.values()):
        raise TooManyParts(f"its settings ask for {buffers / 1e9:.0f} GB beside its weights")


def same_shapes(sketch: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that aren't exactly a network's.

    Raises:
        ValueError: They aren't.
    """
    shapes = {key: value.shape for key, value in sketch.state_dict().items()}
    if shapes != {key: value.shape for key, value in weights.items()}:
        raise ValueError("its weights don't fit each other")


def build_to_fit(
    make: Callable[[], nn.Module], weights: Mapping[str, Tensor], compare: Callable[[nn.Module], object]
) -> nn.Module:
    """The network that ``make`` makes, once ``compare`` has found nothing wrong with it while it had no memory.

    Raises:
        TooManyParts: It has more parts or buffers than ``weights`` justify.
    """
    with without_memory(len(weights)):
        sketch = make()
    compare(sketch)
    refuse_oversized(sketch, weights)
    return make()
