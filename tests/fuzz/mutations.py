"""Changes to a file that a seed decides: blind ones to its bytes, and such as know its format and so get further in."""

from __future__ import annotations

import copy
import io
import json
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

Change = Callable[[Random, bytes], bytes]

_NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 10**4, 10**6, 10**7, 2**31 - 1, 2**31, 10**9, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**40)
_ODD: tuple[Any, ...] = (
    None, True, "", "0", "x", [], {}, [[]], 0.5, -0.0, 1e9, 1e308, float("nan"), float("inf"), "\0", "../x", "\ud800",
)  # fmt: skip


def raw(rng: Random, data: bytes) -> bytes:
    """A few edits anywhere, most of them near the start or the end, where headers and directories are."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = _place(rng, len(made))
        length = min(rng.choice((1, 1, 2, 4, 8, 64, 4096)), len(made) - place)
        match rng.randrange(8):
            case 0:
                made[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                made[place : place + length] = rng.randbytes(length)
            case 2:
                del made[place : place + length]
            case 3:
                made[place:place] = made[place : place + length] * rng.choice((1, 2, 50))
            case 4:
                number = rng.choice(_NUMBERS) & (2**64 - 1)
                made[place : place + 8] = number.to_bytes(8, rng.choice(("little", "big")))
            case 5:
                del made[place:]
            case 6:
                other = _place(rng, len(made))
                made[place : place + length] = made[other : other + length]
            case 7:
                made[place : place + length] = bytes([rng.choice((0, 255, 32, 48))]) * length
    return bytes(made)


def _place(rng: Random, size: int) -> int:
    far = rng.random() ** rng.choice((1, 4, 8))
    return min(int(size * (far if rng.random() < 0.6 else 1 - far)), size)


# ----------------------------------------------------------------------------------------------------------- JSON


_LARGEST = 1_000_000  # letters that a part may be repeated to


def json_value(rng: Random, value: Any) -> Any:
    """``value`` with one or more of its parts replaced, left out, doubled or nested."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder, key = rng.choice(_parts([value]))
        match rng.randrange(8):
            case 0 | 1:
                holder[key] = rng.choice(_NUMBERS)
            case 2:
                holder[key] = copy.deepcopy(rng.choice(_ODD))
            case 3 if len(holder) > 1 and holder is not value:
                holder.pop(key)
            case 4 if len(json.dumps(value)) < _LARGEST:
                other, place = rng.choice(_parts([value]))
                holder[key] = json.loads(json.dumps(other[place]))
            case 5:
                holder[key] = [holder[key]] * min(rng.choice((1, 2, 100, 2_000)), 1 + _LARGEST // len(json.dumps(holder[key])))
            case 6:
                holder[key] = {"a": holder[key], "": None}
            case 7 if isinstance(holder[key], str) and len(holder[key]) < _LARGEST:
                holder[key] = rng.choice((holder[key] * rng.choice((2, 1_000)), holder[key][:-1], holder[key] + "\n"))
            case 7 if isinstance(holder[key], int | float):
                holder[key] = holder[key] * rng.choice((-1, 2, 1_000, 10**7))
    return value


def _parts(root: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [root]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], list | dict):
                waiting.append(holder[key])
    return found


def json_text(rng: Random, data: bytes) -> bytes:
    """A JSON file with other values, or nested without end, or with blind edits."""
    match rng.randrange(8):
        case 0 | 1:
            return raw(rng, data)
        case 2:
            place = rng.randrange(len(data) + 1)
            return data[:place] + rng.choice((b"[", b'{"a":')) * rng.choice((10, 50_000)) + data[place:]
    return json.dumps(json_value(rng, json.loads(data))).encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------------------------------------------- safetensors


def safetensors(rng: Random, data: bytes) -> bytes:
    """Another header: sizes, types, places, and settings within the metadata."""
    if rng.random() < 0.25:
        return raw(rng, data)
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.get("__metadata__", {})
    match rng.randrange(4):
        case 0 | 1 if metadata:
            key = rng.choice(sorted(metadata))
            metadata[key] = json_text(rng, metadata[key].encode()).decode("utf-8", "replace") if _is_json(metadata[key]) else "?"
        case 2:
            header = json_value(rng, header)
        case _:
            _resized(rng, header)
    text = json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(text)) + text + body


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _resized(rng: Random, header: dict[str, Any]) -> None:
    """A tensor of another shape for the same bytes, of none for none, of another type or name, or more of them."""
    key = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[key]
    match rng.randrange(6):
        case 0:
            entry["shape"] = [*entry["shape"], 1] if rng.random() < 0.5 else entry["shape"][::-1]
        case 1:
            start = entry["data_offsets"][0]
            entry |= {"shape": [rng.choice((2**20, 2**31, 2**40)), 0, *entry["shape"][2:]], "data_offsets": [start, start]}
        case 2:
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "Q"))
        case 3:
            header[rng.choice((key + ".x", key.replace("0", "1"), "module." + key, "x" * 5_000))] = header.pop(key)
        case 4:
            number = next((part for part in key.split(".") if part.isdigit()), "0")
            for i in range(rng.choice((2, 100, 500))):
                name = key.replace(f".{number}.", f".{i}.")
                header[name] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        case 5:
            header.pop(key)


# --------------------------------------------------------------------------------------------- pickles and archives

_TWICE = b"(t" + b"".join(b"\x94h%c\x86" % i for i in range(60))
_SNIPPETS = (
    *(bytes([code]) for code in b"N}])(tuseaRb.012Q\x93\x85\x86\x94"), b"h\0", b"h\1", b"j\0\0\0\0", b"]" * 500, b"(" * 500,
    b"\x8a\x08\0\0\0\0\0\0\0\x7f", b"\x8a\x01\xff", b"M\0\xff", b"K\0", b"J\xff\xff\xff\xff", b"X\1\0\0\0a",
    b"cposix\nsystem\n(X\x0a\0\0\0touch PWNDtR", b"cbuiltins\neval\n(X\4\0\0\0PWNDtR", b"c__main__\nX\n)\x81}b",
    b"ccollections\nOrderedDict\n)R", b"ctorch\nFloatStorage\n", b"ctorch.storage\n_load_from_bytes\n",
    _TWICE, b"}" + _TWICE + b"Ns", b"B\4\0\0\0PK\3\4", b"\x8c\5" b"empty", b"G" + struct.pack(">d", 1e300), b"\x80\x05",
    b"I" + b"9" * 400 + b"\n",
)  # fmt: skip


def pickled(rng: Random, data: bytes) -> bytes:
    """Operations left out, doubled, moved or put in; whatever follows the last pickle stays."""
    if rng.random() < 0.2:
        return raw(rng, data)
    operations, rest = _operations(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(operations) + 1)
        part = operations[place : place + rng.choice((1, 1, 2, 10, 60))]
        match rng.randrange(6):
            case 0:
                del operations[place : place + len(part)]
            case 1:
                operations[place:place] = part * rng.choice((1, 2, 200))
            case 2 | 3:
                operations[place:place] = [rng.choice(_SNIPPETS)]
            case 4:
                other = rng.randrange(len(operations) + 1)
                operations[other:other] = part
            case 5:
                numbers = [i for i, operation in enumerate(operations) if operation[:1] in b"KMJ\x8a"]
                if numbers:
                    operations[rng.choice(numbers)] = pickle.dumps(rng.choice(_NUMBERS), 2)[2:-1]
    return b"".join(operations) + rest


def _operations(data: bytes) -> tuple[list[bytes], bytes]:
    stream, found, last = io.BytesIO(data), [], 0
    while data[last : last + 1] == b"\x80":
        places = [place for _, _, place in pickletools.genops(stream)]
        ends = [*places[1:], stream.tell()]
        found += [data[start:end] for start, end in zip(places, ends, strict=True)]
        last = stream.tell()
    return found, data[last:]


def archived(rng: Random, data: bytes) -> bytes:
    """Another pickle in the archive; entries packed, doubled, renamed, cut; blind edits."""
    if rng.random() < 0.25:
        return raw(rng, data)
    target, made = rng.randrange(8), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        for name in names:
            content, packing = old.read(name), zipfile.ZIP_STORED
            if name.endswith("data.pkl") and target < 5:
                content = pickled(rng, content)
            elif rng.randrange(len(names)) == 0:
                match target:
                    case 5:
                        packing = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
                    case 6:
                        content = raw(rng, content)
                    case 7:
                        name = rng.choice((names[0], name + "x", "../x", name.split("/")[0] + "/code/x", "a/b/c/data.pkl"))
            new.writestr(name, content, packing)
    return made.getvalue()


# ------------------------------------------------------------------------------------------------------ other texts


def table(rng: Random, data: bytes) -> bytes:
    """A table or a list of lines with quotation marks, long fields, other encodings."""
    place = _place(rng, len(data))
    signs = (b'"', b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n\n", b"," * 1_000, b"caption,prompt\n")
    put = rng.choice((*signs, b'"' + b"x" * 200_000))
    return data[:place] + put + data[place:] if rng.random() < 0.6 else raw(rng, data)
