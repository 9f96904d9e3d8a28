"""An artist's own taste: a linear head on another oracle's picture features, and a published judge's word beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import UnreadableFile, read_safetensors, save_safetensors_atomically
from .base import Oracle
from .ensemble import Members

KIND = "apprentice-taste"


@dataclass(frozen=True)
class Source:
    """Where a part of a taste comes from: an oracle's fingerprint, and its name for people."""

    fingerprint: str
    name: str

    @classmethod
    def of(cls, oracle: Oracle) -> Source:
        """That of ``oracle``."""
        return cls(oracle.fingerprint(), oracle.name)


@dataclass(frozen=True)
class TasteFile:
    """A taste as its file has it.

    Attributes:
        weight: [D] of the features.
        published: Weight of the published judge's score in standard deviations; 0 where it has no say.
        mean, std: Of those scores.
        threshold: The artist's own; NaN where there is none.
        features, judge: Whose features, and which published judge.
        about: For people.
    """

    weight: Tensor
    published: float
    mean: float
    std: float
    threshold: float
    features: Source
    judge: Source
    about: str = ""

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        numbers = torch.tensor([self.published, self.mean, self.std, self.threshold], dtype=torch.float64)
        metadata = {
            "kind": KIND, "features": self.features.fingerprint, "features_name": self.features.name,
            "judge": self.judge.fingerprint, "judge_name": self.judge.name, "about": self.about,
        }  # fmt: skip
        save_safetensors_atomically({"taste.weight": self.weight.float(), "taste.numbers": numbers}, path, metadata)

    @classmethod
    def load(cls, path: Path) -> TasteFile:
        """Read it.

        Raises:
            UnreadableFile: It is no taste, or damaged.
        """
        tensors, about = read_safetensors(path)
        weight, numbers = tensors.get("taste.weight"), tensors.get("taste.numbers")
        if about.get("kind") != KIND or weight is None or numbers is None:
            raise UnreadableFile(f"'{path.name}' is no taste; choose a file that Taste has saved.")
        fits = weight.ndim == 1 and numbers.shape == (4,)
        if not fits or not weight.isfinite().all() or not numbers[:3].isfinite().all() or numbers[2] <= 0:
            raise UnreadableFile(f"'{path.name}' is damaged: its numbers are none; fit the taste again.")
        published, mean, std, threshold = numbers.double().tolist()
        return cls(
            weight.float(), published, mean, std, threshold, Source(about.get("features", ""), about.get("features_name", "?")),
            Source(about.get("judge", ""), about.get("judge_name", "?")), about.get("about", ""),
        )  # fmt: skip


class TasteOracle(Oracle):
    """What ``training.taste`` learned: a w.phi(x) + b z(x), in logits: a difference of 1 is 73 to 27.

    Args:
        taste: What was learned.
        features: The oracle whose picture features it was learned on.
        judge: The published judge; may be ``features`` itself. Not needed where it has no say.

    Raises:
        ValueError: The oracles are others than it was learned on.
    """

    def __init__(self, taste: TasteFile, features: Oracle, judge: Oracle | None, name: str = "taste") -> None:
        _require(features, taste.features, "features_from")
        if not features.has_features:
            raise ValueError(f"{features.name} shows no features of pictures; connect a CLIP to features_from.")
        if taste.published and judge is not None:
            _require(judge, taste.judge, "oracle")
        elif taste.published:
            raise ValueError(f"This taste leans on {taste.judge.name} as well: connect it to oracle.")
        self.taste, self.features_of, self.name = taste, features, name
        self.judge = judge if taste.published else None
        self.head = nn.Linear(len(taste.weight), 1, bias=False)
        self.head.weight.data.copy_(taste.weight[None])
        self.head.requires_grad_(False)
        parts = [self.head, features.network] + ([self.judge.network] if self.judge and self.judge is not features else [])
        self.network = Members(parts)
        self.batch = min(oracle.batch for oracle in (features, self.judge) if oracle is not None)
        self.differentiable = features.differentiable and (self.judge is None or self.judge.differentiable)
        self.reads_prompts = self.judge is not None and self.judge.reads_prompts
        self.comparable_across_prompts = self.judge is None or self.judge.comparable_across_prompts

    def fingerprint(self) -> str:
        """See ``Oracle.fingerprint``."""
        judge = self.judge.fingerprint() if self.judge else ""
        numbers = (self.taste.published, self.taste.mean, self.taste.std, self.taste.weight.tolist())
        return hashlib.sha256(repr((self.features_of.fingerprint(), judge, numbers)).encode()).hexdigest()[:16]

    def doubts(self, pictures: Sequence[Tensor]) -> str:
        """See ``Oracle.doubts``."""
        return self.features_of.doubts(pictures)

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``."""
        seen = self.features_of.features(images).float()
        if seen.shape[1] != self.head.in_features:
            raise ValueError(
                f"This taste weighs {self.head.in_features} features of a picture, and {self.features_of.name} shows "
                f"{seen.shape[1]}: its file is damaged; fit the taste again."
            )
        score: Tensor = self.head(seen)[:, 0]
        if self.judge is None:
            return score
        z = (self.judge.reward(images, prompts).float() - self.taste.mean) / self.taste.std
        return score + self.taste.published * z


def _require(oracle: Oracle, source: Source, where: str) -> None:
    if oracle.fingerprint() != source.fingerprint:
        raise ValueError(f"This taste was learned on {source.name}, and {where} is {oracle.name}; connect {source.name} there.")
