"""GGUF files of zeros, written by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def header_bytes(architecture: str, shapes: Mapping[str, tuple[int, ...]], more: bytes = b"", count: int = 0) -> bytes:
    """A header of version 3; ``more`` are ``count`` facts more, as bytes."""
    facts = _text("general.architecture") + struct.pack("<I", 8) + _text(architecture) + more
    tensors = b"".join(
        _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]) + struct.pack("<IQ", 8, 0)
        for name, shape in shapes.items()
    )
    return b"GGUF" + struct.pack("<IQQ", 3, len(shapes), 1 + count) + facts + tensors


def list_fact(name: str, kind: int, values: bytes, count: int) -> bytes:
    """A fact that is a list of ``count`` values."""
    return _text(name) + struct.pack("<IIQ", 9, kind, count) + values


def write(file: Path, architecture: str, shapes: Mapping[str, tuple[int, ...]], nbytes: int = 0) -> Path:
    """The file, with a hole of ``nbytes`` where weights would be."""
    header = header_bytes(architecture, shapes)
    with file.open("wb") as out:
        out.write(header)
        out.truncate(len(header) + nbytes)
    return file
