"""The header of a safetensors file, read strictly.

A file is: 8 bytes little-endian header length, that many bytes of JSON (an object padded with spaces), then the data.
The header comes from strangers, so every number in it is checked against the file's real size before anything is
allocated for it, and the JSON is walked entry by entry: a general parser would turn 60 MB of "[[[[" into gigabytes.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from exl2_tui.core.errors import CheckpointError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 64 << 20  # the largest real ones, mixtures of experts in one file, have about 20 MB
MAX_TENSORS = 250_000
MAX_METADATA_BYTES = 4 << 20
MAX_RANK = 8

_DTYPES_BY_BITS = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"),
    16: ("I16", "U16", "F16", "BF16"),
    32: ("I32", "U32", "F32"),
    64: ("I64", "U64", "F64", "C64"),
}
DTYPE_BITS = {dtype: bits for bits, dtypes in _DTYPES_BY_BITS.items() for dtype in dtypes}

_SPACE = re.compile(rb"[ \t\n\r]*")
_KEY = re.compile(rb'("(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f]){1,512}")[ \t\n\r]*:[ \t\n\r]*')
_ENTRY = re.compile(rb"(\{[^{}]{0,1024}\})[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. dtype is the safetensors name; offset counts bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def read_header(stream: BinaryIO, size: int, path: Path) -> dict[str, TensorInfo]:
    """All tensors of an open file of `size` bytes, in the order of their data.

    Raises CheckpointError for anything that is not a whole, well-formed safetensors file.
    """
    prefix = stream.read(LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        raise CheckpointError(
            f"expected a safetensors file, found {len(prefix)} bytes", file=path, hint="Download the file again"
        )
    length = int.from_bytes(prefix, "little")
    if length > size - LENGTH_BYTES:
        raise CheckpointError(
            f"expected a header within the file's {size} bytes, found a header length of {length}",
            file=path,
            hint="The file is cut off or no safetensors file; download it again",
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"expected a header of at most {MAX_HEADER_BYTES} bytes, found {length}", file=path)
    text = stream.read(length)
    if len(text) < length:
        raise CheckpointError(f"expected {length} header bytes, found {len(text)}", file=path)
    data_start = LENGTH_BYTES + length
    tensors: dict[str, TensorInfo] = {}
    for name, entry in _entries(text, path):
        if name in tensors:
            raise CheckpointError("the header names this tensor twice", file=path, tensor=name)
        if len(tensors) == MAX_TENSORS:
            raise CheckpointError(f"expected at most {MAX_TENSORS} tensors, found more", file=path)
        tensors[name] = _tensor(name, entry, data_start, size, path)
    ordered = sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes))
    _check_tiling(ordered, data_start, size, path)
    return {info.name: info for info in ordered}


def _check_tiling(ordered: list[TensorInfo], data_start: int, size: int, path: Path) -> None:
    """Raises CheckpointError unless the tensors cover the data without overlap, hole or rest."""
    end = data_start
    for info in ordered:
        if info.offset != end:
            fault = "overlaps the one before it" if info.offset < end else "leaves a hole before it"
            raise CheckpointError(
                f"expected data at byte {end - data_start}, found {info.offset - data_start}: it {fault}",
                file=path,
                tensor=info.name,
            )
        end += info.nbytes
    if end != size:
        raise CheckpointError(
            f"expected a file of {end} bytes by its header, found {size}",
            file=path,
            hint="The file is damaged; download it again",
        )


def _tensor(name: str, entry: dict[str, object], data_start: int, size: int, path: Path) -> TensorInfo:
    def fail(expected: str, found: object) -> CheckpointError:
        return CheckpointError(f"expected {expected}, found {_shown(found)}", file=path, tensor=name)

    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise fail("the keys dtype, shape and data_offsets", sorted(entry))
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise fail("a known dtype", dtype)
    dims = _whole_numbers(shape)
    if dims is None or len(dims) > MAX_RANK:
        raise fail(f"a shape of at most {MAX_RANK} whole numbers", shape)
    span = _whole_numbers(offsets)
    if span is None or len(span) != 2:
        raise fail("two data offsets", offsets)
    begin, end = span
    if not begin <= end <= size - data_start:
        raise fail(f"data offsets within {size - data_start} bytes", list(span))
    bits = math.prod(dims) * DTYPE_BITS[dtype]
    if bits != 8 * (end - begin):
        size_text = bits // 8 if bits % 8 == 0 else bits / 8
        raise fail(f"{size_text} bytes for {dtype} {list(dims)}", end - begin)
    return TensorInfo(name, sys.intern(dtype), dims, path, data_start + begin, end - begin)


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    """The value as a tuple if it is a list of integers from 0 to 2**63 - 1 (true and false are none), else None."""
    if not isinstance(value, list) or not all(type(number) is int and 0 <= number < 1 << 63 for number in value):
        return None
    return tuple(value)


def _shown(value: object) -> str:
    """A stranger's value, short and without control characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _reject_number(text: str) -> object:
    raise ValueError(f"{text[:20]} is no whole number")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entry = dict(pairs)
    if len(entry) != len(pairs):
        raise ValueError("a key twice")
    return entry


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_float=_reject_number, parse_constant=_reject_number)


def _entries(text: bytes, path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """(name, object) of each tensor in a header; the entry __metadata__ is checked and left out."""

    def fail(expected: str, position: int) -> CheckpointError:
        found = _shown(text[position : position + 24].decode("latin-1")) if position < len(text) else "its end"
        return CheckpointError(f"expected {expected} at byte {position} of the header, found {found}", file=path)

    if not text.startswith(b"{"):
        raise fail("'{'", 0)
    position = _after_space(text, 1)
    more = text[position : position + 1] != b"}"
    metadata_seen = False
    while more:
        key = _KEY.match(text, position)
        if key is None:
            raise fail("a tensor name in quotes and a colon", position)
        if key.group(1) == b'"__metadata__"':
            end = _metadata_end(text, key.end())
            if end is None or metadata_seen:
                raise fail("one __metadata__ object of strings", key.end())
            metadata_seen = True
        else:
            entry = _ENTRY.match(text, key.end())
            if entry is None:
                raise fail("an object with dtype, shape and data_offsets", key.end())
            try:
                yield _name(key.group(1)), _DECODER.decode(entry.group(1).decode())
            except (ValueError, RecursionError) as error:  # json and UTF-8 errors are ValueErrors
                raise fail("a tensor's name and object", position) from error
            end = entry.end()
        position = end
        more = text[position : position + 1] == b","
        if more:
            position = _after_space(text, position + 1)
    if text[position : position + 1] != b"}":
        raise fail("',' or '}'", position)
    if text[position + 1 :].strip(b" \t\n\r"):
        raise fail("nothing but padding", position + 1)


def _name(quoted: bytes) -> str:
    """The name in a quoted JSON string. Raises ValueError for one that cannot be printed as it is."""
    name = json.loads(quoted.decode())
    if not isinstance(name, str) or not name.isprintable():
        raise ValueError("name not printable")
    return name


def _after_space(text: bytes, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _metadata_end(text: bytes, position: int) -> int | None:
    """The place after a JSON object that maps strings to strings, or None if there is none at `position`."""
    # Latin-1 gives each byte one character, so that the decoder's positions are byte positions.
    head = text[position : position + MAX_METADATA_BYTES].decode("latin-1")
    try:
        value, length = _DECODER.raw_decode(head)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        return None
    return _after_space(text, position + length)
