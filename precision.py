"""What to compute in: half precision where the machine has it natively, float32 elsewhere. Asked here and nowhere else.

A CPU without bfloat16 computes in it all the same, by converting back and forth: 5 times slower in matrices, 30 times and
more in convolutions. So nothing takes it there by itself.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def name_of(dtype: torch.dtype) -> str:
    """"bf16" or the like."""
    return next(name for name, known in DTYPES.items() if known == dtype)


_X86 = ("x86_64", "amd64")
_X86_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx_ne_convert"), torch.float16: ("avx512_fp16", "amx_fp16"),
}  # fmt: skip


def native_bfloat16(device: str = "cpu") -> bool:
    """Whether ``device`` ("cpu", "cuda:0", "mps"…) computes in bfloat16 natively, so that it saves time.

    MPS counts as no: nobody has measured it.
    """
    kind = device.partition(":")[0]
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and _on_the_cpu(torch.bfloat16)


@cache
def _on_the_cpu(dtype: torch.dtype) -> bool:
    """Whether this CPU has the instructions of ``dtype`` and PyTorch uses them."""
    if not torch.backends.mkldnn.is_available():
        return False
    asked = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[str(dtype).removeprefix("torch.")]
    if not getattr(torch.ops.mkldnn, asked)():
        return False
    # oneDNN says yes to every CPU with AVX-512, and those without the instruction take 1.3 to 1.6 times as long as in float32.
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if platform.machine().lower() not in _X86 or capabilities is None:
        return True
    flags = capabilities()
    return any(flags.get(name) for name in _X86_INSTRUCTIONS[dtype])


@contextmanager
def autocast(enabled: bool | None = None, device: str = "cpu") -> Iterator[None]:
    """bfloat16 autocast on ``device``: where it is native, unless ``enabled`` says otherwise."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=native_bfloat16(device) if enabled is None else enabled):
        yield


def warning(dtype: torch.dtype, device: str) -> str:
    """A sentence for those who ask for half precision on a CPU that is slow in it: how slow, measured now; "" elsewhere."""
    if device != "cpu" or dtype == torch.float32 or _on_the_cpu(dtype):
        return ""
    return (
        f"This CPU has no native {str(dtype).removeprefix('torch.')}: a convolution takes {slowdown(dtype):.0f} times as long in "
        "it as in float32 (measured just now). Take fp32, unless the memory is short."
    )


def warning_of(network: nn.Module, device: str) -> str:
    """``warning`` for the half precision that weights of ``network`` are kept in; "" where there is none, or no need."""
    kept = {parameter.dtype for parameter in network.parameters()} & {torch.bfloat16, torch.float16}
    return next((said for dtype in kept if (said := warning(dtype, device))), "")


@torch.inference_mode()
def slowdown(dtype: torch.dtype) -> float:
    """CPU time of a convolution like those of U-Nets in ``dtype``, over that in float32."""
    layer, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(8, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = _least_cpu_seconds(lambda: layer(x))
    layer, low = layer.to(dtype), x.to(dtype)
    return _least_cpu_seconds(lambda: layer(low)) / plain


def _least_cpu_seconds(call: Callable[[], object], times: int = 5) -> float:
    """The least of ``times`` calls, after one that warms up."""
    call()
    taken = []
    for _ in range(times):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return max(min(taken), 1e-6)
