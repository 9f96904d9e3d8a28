"""Adaptive collaboration of student and teacher: Algorithm 1 of arXiv 2312.10835 on one page.

    x = S(z)                               the student draws
    rho = E(x)                             the oracle judges
    where rho < tau:                       the weak ones alone go to the teacher, which
        x' = T(z), or                          regenerates: draws from the student's own noise
        x' = T(x noised to sigma)              refines: takes the draft back to the noise level of the rollback, and draws it anew
        x = x' if E(x') > rho              and the better of the two stays (ours; the paper keeps x')

Pictures are tensors with the batch first. The node graph is this function with an artist between the lines: Student Sampler
(``bridge/drafts.py``), Judge (``gate/``), Teacher (``bridge/teacher.py``), Keep Better (``gate/decision.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, arange

Start = Callable[[Tensor, Tensor], Tensor]
"""From drafts [R, ...] and their places in the batch [R] to what the teacher draws from [R, ...]."""


@dataclass(frozen=True)
class Collaboration:
    """What came out.

    Attributes:
        x: The pictures [B, ...], in the order of the drafts.
        rho: Their scores [B].
        rejected: Which went to the teacher [B].
        replaced: Which of those came back better [B].
    """

    x: Tensor
    rho: Tensor
    rejected: Tensor
    replaced: Tensor


def regenerate(z: Tensor) -> Start:
    """The strategy that draws a picture anew from its own noise of ``z`` [B, ...]."""
    return lambda _drafts, rows: z[rows]


def refine(sigma: float, eps: Tensor, noising: Callable[[Tensor, float, Tensor], Tensor]) -> Start:
    """The strategy that takes a draft back to ``sigma`` (``schedules.rollback_sigma``) with its own noise of ``eps`` [B, ...].

    Args:
        noising: How pictures, a noise level and noise mix in this kind of model: x + sigma eps, or (1 - sigma) x + sigma eps.
    """
    return lambda drafts, rows: noising(drafts, sigma, eps[rows])


def is_better(draft: Any, improved: Any, margin: float = 0.0) -> Any:
    """Whether the teacher's picture replaces the draft: it scores more than ``margin`` above it. Numbers, or tensors of them.

    A picture whose score is NaN never replaces another, and is replaced by any that has a score.
    """
    return (improved > draft + margin) | ((draft != draft) & (improved == improved))


def adaptive_collaboration(
    student: Callable[[Tensor], Tensor],
    oracle: Callable[[Tensor, Tensor], Tensor],
    teacher: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    tau: float | Tensor,
    strategy: Start,
    margin: float = 0.0,
) -> Collaboration:
    """Algorithm 1 of arXiv 2312.10835, for a batch.

    Args:
        student: S, from noise [B, ...] to drafts [B, ...].
        oracle: E, from pictures [R, ...] and their places in the batch [R] to scores [R]; a NaN is rejected.
        teacher: T, from what ``strategy`` gives [R, ...] and the places [R] to pictures [R, ...]. Not called where all pass.
        z: Noise [B, ...].
        tau: The cut-off threshold, one or one a picture [B]; a draft that reaches it passes (line 4).
        strategy: ``regenerate`` or ``refine``.
        margin: By how much the teacher's picture must score above the draft; -inf takes every one that has a score, as the paper
            takes all.
    """
    everyone = arange(len(z), device=z.device)
    drafts = student(z)
    rho = oracle(drafts, everyone).to(z.device)
    rejected = ~(rho >= tau)
    rows = everyone[rejected]
    x, scores, replaced = drafts.clone(), rho.clone(), rejected.clone()
    if len(rows):
        improved = teacher(strategy(drafts[rows], rows), rows)
        improved_rho = oracle(improved, rows).to(rho)
        better = is_better(rho[rows], improved_rho, margin)
        x[rows[better]], scores[rows[better]] = improved[better], improved_rho[better]
        replaced[rows] = better
    return Collaboration(x, scores, rejected, replaced)
