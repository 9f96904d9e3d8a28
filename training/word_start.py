"""A student that begins as the plain small CLIP, instead of with a projector at random: in the words of both CLIPs.

Both read the same class names: the large CLIP as unit features t_c [D], the small one as s_c [d]. Pictures are compared with both
side by side, [t_c, s_c] / sqrt 2. The projector begins by giving the small tower's own features x for the second half and nothing
for the first, so that the cosines are x . s_c / sqrt 2; a scale of sqrt 2 more makes them the small CLIP's very logits. What it
learns then leans on either. (No linear map from x to t_c alone begins so well: there may be more names than features.) There are
no prompt tokens, which at random change what the tower sees.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ..networks.prompted_clip import PromptedStudent

KEPT = 5.0  # spreads of a feature that the projector's ReLU lets pass below its mean


def side_by_side(large: Tensor, small: Tensor) -> Tensor:
    """Unit features [C, D + d] of class names, of the large CLIP's [C, D] and the small one's [C, d], unit both."""
    return torch.cat([large, small.to(large)], dim=1) / 2**0.5


@torch.no_grad()
def begin_as_the_small_clip(student: PromptedStudent, features: Tensor, large: int) -> None:
    """Let ``student`` say of pictures what its CLIP says, to ReLU's and batch norm's losses in training.

    Args:
        student: Its projector is of ``large`` + d features, and at random.
        features: The small tower's [N, d] of some pictures, two or more: for the batch norm's mean and spread.
        large: D, the large CLIP's features, which begin at nothing; what leads to them stays at random up to the last layer.
    """
    first, norm, _relu, last = cast(tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d], tuple(student.projector.conv1))
    assert first.bias is not None and last.bias is not None and norm.running_mean is not None and norm.running_var is not None
    length, own = features.norm(dim=1).mean(), torch.eye(features.shape[1]).to(features)
    first.weight[large:, :, 0, 0] = own / length  # of length 1, as the random part's output is about
    first.bias[large:] = 0
    inside = features @ first.weight[:, :, 0, 0].T + first.bias
    mean, spread = inside.mean(0), inside.std(0, correction=0).clamp(min=1e-3)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_((spread.square() - norm.eps).clamp(min=0))
    norm.weight[large:], norm.bias[large:] = spread[large:], KEPT * spread[large:]
    last.weight.zero_()
    last.bias.zero_()
    last.weight[large:, large:, 0, 0] = own
    last.bias[large:] = (mean - KEPT * spread)[large:]
    student.get_buffer("logit_scale").add_(0.5 * math.log(2))
