"""What travels with a LATENT, and on a MODEL, from one of our nodes to the next."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .rows import Latent

INFO = "apprentice"  # key in a LATENT for what later nodes need to know about the drafts
CARD = "apprentice_card"  # attachment of a MODEL: how it was made, and with which preset it draws


@dataclass(frozen=True)
class Info:
    """What later nodes need to know about a batch of latents that Apprentice drew; travels in the LATENT.

    Attributes:
        nfe: Network evaluations spent on each picture by the node that made the batch.
        seed: The seed that, with the picture's place, names its noise.
        source: The latents that the drafts were drawn over [B, C, H, W].
        denoise: Part of the way that was drawn.
        family: The latent family.
        note: For people.
        student: Fingerprint of the student that drew it; empty where the teacher did.
        schedule: The student's noise levels and guidance in words; likewise.
        teacher: Fingerprint of the teacher that improved it; empty where none did.
        mark: ``mark_of`` the samples that all this is true of.
        plain_noise: Whether each was drawn from noise alone, which seed and place name as ComfyUI's own nodes do.
    """

    nfe: tuple[float, ...]
    seed: int
    source: Tensor
    denoise: float
    family: str
    note: str = ""
    student: str = ""
    schedule: str = ""
    teacher: str = ""
    mark: str = ""
    plain_noise: bool = False


def mark_of(samples: Tensor) -> str:
    """Sixteen hex digits that change with every value and the shape of ``samples``."""
    values: Any = samples.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = hashlib.blake2b(repr(tuple(samples.shape)).encode(), digest_size=8)
    digest.update(values)
    return digest.hexdigest()


def with_info(latent: Latent, samples: Tensor, info: Info) -> Latent:
    """``latent`` with new ``samples``, and what is known of them."""
    return {**latent, "samples": samples, INFO: replace(info, mark=mark_of(samples))}


def info_of(latent: Latent) -> Info | None:
    """What is known of ``latent``, unless a node in between has changed it: upscaled, flipped, cropped, composited, repeated."""
    info = latent.get(INFO)
    return info if isinstance(info, Info) and info.mark == mark_of(latent["samples"]) else None


def family_of(latent: Latent) -> str:
    """The latent family of ``latent``, "" where nobody knows. Alone of what travels it outlives a change that keeps channels."""
    info = latent.get(INFO)
    return info.family if isinstance(info, Info) and info.source.shape[1] == latent["samples"].shape[1] else ""


def join_info(infos: list[Info | None], total: int) -> Info | None:
    """The infos of a list of batches of drafts, as of one; None unless each has one, and they are of ``total`` pictures.

    Raises:
        ValueError: Students or schedules differ.
    """
    there = [info for info in infos if info is not None]
    if not there or len(there) != len(infos) or sum(len(info.nfe) for info in there) != total:
        return None
    if len({(info.student, info.schedule) for info in there}) > 1:
        raise ValueError("The drafts in the list come from different students or schedules; judge those of one together.")
    return replace(there[0], nfe=tuple(cost for info in there for cost in info.nfe))
