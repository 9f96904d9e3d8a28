"""A student's projector that begins in the two CLIPs' common words, instead of at random.

Both CLIPs read the same class names: the small one as features s_c [d], the large one as t_c [D]. The linear map W [D, d] with
W' t_c = s_c makes a picture's cosines with t_c what the small CLIP says of it, up to its temperature: s_c . x = t_c . W x. With
fewer names than D such a map exists; with more it is the nearest one (ridge regression). The published projector holds a linear
map exactly, as long as no batch norm's output lies further below its mean than ``KEPT`` spreads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..networks.prompted_clip import Projector

KEPT = 5.0  # spreads of a channel that the ReLU lets pass below its mean
RIDGE = 0.01


def map_between_words(small: Tensor, large: Tensor, ridge: float = RIDGE) -> Tensor:
    """W [D, d], of unit spectral norm: the minimum of sum_c |W' t_c - s_c|^2 + ridge |W|^2.

    Args:
        small: The small CLIP's unit features of the names, s [C, d].
        large: The large CLIP's, t [C, D].
    """
    t, s = large.double(), small.double()
    gram = t.T @ t + ridge * torch.eye(t.shape[1], dtype=t.dtype, device=t.device)
    found = torch.linalg.solve(gram, t.T @ s)
    return (found / torch.linalg.matrix_norm(found, 2)).to(small)


@torch.no_grad()
def begin_linear(projector: Projector, linear: Tensor, features: Tensor) -> Projector:
    """Let ``projector`` compute ``linear`` [D, d] of the small tower's ``features`` [N, d], of two pictures or more.

    Its batch norm takes mean and spread from ``features``, so that a batch of like pictures comes out alike in training.
    """
    first, norm, _relu, last = projector.conv1
    inside = features.float() @ linear.T.float()
    mean, spread = inside.mean(0), inside.std(0, correction=0).clamp(min=1e-3 * float(inside.std()))
    first.weight.copy_(linear[:, :, None, None])
    first.bias.zero_()
    norm.running_mean.copy_(mean)
    norm.running_var.copy_((spread.square() - norm.eps).clamp(min=0))
    norm.weight.copy_(spread)
    norm.bias.copy_(KEPT * spread)
    last.weight.copy_(torch.eye(len(linear)).to(last.weight)[:, :, None, None])
    last.bias.copy_(mean - KEPT * spread)
    return projector
