"""Files: none is ever left half-written (write beside the target, fsync, rename), no failed download passes for weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file


class UnsafeCheckpoint(ValueError):  # noqa: N818 - it names what the file is
    """A file that can't be read as plain tensors; the message is one sentence for people."""


def refuse_impostors(file: Path) -> None:
    """Refuse what downloads leave behind when they go wrong.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It is empty, a web page, or a Git LFS pointer.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    with file.open("rb") as opened:
        start = opened.read(512).lstrip().lower()
    again = "delete it and fetch the weights again (apprentice models pull)"
    if not start:
        raise UnsafeCheckpoint(f"{file.name} is empty: {again}.")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UnsafeCheckpoint(f"{file.name} is a web page, probably an error page saved under this name: {again}.")
    if start.startswith(b"version https://git-lfs"):
        raise UnsafeCheckpoint(f"{file.name} is a Git LFS pointer, which names the weights without holding them: {again}.")


NAME_BYTES = 255
"""The longest name of a file or folder that file systems take."""


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then fsync it and rename it over ``path``."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    if len(os.fsencode(temporary.name)) > NAME_BYTES:  # a name that fits must not fail by its temporary one
        temporary = target.with_name(f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what everybody's files have here; some writers make theirs private
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def save_safetensors_atomically(
    tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Save ``tensors`` as safetensors, atomically. Tensors are made contiguous, as the format needs."""
    contiguous = {key: value.detach().contiguous() for key, value in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))
