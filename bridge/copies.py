"""Copies of a MODEL's network that can learn: made outside of inference mode, frozen, in the precision of the training.

Weights that ComfyUI keeps in 8 bits can stay so: a frozen base takes half the memory, and each layer casts its own when it
computes, as ComfyUI's layers do when they draw.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def copy_network(model: comfy.model_patcher.ModelPatcher, dtype: torch.dtype, frozen: bool = False) -> Any:
    """``model``'s BaseModel with a diffusion network of its own, frozen, on the CPU, in ``dtype``.

    LoRAs and other patches of ``model`` are in the copy's weights. Call outside of inference mode.

    Args:
        frozen: It will never learn itself, so that layers that are kept in 8 bits stay so.
    """
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return around_copy(model.model, dtype, frozen)


def around_copy(base: Any, dtype: torch.dtype, frozen: bool, device: str = "cpu") -> Any:
    """``copy_network`` of a BaseModel whose patches are in its weights, or don't matter (on the meta device)."""
    network = copied(base.diffusion_model, dtype, frozen, device)
    network.dtype = dtype
    twin = twin_of(base, network)
    twin.manual_cast_dtype = None
    return twin.train(False)


def copied(network: Any, dtype: torch.dtype, frozen: bool = False, device: str = "cpu") -> Any:
    """A frozen copy of a network in ``dtype``: no device holds it twice meanwhile, and it can be differentiated."""
    small = {id(layer.weight) for layer in _small_layers(network)} if frozen else set()
    cast = {id(v): _cast(v, dtype, id(v) in small, device) for v in (*network.parameters(), *network.buffers())}
    parameters = {id(p): nn.Parameter(cast[id(p)], requires_grad=False) for p in network.parameters()}
    made = copy.deepcopy(network, cast | parameters)
    return cast_each_time(made) if small else made


def _cast(value: Tensor, dtype: torch.dtype, keep: bool, device: str) -> Tensor:
    wanted = dtype if value.is_floating_point() and not keep else value.dtype
    if device == "meta":
        if hasattr(value, "tensor_type"):  # GGUF's, whose shape is that of what is packed
            return torch.empty(tuple(value.shape), dtype=dtype, device=device)
        return torch.empty_like(value, dtype=wanted, device=device)
    return value.detach().to(device, wanted, copy=True)


def _small_layers(network: nn.Module) -> list[Any]:
    """The layers whose weights ComfyUI keeps in 8 bits, and casts each time."""
    layers: list[Any] = [m for m in network.modules() if hasattr(m, "comfy_cast_weights")]
    return [m for m in layers if getattr(m, "weight", None) is not None and m.weight.ndim > 1 and m.weight.dtype in FP8]


def keeps_small(base: Any) -> bool:
    """Whether most of a BaseModel's weights are in 8 bits, and stay so in a frozen copy."""
    sizes = [parameter.numel() for parameter in base.diffusion_model.parameters()]
    return 2 * sum(int(layer.weight.numel()) for layer in _small_layers(base.diffusion_model)) > sum(sizes)


def packed_bytes(base: Any) -> int:
    """Of all weights of a BaseModel, if some are no numbers by themselves: GGUF's, NF4's, Nunchaku's; else 0."""
    parameters = list(base.diffusion_model.parameters())
    return sum(p.nbytes for p in parameters) if any(not p.is_floating_point() for p in parameters) else 0


def check_packed(base: Any) -> None:
    """Whether a copy of a BaseModel, with packed weights or without, computes what it does: ComfyUI-GGUF's does.

    Raises:
        ValueError: It doesn't.
    """
    if any(not parameter.is_floating_point() and not hasattr(parameter, "tensor_type") for parameter in
           base.diffusion_model.parameters()):  # fmt: skip
        raise ValueError(
            "The model's weights are packed in 4 or 8 bits (NF4, Nunchaku or the like), which can't be trained over: load the "
            "same model in bf16, fp16, fp8 or GGUF."
        )


def cast_each_time(network: Any) -> Any:
    """``network``, whose layers of 8 bits cast their weights in the backward pass too, and keep no cast one between.

    Scaled ones (``scale_weight``) and convolutions are left to ComfyUI: they keep theirs until their block is done.
    """
    for layer in _small_layers(network):
        layer.comfy_cast_weights = True
        if isinstance(layer, nn.Linear) and getattr(layer, "scale_weight", None) is None:
            layer.forward_comfy_cast_weights = MethodType(_linear, layer)  # type: ignore[assignment]
    return network


def _linear(self: Any, x: Tensor) -> Tensor:
    """A layer of 8 bits as ComfyUI computes it."""
    if self.weight_function or self.bias_function or self.weight.device != x.device:  # a part of the network is elsewhere
        return type(self).forward_comfy_cast_weights(self, x)  # type: ignore[no-any-return]
    dtype = torch.get_autocast_dtype(x.device.type) if not x.is_meta and torch.is_autocast_enabled(x.device.type) else x.dtype
    bias = None if self.bias is None else self.bias.to(dtype)
    return _Linear.apply(x.to(dtype), self.weight, bias)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    """x W^T + b whose backward pass casts the frozen W once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        with torch.autocast(x.device.type, enabled=False) if not x.is_meta else torch.no_grad():
            return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None, None


def another(base: Any) -> Any:
    """``base`` once more: around a copy of its network, all else shared."""
    return twin_of(base, copy.deepcopy(base.diffusion_model))


def twin_of(base: Any, network: nn.Module) -> Any:
    """A BaseModel like ``base`` around another diffusion network; all else is shared."""
    twin = copy.copy(base)
    twin.__dict__ = {**base.__dict__, "_modules": dict(base._modules)}
    twin.current_patcher = None
    # What ModelPatchers note of the weights that they have loaded, which are not these.
    twin.device, twin.model_loaded_weight_memory, twin.lowvram_patch_counter = torch.device("cpu"), 0, 0
    twin.model_lowvram, twin.current_weight_patches_uuid = False, None
    twin.diffusion_model = network
    return twin
