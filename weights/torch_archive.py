"""What PyTorch saves, read as data: state dicts in both of its formats, training checkpoints, and TorchScript archives.

``torch.load(weights_only=True)`` builds whatever a file describes, at whatever cost, and ends at the first name that isn't on its
list, be it a scheduler's class beside the weights; ``torch.jit.load`` loads a program. Here the file's pickle is followed by the
stack machine of ``edm_pickle`` under one ``Budget``: tensors are checked against their storages and these against the bytes that
hold them, and are views of the mapped file. Nothing is imported or called.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import UnsafeCheckpoint, refuse_impostors
from .budget import Budget
from .budget import Refused as _Refused
from .edm_pickle import (
    _CALLS,
    _MOST_NESTED,
    _MOST_PARTS,
    _STORAGES,
    _ZIP,
    _bare,
    _Blob,
    _filled,
    _is_legacy,
    _Machine,
    _Mapping,
    _Name,
    _named_storage,
    _Object,
    _rebuild_tensor_v2,
    _Storage,
    _Table,
    _Tensors,
    _View,
)
from .zip_directory import Entry, entries_of

Facts = dict[str, int | float | str]
_LARGEST_PICKLE = 64 << 20  # the names and shapes of the largest models take a few MB
_DEEPEST = 64  # containers within containers; a trainer's checkpoint has five or six
_PICKLED = b"\x80"  # how pickles since protocol 2 begin


class _Inert:
    """An object of a class that nobody asked for: whatever is done to it is forgotten."""

    __slots__ = ()


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> _View:
    """A tensor of a kind of number that has no storage of its own, such as fp8."""
    if not isinstance(dtype, _Name) or not isinstance(storage, _Storage) or (dtype.module, dtype.name) not in _DTYPES:
        raise _Refused("has a tensor of a kind that no network needs")
    typed = storage.as_type(_DTYPES[dtype.module, dtype.name])
    return _rebuild_tensor_v2(typed, offset, size, stride, requires_grad, hooks, metadata)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> _View:
    return _rebuild_tensor_v2(storage, offset, size, stride, False, None)


def _size(numbers: Any) -> tuple[Any, ...]:
    if not isinstance(numbers, tuple):
        raise _Refused("has a shape that is none")
    return numbers


def _counter(counts: Any = None) -> _Mapping:
    if counts is not None and not isinstance(_bare(counts), dict):
        raise _Refused("has counts of nothing")
    return _Mapping(_bare(counts) or {})


def _device(*_: Any) -> _Inert:
    return _Inert()


_DTYPES = {("torch", name): kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
_MEMORY: _Table = {
    **_STORAGES, ("torch", "ComplexFloatStorage"): torch.complex64, ("torch", "ComplexDoubleStorage"): torch.complex128,
    ("torch.storage", "UntypedStorage"): torch.uint8, ("torch", "UntypedStorage"): torch.uint8,
}  # fmt: skip
_BUILT = ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state", "OrderedDict")
_LENIENT: _Table = {
    **{name: call for name, call in _CALLS.items() if name[1] in _BUILT}, **_MEMORY,
    **dict.fromkeys(_DTYPES), ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
}  # fmt: skip
_STRICT: _Table = {
    **_LENIENT, ("torch", "Size"): _size, ("torch", "device"): _device, ("collections", "Counter"): _counter,
    **{name: call for name, call in _CALLS.items() if name[1] in ("set", "encode", "scalar", "dtype") and name[0] != "torch"},
}  # fmt: skip
"""What may be among a state dict: what PyTorch's own data-only reader knows, and NumPy's numbers."""


def read_tree(path: str | os.PathLike[str], mapped: bool = True) -> Any:
    """All that a checkpoint of PyTorch's holds, in plain containers, with tensors on the CPU.

    In both of PyTorch's formats. A name that a state dict doesn't need ends the reading.

    Args:
        mapped: Whether tensors may be views of the mapped file, which is not to be written over while they live.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't such a checkpoint, is damaged, or asks for more than tensors in plain containers.
    """
    def take(held: Any, tensors: _Tensors, budget: Budget) -> Any:
        tensors.mapped = mapped
        return _Tree(tensors, budget).plain(held)

    return _read(path, _Strict, take, legacy=True)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Facts]:
    """The tensors under ``state_dict`` in a training checkpoint (or at its top), and the plain values beside them.

    ``module.`` before every name is left off, as several processes put it there.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't an archive of PyTorch 1.6 or newer, is damaged, or holds no tensors.
    """
    return _read(path, _Lenient, lambda held, tensors, _: _state_dict(held, tensors))


def read_script(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The parameters and buffers in a TorchScript archive, such as OpenAI's CLIPs, by name; its program is left alone.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't such an archive, is damaged, or holds no tensors.
    """
    return _read(path, _Lenient, lambda held, tensors, budget: _attributes(held, tensors, budget, ""))


def is_script(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an archive with a program in it; a damaged one isn't."""
    with Path(path).open("rb") as opened:
        if opened.read(4) != _ZIP:
            return False
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return any("/code/" in name for name in entries_of(data, Budget(len(data))))
            except Exception:  # whoever reads it will say what is wrong with it
                return False


def _read(path: str | os.PathLike[str], machine: type[_Machine], take: Callable[..., Any], legacy: bool = False) -> Any:
    file = Path(path)
    refuse_impostors(file)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        budget, zipped = Budget(len(data)), data[:4] == _ZIP
        try:
            held = _Archive(data, budget).held(machine) if zipped or not legacy else _legacy(data, budget, machine)
            return take(_bare(held), _Tensors(file, budget), budget)
        except _Refused as refused:
            raise UnsafeCheckpoint(
                f"{file.name} {refused}, so it was not loaded: use a safetensors version, or a state dict as PyTorch saves it."
            ) from refused
        except MemoryError:
            raise
        except Exception as error:  # a torn or made-up archive fails in as many ways as there are operations
            again = "delete it and fetch the weights again (apprentice models pull)"
            if zipped or data[:1] == _PICKLED:
                raise UnsafeCheckpoint(f"{file.name} is cut short or damaged: {again}.") from error
            older = "" if legacy else " of 1.6 or newer"
            raise UnsafeCheckpoint(f"{file.name} is not a PyTorch checkpoint{older}: {again}.") from error


# ------------------------------------------------------------------------------------------------------ machines


class _Strict(_Machine):
    """The machine for state dicts and what may lie beside them; optimisers number their states."""

    def set_items(self, pairs: list[Any]) -> None:
        target = _bare(self.stack[-1])
        if not isinstance(target, dict) or len(pairs) % 2:
            raise _Refused("sets items of what is no dictionary")
        if not all(type(key) in (str, int, float, bool) for key in pairs[::2]):  # a nested tuple's hash could take for ever
            raise _Refused("has a dictionary whose keys are neither names nor numbers")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))


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


# ------------------------------------------------------------------------------------------------------- formats


class _Archive:
    """PyTorch's format since 1.6: ``NAME/data.pkl`` describes what is in a zip archive, ``NAME/data/KEY`` are the storages."""

    def __init__(self, data: mmap.mmap, budget: Budget) -> None:
        self.data, self.budget = data, budget
        self.entries = entries_of(data, budget)
        stored = all(entry.stored for name, entry in self.entries.items() if "/code/" not in name)
        indices = [name for name in self.entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if not stored or len(indices) != 1 or self.entries[indices[0]].length > _LARGEST_PICKLE:
            raise _Refused("is an archive that PyTorch did not write")
        self.root = indices[0].removesuffix("data.pkl")
        order = self.entries.get(f"{self.root}byteorder")
        if order is not None and order.read(data) != b"little":
            raise _Refused("was saved on a big-endian machine")
        self.storages: dict[str, _Storage] = {}

    def held(self, machine: type[_Machine]) -> Any:
        """What the archive's pickle describes, with views in place of tensors."""
        pickle = io.BytesIO(self.entries[f"{self.root}data.pkl"].read(self.data))
        return machine(pickle, _STRICT if machine is _Strict else _LENIENT, self.budget, self._storage).run()

    def _storage(self, identity: Any) -> _Storage:
        storage = _known(self.storages, _named_storage(_Blob(self.data, 0, 0), identity, _MEMORY))
        entry = self.entries.get(f"{self.root}data/{storage.key}", Entry(0, -1, True))
        _filled(storage, entry.length)
        storage.where = entry.start(self.data)
        return storage


def _legacy(data: mmap.mmap, budget: Budget, machine: type[_Machine]) -> Any:
    """PyTorch's format before 1.6: five pickles (the fourth is what is held, the fifth lists its storages), then these."""
    storages: dict[str, _Storage] = {}

    def fetch(identity: Any) -> _Storage:
        return _known(storages, _named_storage(_Blob(data, 0, 0), identity, _MEMORY))

    header = [_Strict(data, {}, budget).run() for _ in range(3)] if data[:1] == _PICKLED else []
    if len(header) != 3 or not _is_legacy(*header):
        raise EOFError("not PyTorch's older format")
    held = machine(data, _STRICT, budget, fetch).run()
    keys = _Strict(data, {}, budget).run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise _Refused("contradicts itself about its tensors' memory")
    place = data.tell()
    for key in keys:
        (length,) = struct.unpack_from("<q", data, place)
        storage = storages[key]
        storage.where, place = place + 8, place + 8 + storage.nbytes
        if length != storage.elements:
            raise _Refused("contradicts itself about a tensor's memory")
        if place > len(data):
            raise EOFError("the last storages are missing")
    return held


def _known(storages: dict[str, _Storage], storage: _Storage) -> _Storage:
    """``storage``, or what is known under its key already: tied tensors name theirs twice."""
    known = storages.setdefault(storage.key, storage)
    if (known.dtype, known.elements) != (storage.dtype, storage.elements):
        raise _Refused("contradicts itself about a tensor's memory")
    return known


# ------------------------------------------------------------------------------------------------------ contents


class _Tree:
    """Records as plain containers with tensors in them; what is held twice is one object again."""

    def __init__(self, tensors: _Tensors, budget: Budget) -> None:
        self.tensors, self.budget = tensors, budget
        self.made: dict[int, Any] = {}

    def plain(self, value: Any, depth: int = 0) -> Any:
        """``value`` in Python's own types."""
        value = _bare(value)
        self.budget.step()
        if isinstance(value, _View):
            return self.tensors.take(value)
        if isinstance(value, _Blob):
            self.budget.unfold(value.length)
            return value.read()
        if not isinstance(value, dict | list | tuple):
            return value
        if id(value) not in self.made:
            if depth == _DEEPEST:
                raise _Refused("has containers within containers without end")
            if isinstance(value, dict):
                made: Any = {key: self.plain(item, depth + 1) for key, item in value.items()}
            else:
                made = type(value)(self.plain(item, depth + 1) for item in value)
            self.made[id(value)] = made
        return self.made[id(value)]


def _state_dict(held: Any, tensors: _Tensors) -> tuple[dict[str, Tensor], Facts]:
    if not isinstance(held, dict):
        raise _Refused("holds no dictionary")
    nested = _bare(held.get("state_dict"))
    weights = nested if isinstance(nested, dict) else held
    views = {key: value for key, value in weights.items() if isinstance(key, str) and isinstance(value, _View)}
    if not views:
        raise _Refused("holds no tensors under 'state_dict'")
    prefix = "module." if all(key.startswith("module.") for key in views) else ""
    facts = {key: value for key, value in held.items() if isinstance(key, str) and type(value) in (int, float, str)}
    return {key[len(prefix) :]: tensors.take(view) for key, view in views.items()}, facts


def _attributes(held: Any, tensors: _Tensors, budget: Budget, prefix: str, depth: int = 0) -> dict[str, Tensor]:
    """The tensors among an object's attributes, and those of the objects within it."""
    if not isinstance(held, _Object) or depth > 4 * _MOST_NESTED:
        raise _Refused("holds no module, or modules within modules without end")
    found: dict[str, Tensor] = {}
    for name, value in _texts(held.state).items():
        budget.step()
        if isinstance(value, _View):
            found[prefix + name] = tensors.take(value)
        elif isinstance(value, _Object):
            found |= _attributes(value, tensors, budget, f"{prefix}{name}.", depth + 1)
        if len(found) > _MOST_PARTS:
            raise _Refused("has more parts than any network")
    if depth == 0 and not found:
        raise _Refused("holds no tensors")
    return found


def _texts(items: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: value for key, value in items.items() if isinstance(key, str)}
