"""The optimisers that a run may choose: Adam, Adam with states of 8 bits, and Adafactor, whose second moment is factored.

For networks that fill a card: Adam keeps 8 bytes beside every number that learns, 8-bit Adam 2, Adafactor next to none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

ADAM, ADAM_8BIT, ADAFACTOR = OPTIMISERS = ("adam", "adam8bit", "adafactor")
_BLOCK, _LEAST = 256, 4096  # of 8-bit states: numbers that share a scale, and below how many a tensor stays in float32


def make_optimiser(
    kind: str, parameters: Iterable[Tensor], rate: float, betas: tuple[float, float], eps: float = 1e-8
) -> torch.optim.Optimizer:
    """An optimiser whose state dict holds plain tensors, so that a run can be saved and resumed to the bit.

    "adam8bit" is Adam with both moments in blocks of 256 numbers of 8 bits (arXiv 2110.02861), by bitsandbytes, or by torchao
    where that is missing. "adafactor" (arXiv 1804.04235) is PyTorch's, with the learning rate as it is given instead of one that
    is relative to the weights: its step is max(eps2, RMS(weights)) rate, so eps2 = 1 makes it ``rate`` for all weights that are
    smaller. It has no first moment (``betas[0]`` is 0 in SiD, and goes unused here) and no bias correction; its second moment's
    average reaches back over all steps, 1 - t^-0.8 of them; its update's RMS is clipped at 1; ``eps`` becomes float32's own.

    Raises:
        ValueError: There is no such optimiser, or its library is not installed.
    """
    parameters = list(parameters)
    if kind == ADAM:
        return torch.optim.Adam(parameters, lr=rate, betas=betas, eps=eps)
    if kind == ADAFACTOR:
        return torch.optim.Adafactor(parameters, lr=rate, eps=(None, 1.0))
    check_optimiser(kind)
    if (library := _installed("bitsandbytes.optim")) is not None:
        return library.Adam8bit(parameters, lr=rate, betas=betas, eps=eps)
    return _Torchao(parameters, rate, betas, eps)


def check_optimiser(kind: str) -> None:
    """Before a run begins.

    Raises:
        ValueError: There is no such optimiser, or its library is not installed.
    """
    if kind not in OPTIMISERS:
        raise ValueError(f"There is no optimiser '{kind}'; choose one of: {', '.join(OPTIMISERS)}.")
    if kind == ADAM_8BIT and _installed("bitsandbytes.optim") is None and _installed("torchao.optim") is None:
        raise ValueError(
            "adam8bit needs a library that isn't installed: pip install bitsandbytes (or torchao) into ComfyUI's environment, or "
            "choose adafactor, which takes even less memory."
        )


def _installed(name: str) -> Any:
    """The module; None where it, or what it needs of the machine, is missing."""
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError):
        return None


class _Torchao(torch.optim.Optimizer):
    """torchao's Adam8bit as others are: its rate is a number, its state dict holds plain tensors, no compiler is needed."""

    def __init__(self, parameters: Sequence[Tensor], rate: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(parameters, {"lr": rate})
        self.inner = _installed("torchao.optim").Adam8bit(parameters, lr=rate, betas=betas, eps=eps)

    def step(self, closure: Any = None) -> Any:
        """One step, without torch.compile, which would want a C compiler and minutes."""
        self.inner.param_groups[0]["lr"].fill_(self.param_groups[0]["lr"])
        with torch.compiler.set_stance("force_eager"):
            return self.inner.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Every state of 8 bits as its parts."""
        state = self.inner.state_dict()["state"]
        return {"state": {key: {name: _parts(value) for name, value in each.items()} for key, each in state.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``state_dict``."""
        parameters = self.param_groups[0]["params"]
        for key, each in state_dict["state"].items():
            parameter = parameters[int(key)]
            self.inner.state[parameter] = {name: self._whole(value, name, parameter) for name, value in each.items()}

    def _whole(self, value: Any, name: str, parameter: Tensor) -> Any:
        if not isinstance(value, dict):
            return value.to(parameter.device) if name != "step" else value
        empty = self.inner._new_buffer(parameter, value["signed"])
        for part in ("codes", "scale"):
            getattr(empty, part).copy_(value[part])
        return empty


def _parts(value: Any) -> Any:
    if hasattr(value, "codes"):
        return {"codes": value.codes, "scale": value.scale, "signed": value.signed}
    return value


def state_bytes(kind: str, shapes: Iterable[Sequence[int]]) -> int:
    """Bytes that an optimiser keeps of parameters of these shapes; single numbers and tables left out."""
    return sum(_state_bytes(kind, tuple(shape)) for shape in shapes)


def _state_bytes(kind: str, shape: tuple[int, ...]) -> int:
    size = math.prod(shape)
    if kind == ADAFACTOR:
        return 4 * (size // shape[-1] + size // shape[-2]) if len(shape) > 1 else 4 * size
    if kind == ADAM_8BIT and size >= _LEAST:
        return 2 * (size + 4 * math.ceil(size / _BLOCK))
    return 8 * size
