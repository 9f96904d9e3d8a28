"""The header of a GGUF file, as llama.cpp and ComfyUI-GGUF write them: names and shapes of weights, none of which is read.

Layout (ggml's docs/gguf.md, versions 2 and 3): "GGUF", version, counts of tensors and of facts; the facts by name; of each tensor
its name, sides (fastest first), kind of packing and place. ComfyUI-GGUF adds ``comfy.gguf.orig_shape.NAME`` where sides were
joined to be packed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..files import AGAIN, UnreadableFile, reading
from .budget import Budget, Refused

MAGIC = b"GGUF"
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9
_SHAPE = "comfy.gguf.orig_shape."
_LONGEST = 1 << 26  # bytes of a header; a text encoder's has its vocabulary


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
        architecture: Such as "flux", "t5"; "" where it says none.
        shapes: Of the weights, by name, slowest side first, as torch has them.
        nbytes: Of all weights, packed.
    """

    architecture: str
    shapes: dict[str, tuple[int, ...]]
    nbytes: int


def is_gguf(file: Path) -> bool:
    """Whether the file begins as one. Raises: OSError: It can't be opened."""
    with file.open("rb") as opened:
        return opened.read(4) == MAGIC


def read_gguf_header(file: Path) -> GgufHeader:
    """Names, shapes and size of the weights.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableFile: It is no GGUF file, is cut short, or takes more to read than any network.
    """
    with reading(file.name), file.open("rb") as opened:
        try:
            return _Reader(opened, file.stat().st_size).header()
        except (struct.error, EOFError, UnicodeDecodeError) as error:
            raise UnreadableFile(f"{file.name} is a GGUF file, cut short or damaged: {AGAIN}.") from error
        except Refused as error:
            raise UnreadableFile(f"{file.name} {error}: use another file.") from error


class _Reader:
    """One pass over a header.

    Raises, all of it: EOFError: It ends too early. Refused: It goes on for too long.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.budget, self.left = file, size, Budget(0), _LONGEST

    def header(self) -> GgufHeader:
        """All of it."""
        if self.bytes(4) != MAGIC or not 2 <= self.number("<I") <= 3:
            raise EOFError("no GGUF of version 2 or 3")
        tensors, count = self.number("<Q"), self.number("<Q")
        facts: dict[str, Any] = {}
        for _ in range(count):
            self.budget.step()
            name = self.text()
            facts[name] = self.value(self.number("<I"))
        shapes: dict[str, tuple[int, ...]] = {}
        for _ in range(tensors):
            self.budget.step()
            name, sides = self.text(), self.number("<I")
            if sides > 8:
                raise EOFError("more sides than tensors have")
            shape = tuple(self.number("<Q") for _ in range(sides))[::-1]
            self.bytes(12)  # how it is packed, and where
            shapes[name] = tuple(facts.get(_SHAPE + name) or shape)
        return GgufHeader(str(facts.get("general.architecture", "")), shapes, self.size - self.file.tell())

    def bytes(self, count: int) -> bytes:
        """The next ``count``."""
        self.left -= count
        if self.left < 0:
            raise Refused("has a longer header than any network")
        found = self.file.read(count)
        if len(found) < count:
            raise EOFError("cut short")
        return found

    def number(self, kind: str) -> Any:
        """The next number."""
        return struct.unpack(kind, self.bytes(struct.calcsize(kind)))[0]

    def text(self) -> str:
        """The next text."""
        return self.bytes(self.number("<Q")).decode()

    def value(self, kind: int) -> Any:
        """The next fact; of lists only those of numbers, short as shapes are, are kept."""
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            if kind not in _NUMBERS:
                raise EOFError("a fact of no kind")
            return self.number(_NUMBERS[kind])
        inner, count = self.number("<I"), self.number("<Q")
        if inner == _TEXT:
            for _ in range(count):
                self.budget.step()
                self.bytes(self.number("<Q"))
            return None
        if inner not in _NUMBERS:
            raise EOFError("a list of lists")
        values = self.bytes(count * struct.calcsize(_NUMBERS[inner]))
        return list(struct.unpack(f"<{count}{_NUMBERS[inner][1]}", values)) if count <= 8 else None
