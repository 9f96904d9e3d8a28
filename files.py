"""Files: none is ever left half-written (write beside the target, fsync, rename), no failed download passes for weights."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
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
        message = str(error)
        if type(error) is ValueError and message.endswith("."):  # a sentence of our own
            raise UnreadableFile(message if name in message else f"{name}: {message}") from error
        raise UnreadableFile(f"{name} is damaged or another kind of file ({_why(error)}): {remedy}.") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how libraries in Rust fail
            raise
        raise UnreadableFile(f"{name} is damaged or another kind of file ({_why(error)}): {remedy}.") from error


def _why(error: BaseException) -> str:
    """The start of an error's first line, or what it is called, fit for a sentence."""
    message = "".join(letter if letter.isprintable() else " " for letter in str(error)[:200]).strip().rstrip(".")
    return message if message and not isinstance(error, KeyError) else f"{type(error).__name__} {message}".strip()


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
    texts = parse_json(text, name, remedy)
    if not isinstance(texts, list) or not all(isinstance(item, str) for item in texts):
        raise UnreadableFile(f"{name} is no list of texts: {remedy}.")
    return tuple(texts)


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


_TORCHS = b"PK\x03\x04", b"\x80\x02"  # how PyTorch's checkpoints begin


@contextmanager
def opened_safetensors(file: Path, remedy: str = AGAIN) -> Iterator[Any]:
    """A safetensors file as ``safe_open`` opens it.

    Raises:
        UnsafeCheckpoint: It isn't one, or it is damaged.
    """
    with reading(file.name, remedy):
        try:
            with safe_open(file, framework="pt") as opened:
                yield opened
        except SafetensorError as error:
            with file.open("rb") as start:
                is_torchs = start.read(4).startswith(_TORCHS)
            what = "a PyTorch checkpoint, not safetensors" if is_torchs else "no safetensors file, or is cut short or damaged"
            remedy = "rename it to .pt and run apprentice convert on it" if is_torchs else remedy
            raise UnsafeCheckpoint(f"{file.name} is {what}: {remedy}.") from error


def read_safetensors(file: Path, remedy: str = AGAIN) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU and memory-mapped, and what it says about itself.

    Raises:
        UnsafeCheckpoint: It isn't one, or it is damaged.
    """
    with opened_safetensors(file, remedy) as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it isn't a mapping
        return tensors, dict(opened.metadata() or {})


NAME_BYTES = 255
"""The longest name of a file or folder that file systems take."""


_PART = re.compile(r"\..+\.(\d{1,10})\.part")  # .<what is written>.<thread>.<process>.part, before 0.5 without the thread
_FULL = re.compile(r"No space left|os error (28|112)|Disk quota|unexpected pos|PytorchStreamWriter failed")  # libraries' words


class DiskFull(OSError):  # noqa: N818 - it names what the disk is
    """There is no room for a file; the message is one sentence for people that says how much it needs."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.errno = errno.ENOSPC


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object], size: int = 0) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then fsync it and rename it over ``path``.

    The file lies in a folder of its own, since what ``write`` calls may have temporary files too (safetensors has).

    Args:
        size: Bytes that will be written, where that is known: then a disk too full is told before, and what a killed process
            left of the same target is deleted. (Not for pictures and notes: their folders may hold a hundred thousand names.)

    Raises:
        DiskFull: There is no room; ``path`` is as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(target)
    if size:
        sweep(target.parent, only=part.name.rsplit(".", 3)[0])
    require_space(target, size, f"'{target.name}' takes {human_size(size)}")
    temporary = part / "file"
    try:
        part.mkdir(exist_ok=True)
        (part / "mode").touch()
        mode = (part / "mode").stat().st_mode  # what everybody's files have here; some writers make theirs private
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except Exception as error:
        if not _ran_full(error):
            raise
        raise DiskFull(_no_room(target, f"'{target.name}' takes {_size_text(size, part)}")) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part_of(target: Path) -> Path:
    writer = f"{threading.get_ident()}.{os.getpid()}.part"
    part = target.with_name(f".{target.name}.{writer}")
    if len(os.fsencode(part.name)) > NAME_BYTES:  # a name that fits must not fail by its temporary one
        part = target.with_name(f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.{writer}")
    return part


def sweep(folder: Path, only: str = "", same_number: bool = False) -> None:
    """Delete what killed processes left half-written in ``folder``; another pack's files and live processes' are left alone.

    Args:
        only: How the names begin.
        same_number: Of this process's number too, which in a container is the killed one's: for who holds the folder alone.
    """
    with suppress(OSError):  # what can't be looked at or deleted stays
        for entry in folder.iterdir():
            part = _PART.fullmatch(entry.name) if entry.name.startswith(only) else None
            if part and ((same_number and int(part[1]) == os.getpid()) or not _alive(int(part[1]))):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        import psutil  # ComfyUI brings it
    except ImportError:
        return True
    return bool(psutil.pid_exists(process))


def require_space(target: Path, needed: int, what: str) -> None:
    """Look at the disk before it is written to.

    Args:
        what: Begins the sentence, and says how much is needed: "'a.safetensors' takes 2 GB".

    Raises:
        DiskFull: ``needed`` bytes are not free where ``target`` shall lie.
    """
    there = next(folder for folder in target.absolute().parents if folder.exists())
    if needed > shutil.disk_usage(there).free:
        raise DiskFull(_no_room(target, what))


def _no_room(target: Path, what: str) -> str:
    there = next(folder for folder in target.absolute().parents if folder.exists())
    free = human_size(shutil.disk_usage(there).free)
    return f"The disk is too full: {what}, and {free} are free where '{target.parent.name}' lies; make room and run it again."


def _size_text(size: int, part: Path) -> str:
    return human_size(size) if size else f"more than {human_size(sum(file.stat().st_size for file in part.iterdir()))}"


def _ran_full(error: BaseException | None) -> bool:
    """Whether this, or what it came of, is a disk without room; libraries have only words for it."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or _FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_space(folder: Path) -> int:
    """Bytes that are free where ``folder`` is, or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free


def human_size(size: int) -> str:
    """``size`` in bytes, for people: three digits and a decimal unit."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"


def bytes_of(state: Any) -> int:
    """Bytes of all tensors in nested containers: about what they take on the disk."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        state = list(state.values())
    return sum(map(bytes_of, state)) if isinstance(state, (list, tuple)) else 0


@contextmanager
def locked(file: Path, busy: str = "") -> Iterator[None]:
    """Hold the lock ``file`` against threads and processes; the system gives it back when its holder ends, killed or not.

    Args:
        busy: The sentence for people if somebody else holds it; without one that somebody is waited for.

    Raises:
        ValueError: Somebody else holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=0 if busy else -1, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(busy) from error
    try:
        yield
    finally:
        lock.release()


def save_safetensors_atomically(
    tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Save ``tensors`` as safetensors, atomically. Tensors are made contiguous, as the format needs."""
    contiguous = {key: value.detach().contiguous() for key, value in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata), bytes_of(contiguous))
