"""How much of a look pictures have, in the features of the judge, which saw no network of this benchmark.

The look is a direction: Fisher's linear discriminant between pictures in the look (the vendor's icons, and what the slow model
draws with the style LoRA) and plain ones (the slow model's without it, and the plain student's, since speed is no look), all of
subjects that teach. What is measured are other subjects. On the scale, 0 is what the slow model draws of the same prompts
without the LoRA, and 1 what it draws with it: the share of the look's move that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .figures import Array

SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity, since features are many and alike


def fisher(styled: Array, plain: Array) -> Array:
    """The unit vector along S^-1 (mean styled - mean plain), S the mean covariance within both, shrunk.

    Args:
        styled: Features [N, D].
        plain: [M, D].
    """
    within = (np.cov(styled.T) + np.cov(plain.T)) / 2
    target = np.eye(len(within)) * np.trace(within) / len(within)
    direction = np.linalg.solve((1 - SHRINKAGE) * within + SHRINKAGE * target, styled.mean(0) - plain.mean(0))
    return np.asarray(direction / np.linalg.norm(direction))


@dataclass(frozen=True)
class Look:
    """A direction, and what the slow model draws of the measured prompts [prompts, pictures, D] along it."""

    direction: Array
    plain: Array
    slow: Array

    def kept(self, features: Array, index: Array | slice = slice(None)) -> float:
        """The share of the look's move that pictures [prompts, pictures, D] of the same prompts have; of those in ``index``."""
        means = [float((f[index] @ self.direction).mean()) for f in (features, self.plain, self.slow)]
        return (means[0] - means[1]) / (means[2] - means[1])

    def told_apart(self) -> float:
        """The share of the slow model's measured pictures that lie on the right side of the middle between the means."""
        styled, plain = (f.reshape(-1, f.shape[-1]) @ self.direction for f in (self.slow, self.plain))
        middle = (styled.mean() + plain.mean()) / 2
        return float(((styled > middle).mean() + (plain < middle).mean()) / 2)
