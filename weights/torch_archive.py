"""What PyTorch saves, read as data: state dicts in both of its formats, training checkpoints, and TorchScript archives.

``torch.load(weights_only=True)`` builds whatever a file describes, at whatever cost, and ends at the first name that isn't on its
list, be it a scheduler's class beside the weights; ``torch.jit.load`` loads a program. Here ``stack_machine`` follows the file's
pickle under one ``Budget``, and ``stored_tensors`` checks its tensors, which are views of the mapped file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import UnsafeCheckpoint, refuse_impostors
from ..networks.limits import MOST_NESTED, MOST_PARTS
from .budget import Budget, Refused
from .stack_machine import ORDERED_DICT, VALUES, Blob, Dictionary, Machine, Name, Object, Table, bare
from .stored_tensors import STORAGES, TENSORS, Storage, Tensors, View, read_archive, read_legacy, rebuild_tensor
from .zip_directory import ZIP, entries_of

Facts = dict[str, int | float | str]
_DEEPEST = 64  # containers within containers; a trainer's checkpoint has five or six
_PICKLED = b"\x80"  # how pickles since protocol 2 begin


class _Inert:
    """An object of a class that nobody asked for: whatever is done to it is forgotten."""

    __slots__ = ()


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> View:
    """A tensor of a kind of number that has no storage of its own, such as fp8."""
    if not isinstance(dtype, Name) or not isinstance(storage, Storage) or (dtype.module, dtype.name) not in _DTYPES:
        raise Refused("has a tensor of a kind that no network needs")
    typed = storage.as_type(_DTYPES[dtype.module, dtype.name])
    return rebuild_tensor(typed, offset, size, stride, requires_grad, hooks, metadata)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> View:
    return rebuild_tensor(storage, offset, size, stride, False, None)


def _size(numbers: Any) -> tuple[Any, ...]:
    if not isinstance(numbers, tuple):
        raise Refused("has a shape that is none")
    return numbers


def _counter(counts: Any = None) -> Dictionary:
    if counts is not None and not isinstance(bare(counts), dict):
        raise Refused("has counts of nothing")
    return Dictionary(bare(counts) or {})


def _device(*_: Any) -> _Inert:
    return _Inert()


_DTYPES = {("torch", name): kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
_LENIENT: Table = {
    **STORAGES, ("torch", "ComplexFloatStorage"): torch.complex64, ("torch", "ComplexDoubleStorage"): torch.complex128,
    ("torch.storage", "UntypedStorage"): torch.uint8, ("torch", "UntypedStorage"): torch.uint8,
    **TENSORS, **ORDERED_DICT, **dict.fromkeys(_DTYPES),
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3, ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
}  # fmt: skip
_STRICT: Table = {
    **_LENIENT, **VALUES, ("torch", "Size"): _size, ("torch", "device"): _device, ("collections", "Counter"): _counter,
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
    def take(contents: Any, tensors: Tensors, budget: Budget) -> Any:
        tensors.mapped = mapped
        return _Tree(tensors, budget).plain(contents)

    return _read(path, _Strict, take, legacy=True)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Facts]:
    """The tensors under ``state_dict`` in a training checkpoint (or at its top), and the plain values beside them.

    ``module.`` before every name is left off, as several processes put it there.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't an archive of PyTorch 1.6 or newer, is damaged, or holds no tensors.
    """
    return _read(path, _Lenient, lambda contents, tensors, _: _state_dict(contents, tensors))


def read_script(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The parameters and buffers in a TorchScript archive, such as OpenAI's CLIPs, by name; its program is left alone.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't such an archive, is damaged, or holds no tensors.
    """
    return _read(path, _Lenient, lambda contents, tensors, budget: _attributes(contents, tensors, budget, ""))


def is_script(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an archive with a program in it; a damaged one isn't."""
    with Path(path).open("rb") as opened:
        if opened.read(4) != ZIP:
            return False
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return any("/code/" in name for name in entries_of(data, Budget(len(data))))
            except Exception:  # whoever reads it will say what is wrong with it
                return False


def _read(path: str | os.PathLike[str], machine: type[Machine], take: Callable[..., Any], legacy: bool = False) -> Any:
    file = Path(path)
    refuse_impostors(file)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        budget, zipped = Budget(len(data)), data[:4] == ZIP
        try:
            blob, names = Blob(data, 0, len(data)), _STRICT if machine is _Strict else _LENIENT
            if zipped or not legacy:
                contents = read_archive(blob, data, budget, names, machine)
            elif data[:1] == _PICKLED:
                contents, _end = read_legacy(data, blob, budget, names, machine)
            else:
                raise EOFError("not PyTorch's older format")
            return take(bare(contents), Tensors(file, budget), budget)
        except Refused as refused:
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


class _Strict(Machine):
    """The machine for state dicts and what may lie beside them; optimisers number their states."""

    def keys(self, keys: list[Any]) -> Iterable[Any]:
        if not all(type(key) in (str, int, float, bool) for key in keys):  # a nested tuple's hash could take for ever
            raise Refused("has a dictionary whose keys are neither names nor numbers")
        return keys


class _Lenient(Machine):
    """The machine for files that hold more than a network: names outside its table make inert objects instead of ending it."""

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("names something that is no name")
        self.push(Name(module, name))

    def reduce(self, called: Any, arguments: Any) -> None:
        if isinstance(called, Name) and (called.module, called.name) in self.table:
            super().reduce(called, arguments)
        else:
            self.push(_Inert())

    def new(self, kind: Any, arguments: Any) -> None:
        self.push(Object(str(kind)) if isinstance(kind, Name) else _Inert())

    def build(self, state: Any) -> None:
        state = bare(state)
        if isinstance(self.stack[-1], Object) and isinstance(state, dict) and not self.stack[-1].state:
            self.stack[-1].state = state

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], _Inert | Object):
            super().append(values)

    def add(self, values: list[Any]) -> None:
        """Sets hold nothing that a network is made of."""

    def set_items(self, pairs: list[Any]) -> None:
        target = bare(self.stack[-1])
        if isinstance(target, dict):
            # Optimisers number their states. Only plain keys: the hash of a nested tuple could take for ever.
            items = zip(pairs[::2], pairs[1::2], strict=True)
            target.update((key, value) for key, value in items if type(key) in (str, int))


# ------------------------------------------------------------------------------------------------------ contents


class _Tree:
    """Records as plain containers with tensors in them; what is held twice is one object again."""

    def __init__(self, tensors: Tensors, budget: Budget) -> None:
        self.tensors, self.budget = tensors, budget
        self.converted: dict[int, Any] = {}

    def plain(self, value: Any, depth: int = 0) -> Any:
        """``value`` in Python's own types."""
        value = bare(value)
        self.budget.step()
        if isinstance(value, View):
            return self.tensors.take(value)
        if isinstance(value, Blob):
            self.budget.unfold(value.length)
            return value.read()
        if not isinstance(value, dict | list | tuple):
            return value
        if id(value) not in self.converted:
            if depth == _DEEPEST:
                raise Refused("has containers within containers without end")
            if isinstance(value, dict):
                plain: Any = {key: self.plain(item, depth + 1) for key, item in value.items()}
            else:
                plain = type(value)(self.plain(item, depth + 1) for item in value)
            self.converted[id(value)] = plain
        return self.converted[id(value)]


def _state_dict(contents: Any, tensors: Tensors) -> tuple[dict[str, Tensor], Facts]:
    if not isinstance(contents, dict):
        raise Refused("holds no dictionary")
    nested = bare(contents.get("state_dict"))
    weights = nested if isinstance(nested, dict) else contents
    views = {key: value for key, value in weights.items() if isinstance(key, str) and isinstance(value, View)}
    if not views:
        raise Refused("holds no tensors under 'state_dict'")
    prefix = "module." if all(key.startswith("module.") for key in views) else ""
    facts = {key: value for key, value in contents.items() if isinstance(key, str) and type(value) in (int, float, str)}
    return {key[len(prefix) :]: tensors.take(view) for key, view in views.items()}, facts


def _attributes(module: Any, tensors: Tensors, budget: Budget, prefix: str, depth: int = 0) -> dict[str, Tensor]:
    """The tensors among an object's attributes, and those of the objects within it."""
    if not isinstance(module, Object) or depth > 4 * MOST_NESTED:
        raise Refused("holds no module, or modules within modules without end")
    attributes: dict[str, Tensor] = {}
    for name, value in module.state.items():
        budget.step()
        if not isinstance(name, str):
            continue
        if isinstance(value, View):
            attributes[prefix + name] = tensors.take(value)
        elif isinstance(value, Object):
            attributes |= _attributes(value, tensors, budget, f"{prefix}{name}.", depth + 1)
        if len(attributes) > MOST_PARTS:
            raise Refused("has more parts than any network")
    if depth == 0 and not attributes:
        raise Refused("holds no tensors")
    return attributes
