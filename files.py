"""Files: none is ever left half-written (write beside the target, fsync, rename), no failed download passes for weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


class UnreadableFile(ValueError):  # noqa: N818 - it names what the file is
    """A file of any kind that can't be read; the message is one sentence for people that names it.

    What it quotes from the file is made fit to print: one line, and no longer than anybody reads.
    """

    def __init__(self, sentence: str) -> None:
        line = "".join(letter if letter.isprintable() else "?" for letter in sentence)
        super().__init__(line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 100]}… {line[-98:]}")


_LONGEST_LINE = 500


UnsafeCheckpoint = UnreadableFile
"""What readers of weights call it."""

AGAIN = "delete it and fetch it again"


@contextmanager
def reading(name: str, remedy: str = AGAIN) -> Iterator[None]:
    """Whatever goes wrong within, while the file ``name`` is read, is told in one sentence that ends in ``remedy``.

    Not so for a file or a library that is missing, and for a machine out of memory: those say so themselves.

    Raises:
        UnreadableFile: Something did.
    """
    try:
        yield
    except (FileNotFoundError, ImportError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except UnreadableFile as error:
        if name in str(error):
            raise
        raise UnreadableFile(f"{name}: {error}") from error
    except OSError as error:
        raise UnreadableFile(f"{name} can't be read ({error.strerror or 'the system refused'}).") from error
    except Exception as error:  # damaged files fail in as many ways as there are libraries that read them
        told = str(error)
        if type(error) is ValueError and told.endswith("."):  # a sentence of our own
            raise UnreadableFile(told if name in told else f"{name}: {told}") from error
        raise UnreadableFile(f"{name} is damaged or another kind of file ({_why(error)}): {remedy}.") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how libraries in Rust fail
            raise
        raise UnreadableFile(f"{name} is damaged or another kind of file ({_why(error)}): {remedy}.") from error


def _why(error: BaseException) -> str:
    """The start of an error's first line, or what it is called, fit for a sentence."""
    told = "".join(letter if letter.isprintable() else " " for letter in str(error)[:200]).strip().rstrip(".")
    return told if told and not isinstance(error, KeyError) else f"{type(error).__name__} {told}".strip()


def parse_json(text: str | bytes, name: str, remedy: str = AGAIN) -> Any:
    """What JSON says; ``name`` tells where it stands.

    Raises:
        UnreadableFile: It isn't JSON, or is nested too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else f"it is no valid JSON ({_why(error)})"
        raise UnreadableFile(f"{name} is damaged: {why}; {remedy}.") from error


def parse_texts(text: str, name: str, remedy: str = AGAIN) -> tuple[str, ...]:
    """A JSON list of texts.

    Raises:
        UnreadableFile: It is something else.
    """
    found = parse_json(text, name, remedy)
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise UnreadableFile(f"{name} is no list of texts: {remedy}.")
    return tuple(found)


_LONGEST_JSON = 64 << 20


def read_json(file: Path, remedy: str = AGAIN) -> Any:
    """What a JSON file says.

    Raises:
        UnreadableFile: It can't be read, isn't JSON, is nested too deep, or is longer than any that people have.
        FileNotFoundError: There is no such file.
    """
    with reading(file.name, remedy):
        if file.stat().st_size > _LONGEST_JSON:
            raise UnreadableFile(f"{file.name} is too long ({file.stat().st_size / 1e6:.0f} MB): {remedy}.")
        return parse_json(file.read_bytes().removeprefix(b"\xef\xbb\xbf"), f"'{file.name}'", remedy)


_LONGEST_HEADER = 16 << 20  # of a safetensors file: it takes 20 times as much memory; Flux has 100 kB of it


def refuse_impostors(file: Path) -> None:
    """Refuse what downloads leave behind when they go wrong.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It is empty, a web page, a Git LFS pointer, or a safetensors file with a header beyond all measure.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    with file.open("rb") as opened:
        start = opened.read(512)
    header, start = int.from_bytes(start[:8], "little"), start.lstrip().lower()
    again = "delete it and fetch the weights again (apprentice models pull)"
    if not start:
        raise UnsafeCheckpoint(f"{file.name} is empty: {again}.")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UnsafeCheckpoint(f"{file.name} is a web page, probably an error page saved under this name: {again}.")
    if start.startswith(b"version https://git-lfs"):
        raise UnsafeCheckpoint(f"{file.name} is a Git LFS pointer, which names the weights without holding them: {again}.")
    if file.suffix == ".safetensors" and _LONGEST_HEADER < header <= file.stat().st_size:
        raise UnsafeCheckpoint(f"{file.name} has a header of {header / 1e6:.0f} MB, which no network needs: use another file.")


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
        write(temporary)
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
