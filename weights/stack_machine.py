"""A pickle's operations followed by a small stack machine of our own, over inert records: nothing is imported or called.

A name is looked up in an exact table and stands for one of our record makers. An operation, a name or an argument that no network
needs ends the reading, wherever in the file it is; steps and bytes are counted in one ``Budget``. What is read here is a pickle's
own: containers, numbers, classes; ``stored_tensors`` has the records of PyTorch's tensors.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import IO, Any, cast

from .budget import Budget, Refused

Stream = mmap.mmap | io.BytesIO
Table = Mapping[tuple[str, str], Any]
"""The (module, name) that a pickle may name. What each stands for: a function of ours is called in its place, of a record class
(``Object``, ``Dictionary``) there may be objects, and everything else may only be named."""


# The records


@dataclass(eq=False, slots=True)
class Name:
    """A class or function that the file names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{shown(self.module)}.{shown(self.name)}"


@dataclass(eq=False, slots=True)
class Blob:
    """Bytes in the file (as letters, before protocol 3). Most of it is weights, so they stay there until they are needed."""

    source: bytes | str | mmap.mmap
    start: int
    length: int

    def read(self, most: int | None = None) -> bytes:
        """The first bytes, ``most`` of them if given."""
        length = self.length if most is None else min(most, self.length)
        part = self.source[self.start : self.start + length]
        return part.encode("latin-1") if isinstance(part, str) else part


@dataclass(eq=False, slots=True)
class Object:
    """An object of a class that the file names (``persistent``: whose code the file brings); its state comes later."""

    name: str
    persistent: bool = False
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Dictionary:
    """An ``OrderedDict``, ``EasyDict`` or ``FrozenDict``."""

    items: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class NumpyType:
    """Of a NumPy number, such as "f8"; ``order`` is its bytes'."""

    code: str
    order: str = "<"


class NumpyArray:
    """An array. No network is made of any, so nobody asks what is in it."""

    __slots__ = ()


def bare(value: Any) -> Any:
    """``value`` as a plain dictionary, if it is a dictionary of any kind."""
    return value.items if isinstance(value, Dictionary) else value


def shown(text: object) -> str:
    """The start of a text out of the file, fit for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:60]) if isinstance(text, str) else "something"


# What the names stand for. Arguments are checked here, at once, even of what nobody will use


def _ordered_dict() -> Dictionary:
    return Dictionary()


def _numpy_type(code: Any, align: Any, copy: Any) -> NumpyType:
    if not isinstance(code, str):
        raise Refused("has a number of unknown type")
    return NumpyType(code)


def _numpy_scalar(dtype: Any, blob: Any) -> bool | int | float:
    if not isinstance(dtype, NumpyType) or dtype.code not in _NUMBERS or not isinstance(blob, Blob):
        raise Refused("has a number of unknown type")
    (number,) = struct.unpack((">" if dtype.order == ">" else "<") + _NUMBERS[dtype.code], blob.read(9))
    return number


_NUMBERS = {
    **{"f8": "d", "f4": "f", "f2": "e", "b1": "?"},
    **{"i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H", "u1": "B"},
}


def _set(members: Any) -> set[str]:
    if not isinstance(members, list):
        raise Refused("has a set that Python did not write")
    names = set(checked_names(members))
    members.clear()  # or a file could make a thousand big sets of one big list
    return names


def _encode(text: Any, encoding: Any) -> Blob:
    """How protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding != "latin1" or text.startswith("PK"):  # an archive would be read whole
        raise Refused("has bytes that Python did not write")
    return Blob(text, 0, len(text))


def new_object(kind: Any, table: Table) -> Object | Dictionary:
    """An object of the class ``kind``, without ever making one.

    Raises:
        Refused: ``table`` has no such class.
    """
    record = table.get((kind.module, kind.name)) if isinstance(kind, Name) else None
    if record is Dictionary:
        return Dictionary()
    if record is not Object:
        raise Refused(f"makes an object of {kind if isinstance(kind, Name) else 'something that is no class'}")
    return Object(kind.name)


def checked_names(keys: list[Any]) -> list[str]:
    """``keys`` of a dictionary or set, if they are texts. Only these: the hash of a nested tuple could take for ever.

    Raises:
        Refused: One isn't.
    """
    if not all(isinstance(key, str) for key in keys):
        raise Refused("has a dictionary or set whose keys are not names")
    return keys


NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
BUILTINS = ("builtins", "__builtin__")

ORDERED_DICT: Table = {("collections", "OrderedDict"): _ordered_dict}
VALUES: Table = {
    ("numpy", "dtype"): _numpy_type,
    **{(module, "scalar"): _numpy_scalar for module in NUMPY},
    **{(module, "set"): _set for module in BUILTINS},
    ("_codecs", "encode"): _encode,
}
"""Numbers of NumPy's, sets and bytes."""


# The machine


def _nothing_outside(identity: Any) -> Any:
    raise Refused("refers to something outside itself")


class Machine:
    """Follows one pickle's operations over records.

    Args:
        stream: Where the pickle begins; it is left where the pickle ends.
        table: The names that the pickle may use.
        budget: What it may cost.
        fetch: What an identity stands for that the pickle refers to.
    """

    def __init__(self, stream: Stream, table: Table, budget: Budget, fetch: Callable[[Any], Any] = _nothing_outside) -> None:
        self.stream, self.table, self.budget, self.fetch = stream, table, budget, fetch
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle holds.

        Raises:
            Refused: It asks for more than a network needs.
            EOFError, ValueError, IndexError, KeyError, AttributeError...: It is damaged.
        """
        operations = pickletools.genops(cast(IO[bytes], self.stream))
        for operation, argument, _ in operations:
            self.budget.step()
            if operation.name == "STOP":
                return self.stack.pop()
            if operation.name not in _OPERATIONS:
                raise Refused(f"uses the pickle operation {operation.name}, which no network needs")
            _OPERATIONS[operation.name](self, argument)
        raise EOFError

    def push(self, value: Any) -> None:
        """Put ``value`` on the stack."""
        self.stack.append(value)

    def protocol(self, number: int) -> None:
        """Refuse protocols that aren't known."""
        if number > 5:
            raise Refused("is a pickle of an unknown protocol")

    def blob(self, data: bytes) -> None:
        """Push bytes, without a copy where the file is mapped."""
        if isinstance(self.stream, mmap.mmap):
            self.push(Blob(self.stream, self.stream.tell() - len(data), len(data)))
        else:
            self.push(Blob(data, 0, len(data)))

    def mark(self) -> None:
        """Begin a new stack above this one."""
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
        """Remember the topmost under ``index``, or the next free one."""
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def append(self, values: list[Any]) -> None:
        """Append to the list on top."""
        if not isinstance(self.stack[-1], list):
            raise Refused("appends to what is no list")
        self.stack[-1].extend(values)

    def add(self, values: list[Any]) -> None:
        """Add to the set on top."""
        if not isinstance(self.stack[-1], set):
            raise Refused("adds to what is no set")
        self.stack[-1].update(checked_names(values))

    def set_items(self, pairs: list[Any]) -> None:
        """Set items of the dictionary on top; ``pairs`` are keys and values in turn."""
        target = bare(self.stack[-1])
        if not isinstance(target, dict) or len(pairs) % 2:
            raise Refused("sets items of what is no dictionary")
        target.update(zip(self.keys(pairs[::2]), pairs[1::2], strict=True))

    def keys(self, keys: list[Any]) -> Iterable[Any]:
        """``keys``, if a dictionary may have them."""
        return checked_names(keys)

    def dictionary(self, pairs: list[Any]) -> None:
        """Push a dictionary of ``pairs``."""
        self.push({})
        self.set_items(pairs)

    def name(self, module: Any, name: Any) -> None:
        """Push a name of the table's."""
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in self.table:
            raise Refused(f"asks for {shown(module)}.{shown(name)}, which no network needs and which could run code")
        self.push(Name(module, name))

    def reduce(self, called: Any, arguments: Any) -> None:
        """Push what our function for the name ``called`` makes of ``arguments``."""
        make = self.table[called.module, called.name] if isinstance(called, Name) else None
        if not isinstance(make, FunctionType) or not isinstance(arguments, tuple):
            raise Refused(f"calls {called if isinstance(called, Name) else 'something'}, which no network needs")
        try:
            self.push(make(*arguments))
        except (TypeError, ValueError, struct.error) as error:
            raise Refused(f"calls {called} with arguments that it does not take") from error

    def new(self, kind: Any, arguments: Any) -> None:
        """Push an object of the class ``kind``."""
        if arguments != ():
            raise Refused("makes an object with arguments, which no network needs")
        self.push(new_object(kind, self.table))

    def build(self, state: Any) -> None:
        """Give the object on top its state."""
        target, state = self.stack[-1], bare(state)
        match target, state:
            case Object(), dict() if not target.state:
                target.state = state
            case NumpyType(), (_, order, *_):
                target.order = order
            case (Dictionary(), dict()) | (NumpyArray(), tuple()):
                pass  # a dictionary's attributes and an array's numbers are nobody's business
            case _:
                raise Refused("gives an object a state that it cannot have")


_OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": Machine.protocol,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.mark(),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), Machine.push),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), Machine.blob),
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
    **dict.fromkeys(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"), Machine.memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.top(2)),
    "REDUCE": lambda machine, _: machine.reduce(*machine.top(2)),
    "NEWOBJ": lambda machine, _: machine.new(*machine.top(2)),
    "BUILD": lambda machine, _: machine.build(*machine.top(1)),
    "BINPERSID": lambda machine, _: machine.push(machine.fetch(*machine.top(1))),
}
"""All that a pickle may do. What is not here can't be done: INST, OBJ, NEWOBJ_EX, EXT1, PERSID, NEXT_BUFFER and the like."""
