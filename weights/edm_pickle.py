"""Snapshots of EDM, SiD and SiD-LSG (``network-snapshot-*.pkl``), read as data.

Such a file is a pickle of ``dict(ema=net, ...)``: an EDM network saved by ``torch_utils.persistence`` with its own source code
(NVlabs/edm, mingyuanzhou/SiD), or a diffusers ``UNet2DConditionModel`` (mingyuanzhou/SiD-LSG). Unpickling would run that code
and whatever else the file asks for. Here nothing is unpickled:

- A small stack machine of our own follows the pickle's operations and builds only inert records and plain containers. A name is
  looked up in an exact table and stands for one of our record makers; nothing is imported. An operation, a name or an argument
  that no snapshot needs ends the reading, wherever in the file it is.
- A tensor is checked against its storage, and a storage against the bytes that hold it, before either is made, and only if the
  network uses it. PyTorch's own reader sees none of it.
- Steps, modules, settings and bytes are counted in one ``Budget``, so that a small file cannot unfold into a big one.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import mmap
import os
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import UnsafeCheckpoint, parse_json, reading, refuse_impostors
from .budget import Budget
from .budget import Refused as _Refused
from .zip_directory import Entry, entries_of

_Stream = mmap.mmap | io.BytesIO
_Table = Mapping[tuple[str, str], Any]

Snapshot = tuple[dict[str, Any], dict[str, Tensor]]
"""What made a network, with its class under ``_class_name``; its state dict under its authors' names."""

UNET = "UNet2DConditionModel"

_COMMON = ("img_resolution", "img_channels", "label_dim", "use_fp16")
_ARGUMENTS = {
    "EDMPrecond": (*_COMMON, "sigma_min", "sigma_max", "sigma_data", "model_type"),
    "VPPrecond": (*_COMMON, "beta_d", "beta_min", "M", "epsilon_t", "model_type"),
    "VEPrecond": (*_COMMON, "sigma_min", "sigma_max", "model_type"),
    "iDDPMPrecond": (*_COMMON, "C_1", "C_2", "M", "model_type"),
}
"""The networks of NVlabs/edm, with the names of their constructor's arguments in order."""

_NETWORKS = ("ema", "G", "net")
_CONFIGS = {"edm": "edm_config", "diffusers": "diffusers_config"}
_UNCONFIGURED = ("_use_default_values", "_ignore_files")  # diffusers leaves them out of config.json as well

# What a network may need: Stable Diffusion 1.5 has 2,200 parts, SDXL 6,000.
_MOST_PARTS = 200_000
_MOST_SETTINGS = 10_000
_MOST_NESTED = 8
_LONGEST_TEXT = 1_000
_MOST_DIMENSIONS = 16

_LIMIT = 1 << 63
_ZIP = b"PK\x03\x04"
_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGE_HEADER = 4096  # torch writes about 300 bytes before a storage's own


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """The network in an EDM, SiD or SiD-LSG pickle: ``ema``, or else ``G`` or ``net``. Nothing in the file is ever run.

    The configuration holds the constructor's arguments, and under ``_class_name`` which network they are for: ``EDMPrecond`` (or
    ``VPPrecond``, ``VEPrecond``, ``iDDPMPrecond``), or diffusers' ``UNet2DConditionModel``. All of it is plain JSON.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't such a snapshot, it is damaged, or it asks for more than a snapshot needs.
    """
    file = Path(path)
    refuse_impostors(file)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            budget = Budget(len(data))
            return _network(_unpacked(data, budget), _Tensors(file, budget, mapped=False))  # networks keep them
        except _Refused as refused:
            raise UnsafeCheckpoint(
                f"{file.name} {refused}, so it was not loaded: use a snapshot as the EDM, SiD or SiD-LSG code saves it (.pkl), "
                f"or what apprentice convert makes of one."
            ) from refused
        except MemoryError:
            raise
        except Exception as error:  # a torn or made-up pickle fails in as many ways as there are operations
            raise UnsafeCheckpoint(f"{file.name} is cut short or damaged, or no pickle: delete it and fetch it again.") from error


def read_edm(path: str | os.PathLike[str]) -> Snapshot:
    """The network in a snapshot, or in what ``apprentice convert`` made of one (``.safetensors``); see ``read_snapshot``.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It is neither, or it is damaged.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        return read_snapshot(file)
    refuse_impostors(file)
    torn = f"{file.name} is no safetensors file, or is cut short or damaged: convert it again."
    with reading(file.name, "convert it again"):
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it isn't a mapping
        except SafetensorError as error:
            raise UnsafeCheckpoint(torn) from error
    return _recorded_config(metadata, file.name), tensors


def snapshot_metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """What a converted snapshot says about itself: its ``kind``, and ``config`` as JSON under that kind's own key."""
    kind = "diffusers" if config["_class_name"] == UNET else "edm"
    return {"kind": kind, _CONFIGS[kind]: json.dumps(config)}


def _recorded_config(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    keys = " or ".join(_CONFIGS.values())
    text = next((metadata[key] for key in _CONFIGS.values() if key in metadata), None)
    again = "run apprentice convert on the authors' snapshot (.pkl), which records it"
    if text is None:
        raise UnsafeCheckpoint(f"{name} has no {keys} in its metadata to say which network its weights are for: {again}.")
    config = parse_json(text, f"The {keys} metadata of {name}", again)
    if not isinstance(config, dict) or config.get("_class_name") not in (UNET, *_ARGUMENTS):
        raise UnsafeCheckpoint(f"{name} has {keys} metadata for a network that is neither EDM's nor SiD's: {again}.")
    return config


# What the records mean


def _unpacked(data: mmap.mmap, budget: Budget) -> Any:
    """What the file's pickle holds, as records."""
    torchs = "is a PyTorch checkpoint (rename it to .pt for apprentice convert)"
    if data[:4] == _ZIP:
        raise _Refused(torchs)
    memory = {("torch.storage", "_load_from_bytes"): lambda blob: _load_from_bytes(blob, budget)}
    held = _Machine(data, {**_CALLS, **memory, **_CLASSES}, budget).run()
    if held == _TORCH_MAGIC:  # a bare pickle before all else marks torch's older format
        raise _Refused(torchs)
    return held


def _network(held: Any, tensors: _Tensors) -> Snapshot:
    """The configuration and the tensors of the network in ``held``, a file's dictionary."""
    held = _bare(held)
    if not isinstance(held, dict):
        raise _Refused("holds no dictionary of networks")
    net = next((held[key] for key in _NETWORKS if held.get(key) is not None), None)
    if net is None:
        keys = ", ".join(_shown(key) for key in itertools.islice(held, 5)) or "nothing"
        raise _Refused(f"holds no network under {', '.join(_NETWORKS)}, but {keys}")
    if not isinstance(net, _Object):
        raise _Refused("holds something else where the network should be")
    return _config(net), _state_dict(net, tensors)


def _config(net: _Object) -> dict[str, Any]:
    """What made ``net``, as plain JSON."""
    if net.persistent and net.name in _ARGUMENTS:
        settings = _init_arguments(net)
    elif not net.persistent and net.name == UNET:
        settings = {key: value for key, value in _dict(net, "_internal_dict").items() if key not in _UNCONFIGURED}
    else:
        raise _Refused(f"holds a {_shown(net.name)}, not one of {', '.join(_ARGUMENTS)} or {UNET}")
    return _plain({**settings, "_class_name": net.name}, "its configuration", itertools.count())


def _init_arguments(net: _Object) -> dict[str, Any]:
    """The arguments that ``net`` was constructed with, by name, as ``torch_utils.persistence`` recorded them."""
    given, named, names = net.state.get("_init_args"), _dict(net, "_init_kwargs"), _ARGUMENTS[net.name]
    if not isinstance(given, tuple) or len(given) > len(names):
        raise _Refused("does not record what its network was made with")
    positional = dict(zip(names, given, strict=False))
    if twice := positional.keys() & named.keys():
        raise _Refused(f"records two values of {', '.join(sorted(twice))}")
    return positional | named


def _plain(value: Any, what: str, count: Iterator[int], depth: int = 0) -> Any:
    """``value`` in JSON's own types; ``count`` bounds how often a container may unfold."""
    if next(count) > _MOST_SETTINGS or depth > _MOST_NESTED:
        raise _Refused(f"has more than a configuration in {what}")
    value = _bare(value)
    if isinstance(value, dict):
        return {_short(key): _plain(item, _shown(key), count, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, what, count, depth + 1) for item in value]
    if isinstance(value, str):
        return _short(value)
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and -_LIMIT <= value < _LIMIT):
        return value
    raise _Refused(f"has something in {what} that is no setting")


def _state_dict(net: _Object, tensors: _Tensors) -> dict[str, Tensor]:
    """The tensors that ``net.state_dict()`` would give, in its order."""
    views: dict[str, _View] = {}
    for key, view in _named_views(net):
        if key in views:
            raise _Refused(f"has two tensors called {_shown(key)}")
        views[key] = view
    if not views:
        raise _Refused("holds a network without weights")
    return {key: tensors.take(view) for key, view in views.items()}


def _named_views(net: _Object) -> Iterator[tuple[str, _View]]:
    """Parameters and persistent buffers of ``net`` and of all its modules, depth first."""
    waiting, parts = [("", net)], 0
    while waiting:
        prefix, module = waiting.pop()
        parameters, buffers, modules = (_dict(module, key) for key in ("_parameters", "_buffers", "_modules"))
        parts += 1 + len(parameters) + len(buffers) + len(modules)
        if parts > _MOST_PARTS:
            raise _Refused("holds a network that never ends")
        yield from _children(parameters | _persistent(buffers, module), prefix, _View, "tensor")
        waiting += [(f"{name}.", child) for name, child in _children(modules, prefix, _Object, "module")][::-1]


def _children(items: Mapping[str, Any], prefix: str, kind: type, what: str) -> Iterator[tuple[str, Any]]:
    """``items`` by their full names; None stands for an absent one, as in torch."""
    for name, item in items.items():
        if item is None:
            continue
        if not isinstance(item, kind):
            raise _Refused(f"has something else where its {what} {_shown(prefix + name)} should be")
        yield _short(prefix + name), item


def _persistent(buffers: Mapping[str, Any], module: _Object) -> dict[str, Any]:
    left_out = module.state.get("_non_persistent_buffers_set", set())
    if not isinstance(left_out, set):
        raise _Refused(f"has a {_shown(module.name)} that does not say which of its buffers are temporary")
    return {name: buffer for name, buffer in buffers.items() if name not in left_out}


def _dict(record: _Object, key: str) -> dict[str, Any]:
    """The dictionary at ``key`` of an object's state."""
    value = _bare(record.state.get(key))
    if not isinstance(value, dict):
        raise _Refused(f"has a {_shown(record.name)} without its {key}")
    return value


class _Tensors:
    """The tensors of checked views in a file; those of one storage share their memory, as they did when they were saved.

    The file is mapped. Its bytes are copied where they don't lie as their type needs, or, without ``mapped``, all that are taken:
    a mapped file is not to be written over.
    """

    def __init__(self, file: Path, budget: Budget, mapped: bool = True) -> None:
        self.budget, self.mapped = budget, mapped
        self.whole = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
        self.loaded: dict[int, tuple[_Storage, Tensor]] = {}  # with the storage, so that its id stays its own

    def take(self, view: _View) -> Tensor:
        """The tensor of a view.

        Raises:
            _Refused: All of them together would be far larger than the file.
        """
        storage = view.storage
        self.budget.unfold(view.nbytes)
        if not view.nbytes:
            return torch.empty(view.size, dtype=storage.dtype)
        if id(storage) not in self.loaded:
            self.budget.unfold(storage.nbytes)
            self.loaded[id(storage)] = storage, self._elements(storage)
        return self.loaded[id(storage)][1].as_strided(view.size, view.stride, view.offset)

    def _elements(self, storage: _Storage) -> Tensor:
        """All of a checked storage, in one dimension."""
        blob, start, length = storage.blob, storage.blob.start + storage.start, storage.nbytes
        if isinstance(blob.source, mmap.mmap):
            memory = self.whole[start : start + length]
            if not self.mapped or start % storage.dtype.itemsize:
                memory = memory.clone()
        else:
            held = blob.read()[storage.start : storage.start + length]
            memory = torch.frombuffer(bytearray(held), dtype=torch.uint8).untyped_storage()
        return torch.empty(0, dtype=storage.dtype).set_(memory, 0, (storage.elements,), (1,))  # type: ignore[call-overload]


def _short(text: str) -> str:
    if len(text) > _LONGEST_TEXT or not text.isprintable():
        raise _Refused(f"has a text that no network needs ({_shown(text)})")
    return text


def _bare(value: Any) -> Any:
    """``value`` as a plain dictionary, if it is a mapping of any kind."""
    return value.items if isinstance(value, _Mapping) else value


def _shown(text: object) -> str:
    """The start of a text out of the file, fit for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:60]) if isinstance(text, str) else "something"


# The records


@dataclass(eq=False, slots=True)
class _Name:
    """A class or function that the file names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{_shown(self.module)}.{_shown(self.name)}"


@dataclass(eq=False, slots=True)
class _Blob:
    """Bytes in the file (as letters, before protocol 3). Most of it is weights, so they stay there until they are needed."""

    source: bytes | str | mmap.mmap
    start: int
    length: int
    storage: _Storage | None = None

    def read(self, most: int | None = None) -> bytes:
        length = self.length if most is None else min(most, self.length)
        part = self.source[self.start : self.start + length]
        return part.encode("latin-1") if isinstance(part, str) else part


@dataclass(eq=False, slots=True)
class _Storage:
    """A tensor's memory: as many elements as ``blob`` really holds, from its byte ``where`` on."""

    dtype: torch.dtype
    elements: int
    blob: _Blob
    key: str
    where: int = 0

    base: _Storage | None = None
    typed: dict[torch.dtype, _Storage] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def start(self) -> int:
        """Where its first element is in its blob."""
        return self.base.where if self.base else self.where

    def as_type(self, dtype: torch.dtype) -> _Storage:
        """The same bytes as numbers of another kind: one object a kind."""
        if dtype not in self.typed:
            self.typed[dtype] = _Storage(dtype, self.nbytes // dtype.itemsize, self.blob, self.key, base=self)
        return self.typed[dtype]


@dataclass(eq=False, slots=True)
class _View:
    """A tensor that is known to lie within its storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize


@dataclass(eq=False, slots=True)
class _Object:
    """An object of a class that the file names (``persistent``: whose code the file brings); its state comes later."""

    name: str
    persistent: bool = False
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Mapping:
    """An ``OrderedDict``, ``EasyDict`` or ``FrozenDict``."""

    items: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _NumpyType:
    code: str
    order: str = "<"


class _NumpyArray:
    """An array. No network is made of any, so nobody asks what is in it."""

    __slots__ = ()


# What the names stand for. Arguments are checked here, at once, even of what nobody will use


def _reconstruct_persistent_obj(meta: Any) -> _Object:
    """``meta`` brings its class as source code (``module_src``), which is left alone."""
    meta = _bare(meta)
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise _Refused("has an object that torch_utils.persistence did not write")
    version, source, state = meta.get("version"), meta.get("module_src"), _bare(meta.get("state"))
    if version != 6 or not isinstance(source, str):
        raise _Refused("has an object of another version of torch_utils.persistence than 6")
    if not isinstance(state, dict):
        raise _Refused("has an object without state")
    return _Object(meta["class_name"], True, state)


def _rebuild_tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> _View:
    """A view of ``storage`` whose furthest element, offset + sum of (size - 1) stride, lies within it."""
    _check_flags(requires_grad, hooks)
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple) or metadata:
        raise _Refused("has a tensor of a kind that no network needs")
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise _Refused("has a tensor of impossible dimensions")
    if not all(type(number) is int and 0 <= number < _LIMIT for number in (offset, *size, *stride)):
        raise _Refused("has a tensor of impossible size")
    elements = math.prod(size)
    end = offset + (1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else 0)
    if max(end, elements) > storage.elements:  # a view that repeats elements could be of any size once it is copied
        raise _Refused(f"has a tensor that reaches past its memory (to {end}, of {storage.elements} elements)")
    return _View(storage, offset, size, stride)


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> _View:
    _check_flags(requires_grad, hooks)
    if not isinstance(data, _View):
        raise _Refused("has a parameter that is no tensor")
    return data


def _check_flags(requires_grad: Any, hooks: Any) -> None:
    if not isinstance(requires_grad, bool) or _bare(hooks) not in (None, {}):
        raise _Refused("has a tensor with more than its numbers")


def _load_from_bytes(blob: Any, budget: Budget) -> _Storage:
    if not isinstance(blob, _Blob):
        raise _Refused("has something else where a tensor's memory should be")
    if blob.storage is None:
        blob.storage = _zipped_storage(blob, budget) if blob.read(4) == _ZIP else _legacy_storage(blob, budget)
    return blob.storage


def _legacy_storage(blob: _Blob, budget: Budget) -> _Storage:
    """A storage as torch saves it alone: five pickles (the fourth names it, the fifth lists it), its length, its elements."""
    stream = io.BytesIO(blob.read(_STORAGE_HEADER))
    fetch = partial(_named_storage, blob)
    magic, protocol, system, storage, keys = (_Machine(stream, _STORAGES, budget, fetch).run() for _ in range(5))
    if not _is_legacy(magic, protocol, system) or not isinstance(storage, _Storage):
        raise _Refused("has a tensor's memory in a form that PyTorch does not write")
    (length,) = struct.unpack("<q", stream.read(8))
    if keys != [storage.key] or length != storage.elements:
        raise _Refused("contradicts itself about a tensor's memory")
    storage.where = stream.tell()
    return _filled(storage, blob.length - storage.where)


def _is_legacy(magic: Any, protocol: Any, system: Any) -> bool:
    """Whether these begin a stream of torch's older format, of a little-endian machine."""
    little = isinstance(system, dict) and system.get("little_endian") is True
    return magic == _TORCH_MAGIC and protocol == _TORCH_PROTOCOL and little


def _zipped_storage(blob: _Blob, budget: Budget) -> _Storage:
    """A storage in torch's archive format: ``NAME/data.pkl`` names it, ``NAME/data/KEY`` is its elements."""
    held = blob.read()
    budget.unfold(len(held))
    entries = entries_of(held, budget)
    if not all(entry.stored for entry in entries.values()):
        raise _Refused("has a tensor's memory in a form that PyTorch does not write")
    (index,) = (name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl"))
    described = io.BytesIO(entries[index].read(held))
    storage = _Machine(described, _STORAGES, budget, partial(_named_storage, blob)).run()
    root = index.removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if not isinstance(storage, _Storage) or (order is not None and order.read(held) != b"little"):
        raise _Refused("has a tensor's memory in a form that PyTorch does not write")
    elements = entries.get(f"{root}data/{storage.key}", Entry(0, 0, True))
    storage.where = elements.start(held)
    return _filled(storage, elements.length)


def _named_storage(blob: _Blob, identity: Any, kinds: _Table | None = None) -> _Storage:
    """The storage that torch describes by ``identity``; ``blob`` holds it. ``kinds``: what it may be of, if not ``_STORAGES``."""
    match identity:
        case ("storage", _Name() as kind, str(key), str(), int(elements), *views) if views in ([], [None]):
            dtype = (kinds or _STORAGES).get((kind.module, kind.name))
            if isinstance(dtype, torch.dtype) and 0 <= elements < _LIMIT:
                return _Storage(dtype, elements, blob, key)
    raise _Refused("has a tensor's memory in a form that PyTorch does not write")


def _filled(storage: _Storage, held: int) -> _Storage:
    """``storage``, if ``held`` bytes are what it claims."""
    if held != storage.nbytes:
        raise _Refused(f"claims {storage.elements} numbers for a tensor whose memory has {held} bytes")
    return storage


def _numpy_type(code: Any, align: Any, copy: Any) -> _NumpyType:
    if not isinstance(code, str):
        raise _Refused("has a number of unknown type")
    return _NumpyType(code)


def _numpy_scalar(dtype: Any, blob: Any) -> bool | int | float:
    if not isinstance(dtype, _NumpyType) or dtype.code not in _NUMBERS or not isinstance(blob, _Blob):
        raise _Refused("has a number of unknown type")
    (number,) = struct.unpack((">" if dtype.order == ">" else "<") + _NUMBERS[dtype.code], blob.read(9))
    return number


def _numpy_array(kind: Any, shape: Any, code: Any) -> _NumpyArray:
    if not isinstance(kind, _Name) or kind.name != "ndarray" or shape != (0,):
        raise _Refused("has an array that NumPy did not write")
    return _NumpyArray()


def _set(members: Any) -> set[str]:
    if not isinstance(members, list):
        raise _Refused("has a set that Python did not write")
    names = _names(members)
    members.clear()  # or a file could make a thousand big sets of one big list
    return names


def _encode(text: Any, encoding: Any) -> _Blob:
    """How protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding != "latin1" or text.startswith("PK"):  # an archive would be read whole
        raise _Refused("has bytes that Python did not write")
    return _Blob(text, 0, len(text))


def _reconstructor(kind: Any, base: Any, state: Any) -> _Object | _Mapping:
    """How protocols before 2 make an object."""
    if not isinstance(kind, _Name) or not isinstance(base, _Name) or base.name != "object" or state is not None:
        raise _Refused("has an object that Python did not write")
    return _new(kind)


def _new(kind: Any) -> _Object | _Mapping:
    """An object of the class ``kind``, without ever making one."""
    if not isinstance(kind, _Name) or (kind.module, kind.name) not in _CLASSES:
        raise _Refused(f"makes an object of {kind if isinstance(kind, _Name) else 'something that is no class'}")
    return _Mapping() if kind.name == "EasyDict" else _Object(kind.name)


def _names(values: list[Any]) -> set[str]:
    """``values`` as keys. Only texts are: the hash of a nested tuple could take for ever."""
    if not all(isinstance(value, str) for value in values):
        raise _Refused("has a dictionary or set whose keys are not names")
    return set(values)


def _mapping() -> _Mapping:
    return _Mapping()


_BUILTINS = ("builtins", "__builtin__")
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")

_CALLS: _Table = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstruct_persistent_obj,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("collections", "OrderedDict"): _mapping,
    ("diffusers.configuration_utils", "FrozenDict"): _mapping,
    ("numpy", "dtype"): _numpy_type,
    ("numpy", "ndarray"): None,
    **{(module, "scalar"): _numpy_scalar for module in _NUMPY},
    **{(module, "_reconstruct"): _numpy_array for module in _NUMPY},
    **{(module, "set"): _set for module in _BUILTINS},
    **{(module, "object"): None for module in _BUILTINS},
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copy_reg", "_reconstructor"): _reconstructor,
}
"""What may be called, and what then happens instead; None: it may only be named."""

_UNET_BLOCKS = "CrossAttnDownBlock2D CrossAttnUpBlock2D DownBlock2D UNetMidBlock2DCrossAttn UpBlock2D"
_CLASSES: _Table = {
    (module, name): None
    for module, names in {
        "dnnlib.util": "EasyDict",
        "torch.nn.modules.activation": "GELU Mish ReLU SiLU",
        "torch.nn.modules.container": "ModuleDict ModuleList Sequential",
        "torch.nn.modules.conv": "Conv2d",
        "torch.nn.modules.dropout": "Dropout",
        "torch.nn.modules.linear": "Identity Linear",
        "torch.nn.modules.normalization": "GroupNorm LayerNorm",
        "torch.nn.modules.sparse": "Embedding",
        "diffusers.models.activations": "ApproximateGELU GEGLU GELU",
        "diffusers.models.attention": "BasicTransformerBlock FeedForward",
        "diffusers.models.attention_processor": "Attention AttnProcessor AttnProcessor2_0 XFormersAttnProcessor",
        "diffusers.models.downsampling": "Downsample2D",
        "diffusers.models.embeddings": "TimestepEmbedding Timesteps",
        "diffusers.models.lora": "LoRACompatibleConv LoRACompatibleLinear",
        "diffusers.models.resnet": "Downsample2D ResnetBlock2D Upsample2D",
        "diffusers.models.transformer_2d": "Transformer2DModel",
        "diffusers.models.transformers.transformer_2d": "Transformer2DModel",
        "diffusers.models.unet_2d_blocks": _UNET_BLOCKS,
        "diffusers.models.unets.unet_2d_blocks": _UNET_BLOCKS,
        "diffusers.models.unet_2d_condition": UNET,
        "diffusers.models.unets.unet_2d_condition": UNET,
        "diffusers.models.upsampling": "Upsample2D",
    }.items()
    for name in names.split()
}
"""Of what there may be objects. Modules moved between versions of diffusers."""

_STORAGES: _Table = {
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
"""What a storage may be of: the only names within one."""

_NUMBERS = {
    **{"f8": "d", "f4": "f", "f2": "e", "b1": "?"},
    **{"i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H", "u1": "B"},
}


# The machine


def _nothing_outside(identity: Any) -> Any:
    raise _Refused("refers to something outside itself")


class _Machine:
    """Follows one pickle's operations over records.

    Args:
        stream: Where the pickle begins; it is left where the pickle ends.
        table: The names that the pickle may use.
        budget: What it may cost.
        fetch: What an identity stands for that the pickle refers to.
    """

    def __init__(
        self, stream: _Stream, table: _Table, budget: Budget, fetch: Callable[[Any], Any] = _nothing_outside
    ) -> None:
        self.stream, self.table, self.budget, self.fetch = stream, table, budget, fetch
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle holds."""
        operations = pickletools.genops(cast(IO[bytes], self.stream))
        for operation, argument, _ in operations:
            self.budget.step()
            if operation.name == "STOP":
                return self.stack.pop()
            if operation.name not in _OPERATIONS:
                raise _Refused(f"uses the pickle operation {operation.name}, which no network needs")
            _OPERATIONS[operation.name](self, argument)
        raise EOFError

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def protocol(self, number: int) -> None:
        if number > 5:
            raise _Refused("is a pickle of an unknown protocol")

    def blob(self, data: bytes) -> None:
        if isinstance(self.stream, mmap.mmap):
            self.push(_Blob(self.stream, self.stream.tell() - len(data), len(data)))
        else:
            self.push(_Blob(data, 0, len(data)))

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """What lies above the last mark; both go."""
        above, self.stack = self.stack, self.marks.pop()
        return above

    def top(self, count: int) -> list[Any]:
        """The last ``count``, which go."""
        if count > len(self.stack):
            raise EOFError
        above = self.stack[-count:]
        del self.stack[-count:]
        return above

    def memoize(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _Refused("appends to what is no list")
        self.stack[-1].extend(values)

    def add(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], set):
            raise _Refused("adds to what is no set")
        self.stack[-1].update(_names(values))

    def set_items(self, pairs: list[Any]) -> None:
        target = _bare(self.stack[-1])
        if not isinstance(target, dict) or len(pairs) % 2:
            raise _Refused("sets items of what is no dictionary")
        _names(pairs[::2])
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def dictionary(self, pairs: list[Any]) -> None:
        self.push({})
        self.set_items(pairs)

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in self.table:
            raise _Refused(f"asks for {_shown(module)}.{_shown(name)}, which no network needs and which could run code")
        self.push(_Name(module, name))

    def reduce(self, called: Any, arguments: Any) -> None:
        make = self.table[called.module, called.name] if isinstance(called, _Name) else None
        if not isinstance(make, FunctionType) or not isinstance(arguments, tuple):
            raise _Refused(f"calls {called if isinstance(called, _Name) else 'something'}, which no network needs")
        try:
            self.push(make(*arguments))
        except (TypeError, ValueError, struct.error) as error:
            raise _Refused(f"calls {called} with arguments that it does not take") from error

    def new(self, kind: Any, arguments: Any) -> None:
        if arguments != ():
            raise _Refused("makes an object with arguments, which no network needs")
        self.push(_new(kind))

    def build(self, state: Any) -> None:
        target, state = self.stack[-1], _bare(state)
        match target, state:
            case _Object(), dict() if not target.state:
                target.state = state
            case _NumpyType(), (_, order, *_):
                target.order = order
            case (_Mapping(), dict()) | (_NumpyArray(), tuple()):
                pass  # a mapping's attributes and an array's numbers are nobody's business
            case _:
                raise _Refused("gives an object a state that it cannot have")


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.mark(),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _Machine.blob),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.top(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.top(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.top(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.marked()),
    "APPEND": lambda machine, _: machine.append(machine.top(1)),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "ADDITEMS": lambda machine, _: machine.add(machine.marked()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.dictionary(machine.marked()),
    "SETITEM": lambda machine, _: machine.set_items(machine.top(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    **dict.fromkeys(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"), _Machine.memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.top(2)),
    "REDUCE": lambda machine, _: machine.reduce(*machine.top(2)),
    "NEWOBJ": lambda machine, _: machine.new(*machine.top(2)),
    "BUILD": lambda machine, _: machine.build(*machine.top(1)),
    "BINPERSID": lambda machine, _: machine.push(machine.fetch(*machine.top(1))),
}
"""All that a pickle may do. What is not here can't be done: INST, OBJ, NEWOBJ_EX, EXT1, PERSID, NEXT_BUFFER and the like."""
