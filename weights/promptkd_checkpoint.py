"""PromptKD's and PromptSRC's published checkpoints (zhengli97/PromptKD, muzairkhattak/PromptSRC): which part is what."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..files import UnsafeCheckpoint, read_safetensors, refuse_impostors
from ..networks.limits import refuse_hollow
from ..networks.prompted_clip import Projector, PromptTokens, fitted_projector
from .torch_archive import read_checkpoint

TEACHER, STUDENT = "teacher", "student"
SUFFIX = ".pth.tar"
"""How the authors name their files; Dassl puts an epoch after it ("model.pth.tar-20")."""

_PROJECTOR = "VPT_image_trans."
_FIRST = {"image": "image_encoder.VPT", "text": "prompt_learner.ctx"}
_LATER = re.compile(r"^(image|text)_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow$")


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A teacher's or a student's tensors under the authors' names."""

    kind: Literal["teacher", "student"]
    tensors: dict[str, Tensor]
    name: str

    def tokens(self, tower: Literal["image", "text"]) -> PromptTokens | None:
        """The learned tokens of a tower, block by block, in float32; None where it has none.

        Raises:
            UnsafeCheckpoint: A block's are missing or of another shape: they would be random.
        """
        blocks = {int(m[2]): value for key, value in self.tensors.items() if (m := _LATER.match(key)) and m[1] == tower}
        if (first := self.tensors.get(_FIRST[tower])) is not None:
            blocks[0] = first
        if not blocks:
            return None
        missing = next(i for i in range(len(blocks) + 1) if i not in blocks)
        if missing < len(blocks):
            raise UnsafeCheckpoint(f"{self.name} lacks the prompt tokens of the {tower} tower's block {missing}: fetch it again.")
        try:
            return PromptTokens([blocks[i].float() for i in range(len(blocks))])
        except ValueError as error:
            raise UnsafeCheckpoint(f"{self.name} has prompt tokens of the {tower} tower that differ in shape.") from error

    def projector(self) -> Projector:
        """The student's projector.

        Raises:
            UnsafeCheckpoint: A part is missing or doesn't fit the others.
        """
        weights = {k.removeprefix(_PROJECTOR): v.float() for k, v in self.tensors.items() if k.startswith(_PROJECTOR)}
        try:
            return fitted_projector(weights)
        except (KeyError, ValueError, RuntimeError) as error:
            raise UnsafeCheckpoint(f"{self.name} lacks a part of the student's projector: fetch it again.") from error

    def tower(self, tower: Literal["image", "text"] = "image") -> dict[str, Tensor]:
        """The frozen tower beside the tokens, under open_clip's names (``visual.*`` for pictures); empty where it is left out."""
        prefix, ours = f"{tower}_encoder.", "visual." if tower == "image" else ""
        kept = {k: v for k, v in self.tensors.items() if k.startswith(prefix) and "VPT" not in k}
        return {ours + key.removeprefix(prefix): value for key, value in kept.items()}


def is_official_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file is named as Dassl names its checkpoints."""
    return SUFFIX in Path(path).name


def read_official(path: str | os.PathLike[str]) -> OfficialCheckpoint:
    """A teacher or a student as its authors save it (``.pth.tar``), or as ``apprentice convert`` wrote it (``.safetensors``).

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It can't be read as data, or is neither.
    """
    file = Path(path)
    refuse_impostors(file)
    tensors, _facts = read_safetensors(file, "convert it again") if file.suffix == ".safetensors" else read_checkpoint(file)
    refuse_hollow(tensors, file.name)
    return OfficialCheckpoint(kind_of(tensors, file.name), tensors, file.name)


def kind_of(tensors: Mapping[str, Tensor], name: str) -> Literal["teacher", "student"]:
    """Whether tensors are a teacher's or a student's.

    Raises:
        UnsafeCheckpoint: They are neither's.
    """
    if any(key.startswith(_PROJECTOR) for key in tensors):
        return "student"
    if _FIRST["text"] in tensors or _FIRST["image"] in tensors:
        return "teacher"
    raise UnsafeCheckpoint(f"{name} is neither a PromptKD student nor a teacher with learned prompts; choose another file.")
