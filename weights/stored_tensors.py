"""PyTorch's tensors and their memory as data: each view checked against its storage, and that against the bytes that hold it.

Both of PyTorch's formats are here, its archive and the older stream of pickles. PyTorch's own reader sees none of it, and memory
is made only for what is asked for.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .budget import Budget, Refused
from .stack_machine import Blob, Machine, Name, Stream, Table, bare
from .zip_directory import ZIP, Data, Entry, entries_of

_MOST_DIMENSIONS = 16
_LIMIT = 1 << 63
_LARGEST_PICKLE = 64 << 20  # the names and shapes of the largest models take a few MB
LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LEGACY_HEADER = 4096  # torch writes about 300 bytes before a single storage's own
_CONTRADICTION = "contradicts itself about a tensor's memory"

STORAGES: Table = {
    ("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Double": torch.float64,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
"""What a storage may be of."""


# The records


@dataclass(eq=False, slots=True)
class Storage:
    """A tensor's memory: as many elements as ``blob`` really holds, from its byte ``where`` on."""

    dtype: torch.dtype
    elements: int
    blob: Blob
    key: str
    where: int = 0

    base: Storage | None = None
    typed: dict[torch.dtype, Storage] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.elements * self.dtype.itemsize

    @property
    def start(self) -> int:
        """Where its first element is in its blob."""
        return self.base.where if self.base else self.where

    def as_type(self, dtype: torch.dtype) -> Storage:
        """The same bytes as numbers of another kind: one object a kind."""
        if dtype not in self.typed:
            self.typed[dtype] = Storage(dtype, self.nbytes // dtype.itemsize, self.blob, self.key, base=self)
        return self.typed[dtype]


@dataclass(eq=False, slots=True)
class View:
    """A tensor that is known to lie within its storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What its elements take without the gaps."""
        return math.prod(self.size) * self.storage.dtype.itemsize


def rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> View:
    """``torch._utils._rebuild_tensor_v2``: a view whose furthest element, offset + sum of (size - 1) stride, lies in ``storage``.

    Raises:
        Refused: It doesn't, or is more than a tensor.
    """
    _check_flags(requires_grad, hooks)
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple) or metadata:
        raise Refused("has a tensor of a kind that no network needs")
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise Refused("has a tensor of impossible dimensions")
    if not all(type(number) is int and 0 <= number < _LIMIT for number in (offset, *size, *stride)):
        raise Refused("has a tensor of impossible size")
    elements = math.prod(size)
    end = offset + (1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else 0)
    if max(end, elements) > storage.elements:  # a view that repeats elements could be of any size once it is copied
        raise Refused(f"has a tensor that reaches past its memory (to {end}, of {storage.elements} elements)")
    return View(storage, offset, size, stride)


def _rebuild_parameter(view: Any, requires_grad: Any, hooks: Any, state: Any = None) -> View:
    _check_flags(requires_grad, hooks)
    if not isinstance(view, View):
        raise Refused("has a parameter that is no tensor")
    return view


def _check_flags(requires_grad: Any, hooks: Any) -> None:
    if not isinstance(requires_grad, bool) or bare(hooks) not in (None, {}):
        raise Refused("has a tensor with more than its numbers")


TENSORS: Table = {
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
}


# Both formats


class _Storages:
    """The storages that a pickle refers to, by key: tied tensors name theirs twice."""

    def __init__(self, blob: Blob, table: Table) -> None:
        self.blob, self.table = blob, table
        self.by_key: dict[str, Storage] = {}

    def fetch(self, identity: Any) -> Storage:
        """The storage that torch describes by ``identity``; where its elements are is not yet known."""
        match identity:
            case ("storage", Name() as kind, str(key), str(), int(elements), *views) if views in ([], [None]):
                dtype = self.table.get((kind.module, kind.name))
                if isinstance(dtype, torch.dtype) and 0 <= elements < _LIMIT:
                    storage = self.by_key.setdefault(key, Storage(dtype, elements, self.blob, key))
                    if (storage.dtype, storage.elements) != (dtype, elements):
                        raise Refused(_CONTRADICTION)
                    return storage
        raise Refused("has a tensor's memory in a form that PyTorch does not write")


def read_archive(blob: Blob, data: Data, budget: Budget, table: Table, machine: type[Machine] = Machine) -> Any:
    """What an archive describes, with views in place of tensors: PyTorch's format since 1.6.

    ``NAME/data.pkl`` says what is in a zip archive, ``NAME/data/KEY`` are the storages.

    Args:
        blob: The archive, which storages refer to.
        data: Its bytes.
        table: The names that its pickle may use.
    """
    entries = entries_of(data, budget)
    stored = all(entry.stored for name, entry in entries.items() if "/code/" not in name)
    indices = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if not stored or len(indices) != 1 or entries[indices[0]].length > _LARGEST_PICKLE:
        raise Refused("is an archive that PyTorch did not write")
    root = indices[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order is not None and order.read(data) != b"little":
        raise Refused("was saved on a big-endian machine")
    storages = _Storages(blob, table)

    def fetch(identity: Any) -> Storage:
        storage = storages.fetch(identity)
        entry = entries.get(f"{root}data/{storage.key}", Entry(0, -1, True))
        if entry.length != storage.nbytes:
            raise Refused(f"claims {storage.elements} numbers for a tensor whose memory has {entry.length} bytes")
        storage.where = entry.start(data)
        return storage

    return machine(io.BytesIO(entries[indices[0]].read(data)), table, budget, fetch).run()


def read_legacy(
    stream: Stream, blob: Blob, budget: Budget, table: Table, machine: type[Machine] = Machine
) -> tuple[Any, int]:
    """What PyTorch's format before 1.6 holds, with views in place of tensors, and where in ``blob`` it ends.

    Five pickles (the fourth is what is held, the fifth lists its storages), then these, each with its length before it.

    Args:
        stream: The beginning of ``blob``, or all of it.
        blob: What storages refer to.
        table: The names that the fourth pickle may use.
    """
    storages = _Storages(blob, table)
    magic, protocol, system = (Machine(stream, {}, budget).run() for _ in range(3))
    little = isinstance(system, dict) and system.get("little_endian") is True
    if magic != LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not little:
        raise EOFError("not PyTorch's older format")
    contents = machine(stream, table, budget, storages.fetch).run()
    keys = Machine(stream, {}, budget).run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages.by_key):
        raise Refused(_CONTRADICTION)
    place = stream.tell()
    for key in keys:
        stream.seek(place)
        (length,) = struct.unpack("<q", stream.read(8))
        storage = storages.by_key[key]
        storage.where, place = place + 8, place + 8 + storage.nbytes
        if length != storage.elements:
            raise Refused(_CONTRADICTION)
        if place > blob.length:
            raise EOFError("the last storages are missing")
    return contents, place


def nested_storage(blob: Blob, budget: Budget) -> Storage:
    """The storage that ``blob`` holds alone, in either format, as a pickled one does.

    Raises:
        Refused: It holds something else.
    """
    if blob.read(4) == ZIP:
        data = blob.read()
        budget.unfold(len(data))
        storage = read_archive(blob, data, budget, STORAGES)
    else:
        storage, end = read_legacy(io.BytesIO(blob.read(_LEGACY_HEADER)), blob, budget, STORAGES)
        if end != blob.length:
            raise Refused(_CONTRADICTION)
    if not isinstance(storage, Storage):
        raise Refused("has a tensor's memory in a form that PyTorch does not write")
    return storage


# Tensors


class Tensors:
    """The tensors of checked views in a file; those of one storage share their memory, as they did when they were saved.

    The file is mapped. Its bytes are copied where they don't lie as their type needs, or, without ``mapped``, all that are taken:
    a mapped file is not to be written over.
    """

    def __init__(self, file: Path, budget: Budget, mapped: bool = True) -> None:
        self.budget, self.mapped = budget, mapped
        self.whole = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
        self.loaded: dict[Storage, Tensor] = {}

    def take(self, view: View) -> Tensor:
        """The tensor of a view.

        Raises:
            Refused: All of them together would be far larger than the file.
        """
        storage = view.storage
        self.budget.unfold(view.nbytes)
        if not view.nbytes:
            return torch.empty(view.size, dtype=storage.dtype)
        if storage not in self.loaded:
            self.budget.unfold(storage.nbytes)
            self.loaded[storage] = self._elements(storage)
        return self.loaded[storage].as_strided(view.size, view.stride, view.offset)

    def _elements(self, storage: Storage) -> Tensor:
        """All of a checked storage, in one dimension."""
        blob, start, length = storage.blob, storage.blob.start + storage.start, storage.nbytes
        if isinstance(blob.source, mmap.mmap):
            memory = self.whole[start : start + length]
            if not self.mapped or start % storage.dtype.itemsize:
                memory = memory.clone()
        else:
            elements = blob.read()[storage.start : storage.start + length]
            memory = torch.frombuffer(bytearray(elements), dtype=torch.uint8).untyped_storage()
        return torch.empty(0, dtype=storage.dtype).set_(memory, 0, (storage.elements,), (1,))  # type: ignore[call-overload]
