"""Low-rank adapters (arXiv 2106.09685) of which several share one frozen network: W x + (alpha / rank) B A x.

The generator and the fake score network of a distillation are two adapters on the teacher, so that one copy of its weights
is in memory instead of three. Who is meant is a switch that every layer looks at; it is also what gradient checkpointing has
to remember, since it runs a block again when the switch has long moved on. (That, and ComfyUI's names in the file, are why
this is not peft: its layers can be switched only together with what learns.)
"""

from __future__ import annotations

import dis
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

Layer = nn.Linear | nn.Conv2d


class Lora(nn.Module):
    """One adapter: a pair of matrices for every layer that it changes, by the layer's name.

    Args:
        layers: What is changed.
        rank: Of the change; at most the smaller side of a layer is used.
        generator: Source of the random start of A; B starts at 0, so the network is unchanged at first.
    """

    def __init__(self, layers: dict[str, Layer], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.names = list(layers)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for layer in layers.values():
            outputs, inputs, *kernel = layer.weight.shape
            size = min(rank, outputs, inputs * math.prod(kernel))
            bound = 1 / math.sqrt(inputs * math.prod(kernel))
            device = layer.weight.device
            if layer.weight.is_meta:  # sizes alone are wanted
                down = torch.empty(size, inputs, *kernel, device=device)
            else:
                down = (torch.rand(size, inputs, *kernel, generator=generator) * 2 - 1) * bound
            self.down.append(nn.Parameter(down.to(device)))
            self.up.append(nn.Parameter(torch.zeros(outputs, size, *(1 for _ in kernel), device=device)))

    def change(self, number: int, layer: Layer, x: Tensor) -> Tensor:
        """B A x for one layer, in the adapter's precision (or autocast's)."""
        down, up = self.down[number], self.up[number]
        x = x.to(down.dtype)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation), up)
        return F.linear(F.linear(x, down), up)


class Adapters:
    """Adapters of one network, of which at most one is on.

    Attributes:
        active: The name of the adapter that is on; None for the network as it was.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...], rank: int, seed: int = 0) -> None:
        layers = adaptable(network)
        self.network = network.requires_grad_(False)
        self.active: str | None = None
        generator = torch.Generator().manual_seed(seed)
        self.of = {name: Lora(layers, rank, generator) for name in names}
        for number, layer in enumerate(layers.values()):
            layer.register_forward_hook(_Change(self, number))

    @contextmanager
    def on(self, name: str | None) -> Iterator[None]:
        """Inside, the adapter ``name`` is on."""
        before, self.active = self.active, name
        try:
            yield
        finally:
            self.active = before


def switched(denoise: Callable[..., Tensor], adapters: Adapters, name: str | None) -> Callable[..., Tensor]:
    """``denoise`` (x, sigma, labels) with that adapter on, or with none."""

    def with_adapter(x: Tensor, sigma: Tensor, labels: Any) -> Tensor:
        with adapters.on(name):
            return denoise(x, sigma, labels)

    return with_adapter


class _Change:
    """What ``Adapters`` hook to a layer."""

    def __init__(self, adapters: Adapters, number: int) -> None:
        self.adapters, self.number = adapters, number

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.adapters.active is None:
            return output
        return output + self.adapters.of[self.adapters.active].change(self.number, layer, inputs[0]).to(output.dtype)


def adaptable(network: nn.Module) -> dict[str, Layer]:
    """The layers that a LoRA changes: every linear one and every convolution without groups.

    Raises:
        ValueError: There are none.
    """
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }
    if not layers:
        raise ValueError("This network has no layers that a LoRA could change; distil a full copy.")
    return layers


class _OutOfPlace(TorchFunctionMode):
    """``x += y`` makes a new x."""

    _INSTEAD: ClassVar = {Tensor.add_: torch.add, Tensor.sub_: torch.sub, Tensor.mul_: torch.mul, Tensor.div_: torch.div}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._INSTEAD and _is_assignment(sys._getframe(1)):
            func = self._INSTEAD[func]
        return func(*args, **(kwargs or {}))


def _is_assignment(frame: FrameType) -> bool:
    """Whether the frame is at ``x += y``, which is ``add_`` to torch, and not at ``x.add_(y)``, whose answer may be dropped."""
    code, at = frame.f_code.co_code, frame.f_lasti
    name = dis.opname[code[at]]
    return name.startswith("INPLACE_") or (name == "BINARY_OP" and code[at + 1] >= _FIRST_INPLACE)


_FIRST_INPLACE = 13  # NB_INPLACE_ADD, of Python's BINARY_OP (3.11 and later; before, the instruction's name says it)


def out_of_place() -> AbstractContextManager[Any]:
    """Inside, augmented assignments leave their tensor as it was wherever gradients are computed.

    Networks that are made for drawing add in place, also to what the backward pass or a block that is run again needs. A mode
    is of its thread, so what runs in the backward pass has to enter it anew.
    """
    return _OutOfPlace() if torch.is_grad_enabled() else nullcontext()


def lora_state_dict(tensors: dict[str, Tensor], names: list[str], prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    """A ``Lora``'s tensors under the names that ComfyUI's LoraLoader knows; alpha is the rank, so strength 1 is as trained.

    Args:
        tensors: ``Lora.state_dict()``, or its moving average.
        names: ``Lora.names``.
    """
    named = {}
    for number, name in enumerate(names):
        down, up = tensors[f"down.{number}"], tensors[f"up.{number}"]
        named[f"{prefix}{name}.lora_down.weight"] = down
        named[f"{prefix}{name}.lora_up.weight"] = up
        named[f"{prefix}{name}.alpha"] = torch.tensor(float(down.shape[0]))
    return named


def in_half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` in float16 on the CPU, as files hold them.

    Raises:
        FloatingPointError: That can't hold one of them.
    """
    half = {key: value.to(torch.float16).cpu() for key, value in tensors.items()}
    if not all(bool(value.isfinite().all()) for value in half.values()):
        raise FloatingPointError("The weights that were learned are too large for a file in float16; lower the learning rate.")
    return half


def checkpoint_blocks(network: nn.Module, adapters: Adapters | None = None, smallest: bool = False) -> int:
    """Make every block of ``network`` compute its activations again in the backward pass instead of keeping them.

    Blocks are the first modules below lists and sequences that compute something themselves. A block that is run again
    finds the adapter on that was on the first time. Before the network is handed out, ``untrained`` takes it back.

    Args:
        smallest: Blocks are what holds layers alone, for networks whose lists hold whole resolutions, as decoders do.

    Returns:
        How many blocks there are.
    """
    blocks = list(_of_layers(network) if smallest else _blocks(network))
    for block in blocks:
        block.forward = _Recomputed(block, adapters)  # type: ignore[method-assign]
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from _blocks(child)
        elif any(True for _ in child.children()) and any(True for _ in child.parameters()):
            yield child


def _of_layers(module: nn.Module) -> Iterator[nn.Module]:
    inner = [child for child in module.children() if any(True for _ in child.children())]
    for child in inner:
        yield from _of_layers(child)
    if not inner and any(True for _ in module.children()) and any(True for _ in module.parameters()):
        yield module


class _Recomputed:
    """A block's ``forward`` that keeps nothing for the backward pass but what goes in."""

    def __init__(self, block: nn.Module, adapters: Adapters | None) -> None:
        self.overridden = "forward" in block.__dict__  # another's override
        self.forward, self.adapters = block.forward, adapters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        adapters = self.adapters
        active, names, count = adapters.active if adapters is not None else None, tuple(kwargs), len(args)

        def again(*given: Any) -> Any:
            with out_of_place(), adapters.on(active) if adapters is not None else nullcontext():
                return self.forward(*given[:count], **dict(zip(names, given[count:], strict=True)))

        # By place alone: tensors that are given by name are held even where a pass around this block is made again (``apart``).
        return checkpoint(again, *args, *kwargs.values(), use_reentrant=False)


def untrained(network: nn.Module) -> nn.Module:
    """``network`` without what ``checkpoint_blocks`` and ``Adapters`` put on it for training: as it may be handed out.

    What is left on it would stay on its copies, where it runs the blocks of the network that they were copied from.
    """
    for module in network.modules():
        changed = module.__dict__.get("forward")
        if isinstance(changed, _Recomputed):
            del module.forward
            if changed.overridden:
                module.forward = changed.forward  # type: ignore[method-assign]
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, _Change)]:
            del module._forward_hooks[key]
    return network


@torch.no_grad()
def merge(network: nn.Module, lora: Lora) -> None:
    """Add B A to the weights of ``network``, another copy of the one that ``lora`` was made for; it is without hooks after."""
    layers = adaptable(network)
    for number, name in enumerate(lora.names):
        layer, down, up = layers[name], lora.down[number], lora.up[number]
        change = up.flatten(1) @ down.flatten(1)
        layer.weight.add_(change.view_as(layer.weight).to(layer.weight.dtype))
