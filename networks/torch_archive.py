"""Checkpoints that PyTorch's own data-only reader refuses, read as data: training checkpoints and TorchScript archives.

``torch.load(weights_only=True)`` ends at the first name that isn't on its list, be it a scheduler's class beside the weights;
``torch.jit.load`` loads a program. Here the archive's pickle is followed by the stack machine of ``edm_pickle``: tensors are
checked against their storages and these against the bytes that hold them, and every other name stands for an inert object.
Nothing is imported or called.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import UnsafeCheckpoint, refuse_impostors
from .edm_pickle import (
    _CALLS,
    _MOST_NESTED,
    _MOST_PARTS,
    _STORAGES,
    _bare,
    _Blob,
    _filled,
    _Machine,
    _Name,
    _named_storage,
    _Object,
    _Refused,
    _Storage,
    _View,
)

Facts = dict[str, int | float | str]
_LARGEST_PICKLE = 64 << 20  # the names and shapes of the largest models take a few MB
_TENSORS = ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state", "OrderedDict")
_KNOWN = {name: call for name, call in _CALLS.items() if name[1] in _TENSORS}


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Facts]:
    """The tensors under ``state_dict`` in a training checkpoint (or at its top), and the plain values beside them.

    ``module.`` before every name is left off, as several processes put it there.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't an archive of PyTorch 1.6 or newer, is damaged, or holds no tensors.
    """
    return _read(path, _state_dict)


def read_script(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The parameters and buffers in a TorchScript archive, such as OpenAI's CLIPs, by name; its program is left alone.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't such an archive, is damaged, or holds no tensors.
    """
    return _read(path, lambda held, archive: _attributes(held, archive, ""))


def is_script(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an archive with a program in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _read(path: str | os.PathLike[str], take: Callable[[Any, _Archive], Any]) -> Any:
    file = Path(path)
    refuse_impostors(file)
    if not zipfile.is_zipfile(file):
        raise UnsafeCheckpoint(
            f"{file.name} is cut short or damaged, or older than PyTorch 1.6: fetch it again, or have a newer PyTorch save it."
        )
    try:
        with zipfile.ZipFile(file) as opened:
            archive = _Archive(opened, file.stat().st_size)
            return take(archive.held(), archive)
    except _Refused as refused:
        raise UnsafeCheckpoint(f"{file.name} {refused}, so it was not loaded: use a file as PyTorch saves it.") from refused
    except Exception as error:  # a torn or made-up archive fails in as many ways as there are operations
        raise UnsafeCheckpoint(f"{file.name} is cut short or damaged: delete it and fetch it again.") from error


class _Inert:
    """An object of a class that nobody asked for: whatever is done to it is forgotten."""

    __slots__ = ()


class _Lenient(_Machine):
    """The machine for files that hold more than a network: names outside its table make inert objects instead of ending it."""

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _Refused("names something that is no name")
        self.push(_Name(module, name))

    def reduce(self, called: Any, arguments: Any) -> None:
        if isinstance(called, _Name) and (called.module, called.name) in self.table:
            super().reduce(called, arguments)
        else:
            self.push(_Inert())

    def new(self, kind: Any, arguments: Any) -> None:
        self.push(_Object(str(kind)) if isinstance(kind, _Name) else _Inert())

    def build(self, state: Any) -> None:
        state = _bare(state)
        if isinstance(self.stack[-1], _Object) and isinstance(state, dict) and not self.stack[-1].state:
            self.stack[-1].state = state

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], _Inert | _Object):
            super().append(values)

    def add(self, values: list[Any]) -> None:
        """Sets hold nothing that a network is made of."""

    def set_items(self, pairs: list[Any]) -> None:
        target = _bare(self.stack[-1])
        if isinstance(target, dict):
            # Optimisers number their states. Only plain keys: the hash of a nested tuple could take for ever.
            items = zip(pairs[::2], pairs[1::2], strict=True)
            target.update((key, value) for key, value in items if type(key) in (str, int))


class _Archive:
    """``NAME/data.pkl`` describes what is in the archive, ``NAME/data/KEY`` are the storages' elements."""

    def __init__(self, opened: zipfile.ZipFile, file_bytes: int) -> None:
        entries = opened.infolist()
        self.opened, self.sizes = opened, {entry.filename: entry.file_size for entry in entries}
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries if "/code/" not in entry.filename)
        if not stored or len(self.sizes) != len(entries) or sum(self.sizes.values()) > 2 * file_bytes:
            raise _Refused("is an archive that PyTorch did not write")
        indices = [name for name in self.sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(indices) != 1 or self.sizes[indices[0]] > _LARGEST_PICKLE:
            raise _Refused("is an archive that PyTorch did not write")
        self.root = indices[0].removesuffix("data.pkl")
        order = f"{self.root}byteorder"
        if order in self.sizes and opened.read(order) != b"little":
            raise _Refused("was saved on a big-endian machine")
        self.loaded: dict[str, Tensor] = {}
        self.bytes_left = 8 * file_bytes  # tied weights may be taken several times

    def held(self) -> Any:
        """What the archive's pickle describes, with views in place of tensors."""
        pickle = io.BytesIO(self.opened.read(f"{self.root}data.pkl"))
        return _bare(_Lenient(pickle, {**_KNOWN, **_STORAGES}, self._storage).run())

    def _storage(self, identity: Any) -> _Storage:
        storage = _named_storage(_Blob(b"", 0, 0), identity)
        return _filled(storage, self.sizes.get(f"{self.root}data/{storage.key}", -1))

    def tensor(self, view: _View) -> Tensor:
        """The tensor that ``view`` describes, a copy of its own."""
        self.bytes_left -= view.nbytes
        if self.bytes_left < 0:
            raise _Refused("unfolds into more than it can hold")
        storage = view.storage
        if not view.nbytes:
            return torch.empty(view.size, dtype=storage.dtype)
        if storage.key not in self.loaded:
            content = bytearray(self.opened.read(f"{self.root}data/{storage.key}"))
            self.loaded[storage.key] = torch.frombuffer(content, dtype=storage.dtype)
        return self.loaded[storage.key].as_strided(view.size, view.stride, view.offset).clone()


def _state_dict(held: Any, archive: _Archive) -> tuple[dict[str, Tensor], Facts]:
    if not isinstance(held, dict):
        raise _Refused("holds no dictionary")
    nested = _bare(held.get("state_dict"))
    weights = nested if isinstance(nested, dict) else held
    views = {key: value for key, value in weights.items() if isinstance(key, str) and isinstance(value, _View)}
    if not views:
        raise _Refused("holds no tensors under 'state_dict'")
    prefix = "module." if all(key.startswith("module.") for key in views) else ""
    facts = {key: value for key, value in held.items() if isinstance(key, str) and type(value) in (int, float, str)}
    return {key[len(prefix) :]: archive.tensor(view) for key, view in views.items()}, facts


def _attributes(held: Any, archive: _Archive, prefix: str, depth: int = 0) -> dict[str, Tensor]:
    """The tensors among an object's attributes, and those of the objects within it."""
    if not isinstance(held, _Object) or depth > 4 * _MOST_NESTED:
        raise _Refused("holds no module, or modules within modules without end")
    found: dict[str, Tensor] = {}
    for name, value in _texts(held.state).items():
        if isinstance(value, _View):
            found[prefix + name] = archive.tensor(value)
        elif isinstance(value, _Object):
            found |= _attributes(value, archive, f"{prefix}{name}.", depth + 1)
        if len(found) > _MOST_PARTS:
            raise _Refused("has more parts than any network")
    if depth == 0 and not found:
        raise _Refused("holds no tensors")
    return found


def _texts(items: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: value for key, value in items.items() if isinstance(key, str)}
