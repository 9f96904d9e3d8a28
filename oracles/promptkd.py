"""The critic that PromptKD makes (arXiv 2403.02781): a small prompted picture tower that knows the words of one domain.

It travels as one safetensors file: prompt tokens, projector, class names, the teacher's text features, and blocks of the
picture tower where some learned. The small CLIP that it was made from stays apart, as its owner has it; the file knows that
model's name and the hash of its picture tower.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import UnsafeCheckpoint, parse_texts, reading, save_safetensors_atomically
from ..networks.limits import refuse_hollow
from ..networks.prompted_clip import Projector, PromptedStudent, PromptTokens, fitted_projector
from ..weights.checkpoints import read_metadata, read_weights
from .base import Oracle
from .preprocess import resize_and_crop, round_half_even

KIND, TAUGHT = KINDS = ("promptkd-student", "promptkd-student-taught-tower")
"""What a critic's file says that it is; ``TAUGHT`` holds blocks of the tower, which versions before it would not put in."""
NO_TOKENS = "none"
MEASURES = ("probability", "logit", "cosine", "log-odds")


class CriticNetwork(nn.Module):
    """The student beside the text features [C, D] that it is compared with."""

    text_features: Tensor

    def __init__(self, student: PromptedStudent, text_features: Tensor) -> None:
        super().__init__()
        self.student = student.train(False).requires_grad_(False)
        self.register_buffer("text_features", text_features.detach().float())

    def residents(self) -> list[nn.Module]:
        """What is loaded on a device: the student, which critics of other words share. The words go where they are needed."""
        return [self.student]

    def features(self, images: Tensor) -> Tensor:
        """Unit features [B, D] of pictures [B, H, W, 3] in 0..1 of any size, prepared by open_clip's evaluation transform."""
        features: Tensor = self.student(resize_and_crop(images, self.student.picture_size, round_half_even))
        return features

    def logits(self, images: Tensor) -> Tensor:
        """exp(logit_scale) cos [B, C]."""
        features = self.features(images)
        return self.student.logits(features, self.text_features.to(features.device))


@dataclass(frozen=True)
class Critic:
    """A distilled student with its words.

    Attributes:
        name: For people.
        classes: The names of the classes, in the order of the text features.
        texts: What was encoded for them: a template with ``{}``, or the words that learned tokens began as.
        base: The name of the small CLIP.
        base_hash: Of its picture tower's weights, see ``tower_hash``.
    """

    name: str
    network: CriticNetwork
    classes: tuple[str, ...]
    texts: tuple[str, ...]
    base: str
    base_hash: str

    def with_classes(self, classes: Sequence[str], text_features: Tensor) -> Critic:
        """The same student with other words: ``text_features`` [C, D] from the teacher that it was distilled from.

        Raises:
            ValueError: The features don't fit the names or the student's space.
        """
        _check_words(classes, text_features, self.network.text_features.shape[1])
        text = text_features.to(self.network.text_features)
        return replace(self, network=CriticNetwork(self.network.student, text), classes=tuple(classes))

    @torch.no_grad()
    def probabilities(self, images: Tensor, at_once: int = 32) -> Tensor:
        """Class probabilities [B, C], float32 on the CPU, of pictures [B, H, W, 3] in 0..1; no picture looks at another."""
        device = next(self.network.parameters()).device
        if not len(images):
            return torch.zeros(0, len(self.classes))
        return torch.cat([self.network.logits(part.to(device)).softmax(dim=1).cpu() for part in images.split(at_once)])

    def find_class(self, text: str) -> int:
        """The class that ``text`` speaks of: the longest name that occurs in it as whole words.

        Raises:
            ValueError: None does.
        """
        return find_class(text, self.classes, self.name)


def find_class(text: str, classes: Sequence[str], who: str = "the critic") -> int:
    """The class that ``text`` speaks of: the longest name that occurs in it as whole words.

    Raises:
        ValueError: None does of those that ``who`` knows.
    """
    words = f" {plain(text)} "
    named = [i for i, name in enumerate(classes) if f" {plain(name)} " in words]
    if not named:
        some = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
        raise ValueError(f"'{text}' names none of the {len(classes)} classes that {who} knows ({some}).")
    return max(named, key=lambda i: (len(plain(classes[i])), -i))


def plain(text: str) -> str:
    """``text`` in lower case, its words separated by single spaces: for finding names in prompts."""
    return " ".join(re.findall(r"\w+", text.lower().replace("_", " ")))


def _check_words(classes: Sequence[str], text_features: Tensor, width: int) -> None:
    if not classes or len(set(classes)) != len(classes):
        raise ValueError("Class names are needed, each once.")
    if text_features.ndim != 2 or text_features.shape != (len(classes), width):
        raise ValueError(
            f"There must be one row of {width} text features for each of the {len(classes)} classes; they are "
            f"{list(text_features.shape)}, so they come from another teacher or other names."
        )


# ---------------------------------------------------------------------------------------------------------- files


def tower_hash(visual: nn.Module) -> str:
    """SHA-256 of a picture tower's weights in float16, in which OpenAI publishes them; learned tokens don't count."""
    digest = hashlib.sha256()
    for key, value in sorted(visual.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_critic(critic: Critic, path: str | os.PathLike[str], about: dict[str, str] | None = None) -> None:
    """Write a critic, atomically; ``about`` is added to the metadata. Blocks that learned are in float16, as OpenAI's CLIPs are.

    Raises:
        OSError: The file can't be written.
    """
    student = critic.network.student
    blocks = student.tokens.blocks if student.tokens.count else ()
    tensors = {f"tokens.{i}": tokens.detach() for i, tokens in enumerate(blocks)}
    tensors |= {f"projector.{key}": value for key, value in student.projector.state_dict().items()}
    tensors |= {"text_features": critic.network.text_features, "logit_scale": student.logit_scale}
    tower = {f"tower.{name}": value.detach().half() for name, value in student.tower().items()}
    tensors |= tower
    metadata = {
        "apprentice": TAUGHT if tower else KIND, "version": "1", "classes": json.dumps(critic.classes),
        "texts": json.dumps(critic.texts), "base": critic.base, "base_sha256": critic.base_hash, **(about or {}),
        **({} if blocks else {"tokens": NO_TOKENS}),
    }  # fmt: skip
    save_safetensors_atomically({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata)


def base_of(path: str | os.PathLike[str]) -> str:
    """The name of the small CLIP that a critic's file was made from.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't a critic's.
    """
    with reading(Path(path).name, "choose another file"):
        return _about(Path(path))["base"]


def load_critic(path: str | os.PathLike[str], clip: Any) -> Critic:
    """The critic in a file, on the small CLIP that it was made from.

    Args:
        clip: An open_clip model; it is hooked, so it belongs to the critic from now on.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't a critic's, or a part is missing or doesn't fit.
        ValueError: ``clip`` is another model than the critic was made from.
    """
    file = Path(path)
    with reading(file.name, "make it again"):
        return _load(file, clip)


def _load(file: Path, clip: Any) -> Critic:
    about, tensors = _about(file), read_weights(file)
    refuse_hollow(tensors, file.name)
    picture_tower = tower_hash(clip.visual)
    if picture_tower != about["base_sha256"]:
        raise ValueError(
            f"{file.name} was made from '{about['base']}' (picture tower {about['base_sha256'][:8]}), and this is another model "
            f"({picture_tower[:8]}); choose the CLIP that it was made from."
        )
    width = int(clip.visual.conv1.out_channels) if about.get("tokens") == NO_TOKENS else 0
    tokens, projector, text, scale = _parts(tensors, file.name, width)
    classes, texts = (parse_texts(about[key], f"The metadata {key} of {file.name}") for key in ("classes", "texts"))
    _check_words(classes, text, projector.conv1[3].out_channels)  # type: ignore[arg-type]
    taught = {key.removeprefix("tower."): value for key, value in tensors.items() if key.startswith("tower.")}
    _put_in(clip.visual, taught, file.name)
    student = PromptedStudent(clip.visual, tokens, projector, scale, tuple(taught))
    return Critic(file.stem, CriticNetwork(student, text), classes, texts, about["base"], picture_tower)


@torch.no_grad()
def _put_in(visual: Any, taught: dict[str, Tensor], name: str) -> None:
    """The blocks that learned, in the tower's place.

    Raises:
        UnsafeCheckpoint: One is none of the tower's, or of another shape.
    """
    own = dict(visual.named_parameters())
    if any(key not in own or own[key].shape != value.shape for key, value in taught.items()):
        raise UnsafeCheckpoint(f"{name} holds blocks that don't fit the picture tower it was made from: make it again.")
    for key, value in taught.items():
        own[key].copy_(value)


def _about(file: Path) -> dict[str, str]:
    metadata = read_metadata(file)
    needed = {"classes", "texts", "base", "base_sha256"}
    if metadata.get("apprentice") not in KINDS or not needed <= metadata.keys():
        raise UnsafeCheckpoint(f"{file.name} is not a critic made by PromptKD Distill; choose another file.")
    return metadata


def _parts(tensors: dict[str, Tensor], name: str, bare: int = 0) -> tuple[PromptTokens, Projector, Tensor, Tensor]:
    """Tokens, projector, text features and logit scale of a critic's file; no tokens, ``bare`` wide, where that is given.

    Raises:
        UnsafeCheckpoint: A part is missing, or doesn't fit the others.
    """
    depth = sum(key.startswith("tokens.") for key in tensors)
    try:
        tokens = PromptTokens([torch.zeros(0, bare)] if bare else [tensors[f"tokens.{i}"].float() for i in range(depth)])
        projector = fitted_projector({k.removeprefix("projector."): v for k, v in tensors.items() if k.startswith("projector.")})
        return tokens, projector, tensors["text_features"].float(), tensors["logit_scale"].float()
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise UnsafeCheckpoint(f"{name} lacks a part of a critic, or a part doesn't fit the others: make it again.") from error


# --------------------------------------------------------------------------------------------------------- oracle


class PromptKDOracle(Oracle):
    """A critic as a judge.

    Args:
        measure: ``probability`` of a class among all that the critic knows; its ``logit``; ``cosine`` to the prompt itself,
            encoded by ``encode``; or ``log-odds``, which order pictures as the probability does and tell apart what it calls 1.
        class_name: The class that is judged; without it, the one that each prompt names.
        encode: Texts to unit features [N, D] by the teacher's text tower; for ``cosine``.

    Raises:
        ValueError: Unknown measure or class, or a cosine without the teacher's text tower.
    """

    differentiable = True
    network: CriticNetwork

    def __init__(
        self,
        critic: Critic,
        measure: str = "probability",
        class_name: str = "",
        encode: Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        if measure not in MEASURES:
            raise ValueError(f"There is no measure '{measure}'; choose one of: {', '.join(MEASURES)}.")
        if measure == "cosine" and encode is None:
            raise ValueError(
                "A cosine to free prompts needs the teacher's text tower; give the teacher, or choose 'probability'."
            )
        self.critic, self.measure, self.encode = critic, measure, encode
        self.network = critic.network
        self.chosen = critic.find_class(class_name) if class_name else None
        judged = critic.classes[self.chosen] if self.chosen is not None else "the prompt"
        self.name = f"{critic.name} ({measure} of {judged})"
        # A probability is one whichever class it is of; logits and cosines have another level for every text.
        self.comparable_across_prompts = measure in ("probability", "log-odds") or self.chosen is not None
        self.reads_prompts = self.chosen is None

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``."""
        if self.measure == "cosine" and self.encode is not None:
            texts = list(dict.fromkeys(prompts))
            features = self.network.features(images)
            text = self.encode(texts).to(features)[[texts.index(p) for p in prompts]]
            return (features * text).sum(-1)
        logits = self.network.logits(images)
        classes = [self.chosen if self.chosen is not None else self.critic.find_class(p) for p in prompts]
        labels = torch.tensor(classes, device=logits.device)
        if self.measure == "log-odds":
            return log_odds(logits, labels)
        values = logits.softmax(dim=1) if self.measure == "probability" else logits
        return values.gather(1, labels[:, None])[:, 0]


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """ln(p / (1 - p)) [B] of each picture's own class: in the order of its probability p, and not squeezed where p nears 1.

    Args:
        logits: [B, C].
        labels: Classes [B].
    """
    own = logits.gather(1, labels[:, None])
    rest = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
    return own[:, 0] - rest
