"""Several oracles as one: a weighted mean of z-scores, or a vote; with their disagreement as uncertainty."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high, median_low

import torch
from torch import Tensor, nn

from .base import Oracle

WEIGHTED, VOTE = "weighted", "vote"
COMBINATIONS = (WEIGHTED, VOTE)


@dataclass(frozen=True)
class Member:
    """One oracle of an ensemble.

    Attributes:
        weight: Its say, above 0.
        mean, std: Of its scores on many drafts; a score's z is (score - mean) / std.
        median: Of the same; a vote is for the pictures that reach it.
    """

    oracle: Oracle
    weight: float
    mean: float
    std: float
    median: float

    @classmethod
    def calibrated(cls, oracle: Oracle, weight: float, calibration: Sequence[float]) -> Member:
        """A member whose scale is that of ``calibration``, the oracle's scores of many drafts; NaN doesn't count.

        Raises:
            ValueError: There are fewer than two different scores.
        """
        finite = [score for score in calibration if math.isfinite(score)]
        scores = torch.tensor(finite, dtype=torch.float64)
        if len(scores) < 2 or scores.std() == 0:
            raise ValueError(
                f"The calibration of {oracle.name} holds no two different scores, so its scale is unknown; calibrate with more "
                f"prompts."
            )
        low, high = median_low(finite), median_high(finite)
        return cls(oracle, weight, float(scores.mean()), float(scores.std()), low + (high - low) / 2)

    def z(self, scores: Tensor) -> Tensor:
        """How many deviations above the mean."""
        return (scores - self.mean) / self.std


class Members(nn.ModuleList):
    """Networks that several oracles share, each loaded as its owner's."""

    def residents(self) -> list[nn.Module]:
        """What is loaded one by one."""
        return list(self)


class Ensemble(Oracle):
    """What several oracles say together.

    ``weighted``: sum w z / sum w, with each member's z-score by its own calibration. ``vote``: the weighted share, 0 to 1, of the
    members whose score reaches the median of their calibration.

    Raises:
        ValueError: There are fewer than two members, a weight is not above 0, or the combination has another name.
    """

    def __init__(self, members: Sequence[Member], combination: str = WEIGHTED) -> None:
        if combination not in COMBINATIONS:
            raise ValueError(f"Oracles are combined by one of {', '.join(COMBINATIONS)}, not '{combination}'.")
        if len(members) < 2:
            raise ValueError("An ensemble needs two oracles or more; connect another one.")
        if any(m.weight <= 0 for m in members):
            raise ValueError("Every oracle in an ensemble needs a weight above 0; leave out the one that should not count.")
        self.members, self.combination = tuple(members), combination
        self.network = Members(m.oracle.network for m in members)
        self.batch = min(m.oracle.batch for m in members)
        self.differentiable = combination == WEIGHTED and all(m.oracle.differentiable for m in members)
        self.reads_prompts = any(m.oracle.reads_prompts for m in members)
        self.comparable_across_prompts = all(m.oracle.comparable_across_prompts for m in members)
        self.name = f"{combination} of " + ", ".join(f"{m.oracle.name} ({m.weight:g})" for m in members)

    def fingerprint(self) -> str:
        """See ``Oracle.fingerprint``; other weights, scales or another combination make another oracle."""
        parts = [(m.oracle.fingerprint(), m.weight, m.mean, m.std, m.median) for m in self.members]
        return hashlib.sha256(repr((self.combination, parts)).encode()).hexdigest()[:16]

    def doubts(self, pictures: Sequence[Tensor]) -> str:
        """See ``Oracle.doubts``; each member's."""
        return " ".join(dict.fromkeys(filter(None, (m.oracle.doubts(pictures) for m in self.members))))

    def member_scores(self, images: Tensor, prompts: list[str]) -> Tensor:
        """What each member says: [members, B]."""
        return torch.stack([m.oracle.reward(images, prompts).float() for m in self.members])

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``."""
        return self.combine(self.member_scores(images, prompts))

    def combine(self, scores: Tensor) -> Tensor:
        """The ensemble's scores [B] of the members' [members, B]; a NaN of any member makes NaN."""
        weights = scores.new_tensor([m.weight for m in self.members])[:, None]
        if self.combination == WEIGHTED:
            opinions = torch.stack([m.z(s) for m, s in zip(self.members, scores, strict=True)])
        else:
            votes = torch.stack([(s >= m.median).float() for m, s in zip(self.members, scores, strict=True)])
            opinions = torch.where(scores.isnan(), scores, votes)
        return (weights * opinions).sum(0) / weights.sum()

    def disagreement(self, scores: Tensor) -> Tensor:
        """The weighted standard deviation [B] of the members' z-scores: 0 where all say the same."""
        z = torch.stack([m.z(s) for m, s in zip(self.members, scores, strict=True)])
        weights = z.new_tensor([m.weight for m in self.members])[:, None] / sum(m.weight for m in self.members)
        mean = (weights * z).sum(0)
        return ((weights * (z - mean).square()).sum(0)).sqrt()

    def uncertainty(self, images: Tensor, prompts: list[str]) -> Tensor:
        """``disagreement`` [B], float32 on the CPU, of pictures [B, H, W, 3] in 0..1, in batches of bounded size."""
        device = next(self.network.parameters()).device
        disagreements = [torch.zeros(0)]
        with torch.no_grad():
            for start in range(0, len(images), self.batch):
                part = slice(start, start + self.batch)
                disagreements.append(self.disagreement(self.member_scores(images[part].to(device), prompts[part])).cpu())
        return torch.cat(disagreements)
