"""A LoRA that begins as a difference of weights: what made a published student of its base, on a teacher that stays shared.

Generator and fake score of a distillation are LoRAs on the artist's own checkpoint (``lora``). A published few-step model shares
most of that checkpoint's weights; what it has beside them, W_student - W_base, is taken into the generator's LoRA, so that it
begins as that student with the artist's look. Layer by layer, so no second network is ever in memory. The rank's best
approximation of a matrix is its first singular vectors (Eckart and Young 1936); of a convolution, of its kernel as a matrix
[out, in k k].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .lora import Lora

Weights = Callable[[str], Tensor]
"""A layer's weights, or their change, by the layer's name."""

_EXACT = 512  # the smaller side of matrices that are decomposed whole
_OVERSAMPLED, _ITERATIONS = 16, 4  # of the randomised decomposition (arXiv 0909.4061, Algorithms 4.4 and 5.1)
_NOTHING = 1e-6  # singular values below that part of the first are rounding


def decomposed(change: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The first singular vectors of a layer's change: U [out, r], S [r], V^T [r, in k k], with r = min(rank, sides).

    Args:
        change: [out, in] or [out, in, k, k], float32.
        seed: Of the randomised decomposition, which is taken of matrices far larger than the rank.
    """
    matrix = change.flatten(1)
    rank = min(rank, *matrix.shape)
    wanted = rank + _OVERSAMPLED
    if min(matrix.shape) <= max(_EXACT, 2 * wanted):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.device.type == "cuda" else []):
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(matrix, q=wanted, niter=_ITERATIONS)
        vh = v.mT
    return u[:, :rank], s[:rank], vh[:rank]


def _halves(u: Tensor, s: Tensor, vh: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """A = S^(1/2) V^T [r, in, k, k] and B = U S^(1/2) [out, r, 1, 1] of a change of this shape: both of the same size."""
    root = s.sqrt()
    return (root[:, None] * vh).view(-1, *shape[1:]), (u * root).view(*u.shape, *(1 for _ in shape[2:]))


@torch.no_grad()
def begin_at(lora: Lora, change: Callable[[str], Tensor | None], interrupted: Callable[[], None] = lambda: None) -> float:
    """Let ``lora``, which is new, begin at a change of weights, as far as its rank reaches.

    Directions in which nothing changes keep their random A and their B of 0: were both 0, no gradient would ever reach them.

    Args:
        change: Of a layer's weights; None where there is none.
        interrupted: Called before every layer; may raise.

    Returns:
        The share of the change that the rank holds, 0..1: of the sum of the squares of all weights' changes.
    """
    whole = held = 0.0
    for number, name in enumerate(lora.names):
        interrupted()
        wanted = change(name)
        if wanted is None or not bool(wanted.any()):
            continue
        down, up = lora.down[number], lora.up[number]
        u, s, vh = decomposed(wanted.float(), down.shape[0], number)
        used = int((s > _NOTHING * s[0]).sum())
        first, second = _halves(u[:, :used], s[:used], vh[:used], wanted.shape)
        down[:used], up[:, :used] = first.to(down), second.to(up)
        whole, held = whole + float(wanted.double().square().sum()), held + float(s.double().square().sum())
    return min(held / whole, 1.0) if whole else 1.0


def learned(tensors: dict[str, Tensor], names: list[str]) -> Weights:
    """B A of a ``Lora``'s tensors, by the layer's name: the change of its weights [out, in, k, k]."""
    places = {name: number for number, name in enumerate(names)}

    def change(name: str) -> Tensor:
        down, up = tensors[f"down.{places[name]}"].float(), tensors[f"up.{places[name]}"].float()
        return (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])

    return change


def recompressed(
    names: Iterable[str], change: Weights, rank: int, interrupted: Callable[[], None] = lambda: None
) -> tuple[dict[str, Tensor], float]:
    """A LoRA of any change of weights, as ``Lora.state_dict`` names its tensors, and the share of the change that it holds."""
    tensors, whole, held = dict[str, Tensor](), 0.0, 0.0
    for number, name in enumerate(names):
        interrupted()
        wanted = change(name).float()
        u, s, vh = decomposed(wanted, rank, number)
        down, up = _halves(u, s, vh, wanted.shape)
        tensors[f"down.{number}"], tensors[f"up.{number}"] = down.cpu(), up.cpu()
        whole, held = whole + float(wanted.double().square().sum()), held + float(s.double().square().sum())
    return tensors, min(held / whole, 1.0) if whole else 1.0
