"""Frechet distances, and what those of the tiny world are measured to; not comparable with published FIDs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..weights import read

Array = np.ndarray[Any, np.dtype[Any]]


def frechet(a: Array, mean: Array, covariance: Array) -> float:
    """|mu_a - mu|^2 + tr(S_a + S - 2 (S_a S)^(1/2)) between features [N, D] and a Gaussian (arXiv 1706.08500, eq. 6)."""
    mu, sigma = a.mean(0), np.cov(a, rowvar=False)
    # The trace of the root is the sum of the roots of the eigenvalues of S^(1/2) S_a S^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    crossed = np.sqrt(np.linalg.eigvalsh(root @ sigma @ root).clip(min=0)).sum()
    return float(((mu - mean) ** 2).sum() + np.trace(sigma) + np.trace(covariance) - 2 * crossed)


def reference() -> tuple[Array, Array]:
    """Mean and covariance of the judge's features over the real pictures."""
    tensors, _ = read("reference")
    return tensors["mean"].double().numpy(), tensors["covariance"].double().numpy()
