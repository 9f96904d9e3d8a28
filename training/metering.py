"""What a computation holds in memory at most, without computing it: run on the meta device, where tensors have sizes alone.

``Live`` counts every storage that operations make, for as long as it lives, in the forward pass and back. It counts real tensors
just as well. ``OnCard`` has a computation on the meta device hold what an NVIDIA card would: attention that is never written
out, and autocast, which PyTorch doesn't know there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Live(TorchDispatchMode):
    """Bytes of the tensors that operations inside have made and that are still there.

    Attributes:
        now: At this moment.
        peak: At most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:  # a view, or in place
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@dataclass(frozen=True)
class Pass:
    """Of one pass through a network and back, in bytes beside the weights, gradients of the weights, and what goes in.

    Attributes:
        kept: Held from the forward pass till the backward pass begins.
        peak: At most, both passes.
    """

    kept: int
    peak: int


def measured(work: Callable[[Tensor], Tensor], x: Tensor, learned: Any = ()) -> Pass:
    """``work`` on ``x`` and back to ``x`` and to the ``learned`` parameters, whose gradients are there before and not counted."""
    start = x.detach().clone().requires_grad_()
    before = [(value, value.grad) for value in learned]
    for value, _gradient in before:
        value.grad = torch.zeros_like(value)
    try:
        with torch.enable_grad(), Live() as live:
            result = work(start)
            kept = live.now
            result.float().sum().backward()
        return Pass(kept, live.peak)
    finally:
        for value, gradient in before:
            value.grad = gradient


class _Attention(torch.autograd.Function):
    """Attention as fused kernels hold it (FlashAttention, arXiv 2205.14135): inputs, result and one number a row; no matrix."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32), mask)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors[:3]
        _sums = torch.empty_like(q, dtype=torch.float32)  # dq is added up in float32
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


# What CUDA's autocast computes in half precision, and what in float32: torch's table of operations, those that networks call.
_LOWER = frozenset(
    {
        F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, torch.matmul, Tensor.matmul, Tensor.__matmul__,
        Tensor.__rmatmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.baddbmm, Tensor.baddbmm, torch.addmm, torch.einsum,
        F.scaled_dot_product_attention,
    }
)  # fmt: skip
_FLOAT = frozenset(
    {
        F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.softmax, torch.softmax, Tensor.softmax, torch.exp,
        Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt, torch.sum,
        Tensor.sum, torch.cumsum, Tensor.cumsum, F.softplus, F.mse_loss,
    }
)  # fmt: skip


class OnCard(TorchFunctionMode):
    """Inside, the meta device holds what a card would.

    Modes like this one are off in the backward pass, so what is computed again there has to be ``entered``.

    Args:
        dtype: Of autocast; float32 for none.
        floats: What autocast computes in float32; a CPU's list is shorter than CUDA's.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, floats: frozenset[Any] = _FLOAT) -> None:
        super().__init__()
        self.dtype, self.floats = dtype, floats

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.dtype != torch.float32 and func in _LOWER:
            args, kwargs = tree_map(lambda value: _cast(value, self.dtype), (args, kwargs))
        elif self.dtype != torch.float32 and func in self.floats:
            args, kwargs = tree_map(lambda value: _cast(value, torch.float32), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            q, k, v, *rest = args
            return _Attention.apply(q, k, v, kwargs.get("attn_mask", rest[0] if rest else None))
        return func(*args, **kwargs)

    def entered(self, network: nn.Module) -> nn.Module:
        """``network``, whose modules that hold others enter this mode themselves, wherever they are called."""
        for module in network.modules():
            if any(True for _ in module.children()):
                module.forward = _Entering(self, module.forward)  # type: ignore[method-assign]
        return network


class _Entering:
    def __init__(self, mode: OnCard, forward: Callable[..., Any]) -> None:
        self.mode, self.forward = mode, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.mode in _get_current_function_mode_stack():
            return self.forward(*args, **kwargs)
        with self.mode:
            return self.forward(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in ``dtype``; double stays, as with autocast."""
    whole = not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype in (dtype, torch.float64)
    return value if whole else value.to(dtype)
