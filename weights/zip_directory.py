"""The directory of a zip archive, read as PyTorch's own reader needs it: what is stored, and where it lies.

Python's ``zipfile`` reads whatever there is before it can be asked what it will cost, and fails in half a dozen ways.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

from .budget import Budget, Refused

_END, _FAR_END, _FAR_PLACE, _ENTRY = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
ZIP = b"PK\3\4"
"""How an entry begins, and so an archive."""

_LONGEST_COMMENT = 65_535
_16, _32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED = 1

Data = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive: where its local header is, how many bytes it has, and whether they lie there as they are."""

    header: int
    length: int
    stored: bool

    def start(self, data: Data) -> int:
        """Where its bytes begin.

        Raises:
            EOFError: They aren't all in the archive.
        """
        if data[self.header : self.header + 4] != ZIP:
            raise EOFError("an entry of the archive isn't where its directory says")
        name, extra = struct.unpack_from("<HH", data, self.header + 26)
        start: int = self.header + 30 + name + extra
        if start + self.length > len(data):
            raise EOFError("an entry of the archive reaches past its end")
        return start

    def read(self, data: Data) -> bytes:
        """Its bytes, if they lie there as they are."""
        start = self.start(data)
        return data[start : start + self.length]


def entries_of(data: Data, budget: Budget) -> dict[str, Entry]:
    """The entries of an archive by name.

    Raises:
        Refused: Two have one name, or those that are stored claim more bytes than the archive has.
        EOFError, struct.error, UnicodeDecodeError: It is cut short or damaged.
    """
    count, place = _directory(data)
    budget.step(count)
    entries: dict[str, Entry] = {}
    for _ in range(count):
        if data[place : place + 4] != _ENTRY:
            raise EOFError("the archive's directory is cut short")
        flags, method = struct.unpack_from("<HH", data, place + 8)
        packed, length, name, extra, comment = struct.unpack_from("<IIHHH", data, place + 20)
        (header,) = struct.unpack_from("<I", data, place + 42)
        after = place + 46 + name
        key = data[place + 46 : after].decode()
        length, packed, header = _far(data[after : after + extra], length, packed, header)
        if key in entries:
            raise Refused("is an archive that PyTorch did not write")
        entries[key] = Entry(header, length, method == 0 and not flags & _ENCRYPTED and packed == length)
        place = after + extra + comment
    if sum(entry.length for entry in entries.values() if entry.stored) > len(data):
        raise Refused("is an archive that PyTorch did not write")
    return entries


def _directory(data: Data) -> tuple[int, int]:
    """How many entries there are, and where the first one is."""
    end = data.rfind(_END, max(0, len(data) - _LONGEST_COMMENT - 22))
    if end < 0:
        raise EOFError("the archive has no directory")
    count, _size, place = struct.unpack_from("<HII", data, end + 10)
    if end >= 20 and data[end - 20 : end - 16] == _FAR_PLACE and (count == _16 or _size == _32 or place == _32):
        (far,) = struct.unpack_from("<Q", data, end - 12)
        if data[far : far + 4] != _FAR_END:
            raise EOFError("the archive has no directory")
        count, _size, place = struct.unpack_from("<QQQ", data, far + 32)
    return count, place


def _far(extra: bytes, *values: int) -> tuple[int, ...]:
    """``values`` (length, packed length, place), taken from the zip64 record where they don't fit into 32 bits."""
    if _32 not in values:
        return values
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == 1:
            longer = iter(struct.unpack_from(f"<{size // 8}Q", extra, 4))
            return tuple(next(longer, value) if value == _32 else value for value in values)
        extra = extra[4 + size :]
    return values
