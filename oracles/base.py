"""What every oracle is: a judge that gives each picture a score."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Oracle(ABC):
    """A judge of pictures. Subclasses say how; callers put ``network`` on a device (ComfyUI's memory management).

    Attributes:
        name: For people.
        network: Everything that holds weights.
        differentiable: Whether ``reward`` passes gradients to the pictures.
        comparable_across_prompts: Whether one threshold means the same for every prompt.
        reads_prompts: Whether scores depend on the prompt.
        has_features: Whether ``features`` shows what it sees of a picture.
    """

    name: str
    network: nn.Module
    differentiable: bool = False
    comparable_across_prompts: bool = True
    reads_prompts: bool = True
    has_features: bool = False
    batch: int = 32

    @abstractmethod
    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of ``images`` [B, H, W, 3] in 0..1 on the network's device, with gradients where differentiable.

        ``prompts`` has one entry a picture.
        """

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B], float32 on the CPU, of ``images`` [B, H, W, 3] in 0..1.

        Runs in batches of at most ``batch`` pictures, so that memory stays bounded; a picture's score doesn't depend on
        the others. A picture that holds NaN scores NaN.

        Raises:
            ValueError: The number of prompts is neither 1 nor the number of pictures.
        """
        prompts = one_prompt_each(prompts, len(images))
        device = next(self.network.parameters()).device
        scores = [torch.zeros(0)]
        with torch.no_grad():
            for start, part in _batches(images, self.batch):
                scores.append(self.reward(part.to(device), prompts[start : start + len(part)]).float().cpu())
        result = torch.cat(scores)
        broken = ~images.flatten(1).isfinite().all(dim=1).cpu() if len(images) else torch.zeros(0, dtype=torch.bool)
        return result.masked_fill(broken, float("nan"))

    def features(self, images: Tensor) -> Tensor:
        """What it sees of pictures [B, H, W, 3] in 0..1, whatever they were asked to show: [B, D], for a taste to learn on.

        Raises:
            ValueError: It doesn't show it; see ``has_features``.
        """
        raise ValueError(f"{self.name} shows no features of pictures; take a CLIP, PickScore, HPSv2 or an aesthetic predictor.")

    def doubts(self, pictures: Sequence[Tensor]) -> str:
        """What to say of ``pictures`` ([H, W, 3] each, in 0..1) of a kind that it knows nothing of; nothing where all is well."""
        return ""

    def unit(self) -> tuple[str, str]:
        """Fingerprint and name of the oracle whose unit its scores have: its own, but for those that stand in for another."""
        return self.fingerprint(), self.name

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in: float32, or float16 where a GPU prefers it."""
        return next(self.network.parameters()).dtype

    def fingerprint(self) -> str:
        """Sixteen hex digits that change whenever the scores could: name and all weights.

        Worked out once: the weights are frozen, and the same in float16 as before.
        """
        fingerprint: str | None = self.__dict__.get("_fingerprint")
        if fingerprint is None:
            digest = hashlib.sha256(f"{type(self).__name__}|{self.name}".encode())
            for key, value in sorted(self.network.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
            fingerprint = self.__dict__["_fingerprint"] = digest.hexdigest()[:16]
        return fingerprint


class TwoTowerOracle(Oracle):
    """An oracle that compares a picture's features with a prompt's: each prompt is encoded once and remembered.

    Text features hold no gradient: networks are frozen, and a prompt is not what is learned.
    """

    _remembered = 1024
    has_features = True

    def features(self, images: Tensor) -> Tensor:
        """See ``Oracle.features``."""
        return self.image_features(images)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features [B, D], float32, of ``images`` [B, H, W, 3] in 0..1, with gradients."""
        raise NotImplementedError

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Unit features [N, D], float32, of different prompts, on the network's device."""
        raise NotImplementedError

    def text_features(self, prompts: list[str]) -> Tensor:
        """Unit features [B, D] of ``prompts``, from memory where they were encoded before."""
        memory: dict[str, Tensor] = self.__dict__.setdefault("_texts", {})
        new = [p for p in dict.fromkeys(prompts) if p not in memory]
        if len(memory) + len(new) > self._remembered:
            memory.clear()
            new = list(dict.fromkeys(prompts))
        with torch.no_grad():
            for start in range(0, len(new), self.batch):
                part = new[start : start + self.batch]
                memory.update(zip(part, self.encode_prompts(part).float().cpu(), strict=True))
        device = next(self.network.parameters()).device
        return torch.stack([memory[p] for p in prompts]).to(device)

    def cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Cosines [B] between pictures and prompts."""
        return (self.image_features(images) * self.text_features(prompts)).sum(-1)


def empty_prompts(oracle: Oracle, prompts: list[str]) -> str:
    """What to say of prompts that ask nothing of an oracle that reads them; nothing where all is well."""
    count = sum(not prompt.strip() for prompt in prompts)
    if not count or not oracle.reads_prompts:
        return ""
    which = "The prompt is" if count == len(prompts) else f"{count} of {len(prompts)} prompts are"
    return f"{which} empty: {oracle.name} scores how well a picture shows its prompt, so give it the text that was drawn."


def remarks(oracle: Oracle, pictures: Sequence[Tensor], prompts: list[str]) -> str:
    """What to say to whoever asks ``oracle`` about these pictures [H, W, 3] and prompts; nothing where all is well."""
    return " ".join(filter(None, (empty_prompts(oracle, prompts), oracle.doubts(pictures))))


def one_prompt_each(prompts: list[str], pictures: int) -> list[str]:
    """``prompts`` with one entry a picture; a single prompt holds for all.

    Raises:
        ValueError: There are several prompts, but not one a picture.
    """
    if len(prompts) == 1:
        return prompts * pictures
    if len(prompts) != pictures:
        raise ValueError(
            f"There are {len(prompts)} prompts for {pictures} pictures; give one prompt for all, or one for each picture."
        )
    return prompts


def _batches(images: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(images), size):
        yield start, images[start : start + size]
