"""The strict safetensors header: what is accepted, and what each kind of damage is called."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from exl2_tui.core.checkpoint import header as header_module
from exl2_tui.core.checkpoint import open_file
from exl2_tui.core.errors import CheckpointError

Entry = dict[str, object]


def entry(dtype: object = "F16", shape: object = (2, 3), offsets: object = (0, 12)) -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(path: Path, header: bytes | dict[str, object], data: bytes | int = 12, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = bytes(data) if isinstance(data, int) else data
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


GOOD: dict[str, tuple[bytes | dict[str, object], int]] = {
    "empty": ({}, 0),
    "plain": ({"a": entry()}, 12),
    "metadata": ({"__metadata__": {"format": "pt", "x": 'a "quoted" } text'}, "a": entry()}, 12),
    "no metadata entries": ({"__metadata__": {}, "a": entry()}, 12),
    "metadata last": ({"a": entry(), "__metadata__": {"b": "c"}}, 12),
    "padding": (json.dumps({"a": entry()}).encode() + b"   \n ", 12),
    "spread out": (json.dumps({"a": entry(), "b": entry("U8", [1], [12, 13])}, indent=3).encode(), 13),
    "any order": ({"b": entry(offsets=[12, 24]), "a": entry()}, 24),
    "key order": (b'{"a":{"data_offsets":[0,4],"shape":[1],"dtype":"F32"}}', 4),
    "scalar": ({"a": entry("F32", [], [0, 4])}, 4),
    "no elements": ({"a": entry("F32", [0, 7], [0, 0]), "b": entry()}, 12),
    "escaped name": (b'{"a\\u00e4\\/b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    "other dtypes": ({"a": entry("F8_E4M3", [3], [0, 3]), "b": entry("F64", [1], [3, 11])}, 11),
    "four bits": ({"a": entry("F4", [6], [0, 3])}, 3),
}


@pytest.mark.parametrize("case", GOOD)
def test_accepted(file: Path, case: str) -> None:
    header, data = GOOD[case]
    opened = open_file(write(file, header, data))
    assert sum(info.nbytes for info in opened.tensors.values()) == data


def test_where_tensors_lie(file: Path) -> None:
    opened = open_file(write(file, {"b": entry(offsets=[12, 24]), "a": entry("BF16", [6])}, 24))
    assert list(opened.tensors) == ["a", "b"]
    start = file.stat().st_size - 24
    a, b = opened.tensors.values()
    assert (a.name, a.dtype, a.shape, a.file, a.offset, a.nbytes) == ("a", "BF16", (6,), file, start, 12)
    assert (b.offset, b.shape) == (start + 12, (2, 3))
    assert opened.header_bytes == start


TWO = {"a": entry(), "b": entry(offsets=[12, 24])}
BAD: dict[str, tuple[bytes | dict[str, object], int, str]] = {
    "no object": (b"[]", 0, "expected '{'"),
    "text": (b"hello", 0, "expected '{'"),
    "leading space": (b" {}", 0, "expected '{'"),
    "unclosed": (b'{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}', 12, "',' or '}'"),
    "trailing comma": (b'{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},}', 12, "a tensor name"),
    "rest": (b"{}x", 0, "nothing but padding"),
    "second object": (b"{}{}", 0, "nothing but padding"),
    "null padding": (b"{}\0\0", 0, "nothing but padding"),
    "twice": (json.dumps({"a": entry()})[:-1].encode() + b"," + json.dumps({"a": entry()})[1:].encode(), 12, "twice"),
    "twice escaped": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        2,
        "twice",
    ),
    "key twice": (b'{"a":{"dtype":"F16","dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}', 12, "name and object"),
    "no dtype": ({"a": {"shape": [2, 3], "data_offsets": [0, 12]}}, 12, "the keys dtype, shape and data_offsets"),
    "another key": ({"a": entry() | {"strides": [3, 1]}}, 12, "the keys dtype, shape and data_offsets"),
    "unknown dtype": ({"a": entry("F17")}, 12, "a known dtype, found 'F17'"),
    "dtype a number": ({"a": entry(16)}, 12, "a known dtype"),
    "dtype a list": ({"a": entry(["F16"])}, 12, "a known dtype"),
    "negative shape": ({"a": entry(shape=[-2, -3])}, 12, "whole numbers"),
    "fraction": ({"a": entry(shape=[2.0, 3])}, 12, "name and object"),
    "exponent": (b'{"a":{"dtype":"F16","shape":[2e0,3],"data_offsets":[0,12]}}', 12, "name and object"),
    "not a number": (b'{"a":{"dtype":"F16","shape":[NaN],"data_offsets":[0,12]}}', 12, "name and object"),
    "true": ({"a": entry(shape=[True, 6])}, 12, "whole numbers"),
    "shape a word": ({"a": entry(shape="23")}, 12, "whole numbers"),
    "nested shape": ({"a": entry(shape=[[2, 3]])}, 12, "whole numbers"),
    "many dimensions": ({"a": entry(shape=[1] * 9)}, 12, "at most 8"),
    "overflow": ({"a": entry(shape=[2**32, 2**32])}, 12, "bytes for F16"),
    "overflow to fit": ({"a": entry(shape=[2**62, 4, 6])}, 12, "bytes for F16"),
    "huge number": (b'{"a":{"dtype":"F16","shape":[' + b"9" * 900 + b'],"data_offsets":[0,12]}}', 12, "whole numbers"),
    "wrong size": ({"a": entry(shape=[2, 2])}, 12, "expected 8 bytes for F16 [2, 2], found 12"),
    "odd bits": ({"a": entry("F4", [5], [0, 3])}, 3, "expected 2.5 bytes"),
    "beyond the end": ({"a": entry(offsets=[0, 13])}, 12, "within 12 bytes"),
    "far beyond": ({"a": entry(shape=[2**60], offsets=[0, 2**61])}, 12, "within 12 bytes"),
    "backwards": ({"a": entry(offsets=[12, 0])}, 12, "within 12 bytes"),
    "negative offset": ({"a": entry(offsets=[-12, 0])}, 12, "two data offsets"),
    "one offset": ({"a": entry(offsets=[12])}, 12, "two data offsets"),
    "overlap": ({"a": entry(), "b": entry(offsets=[6, 18])}, 18, "overlaps"),
    "same place": ({"a": entry(), "b": entry()}, 12, "overlaps"),
    "hole": ({"a": entry(), "b": entry(offsets=[14, 26])}, 26, "hole"),
    "hole in front": ({"a": entry(offsets=[2, 14])}, 14, "hole"),
    "rest of data": ({"a": entry()}, 13, "by its header"),
    "only rest": ({}, 4, "by its header"),
    "cut off": (TWO, 20, "within 20 bytes"),
    "empty name": ({"": entry()}, 12, "a tensor name"),
    "control name": (b'{"a\\n":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}', 12, "name and object"),
    "escape name": (b'{"a\\u001b[2J":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}', 12, "name and object"),
    "surrogate": (b'{"\\ud800":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}', 12, "name and object"),
    "no utf-8": (b'{"\xff":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}', 12, "name and object"),
    "long name": ({"a" * 513: entry()}, 12, "a tensor name"),
    "not an object": (b'{"a":3}', 0, "an object with dtype"),
    "deep": (b'{"a":' + b"[" * 1000 + b"}", 0, "an object with dtype"),
    "deep shape": (b'{"a":{"shape":' + b"[" * 990 + b"}}", 0, "name and object"),
    "metadata a list": (b'{"__metadata__":[]}', 0, "__metadata__"),
    "metadata numbers": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "metadata nested": ({"__metadata__": {"a": {"b": "c"}}}, 0, "__metadata__"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', 0, "one __metadata__"),
    "metadata open": (b'{"__metadata__":{"a":"b', 0, "__metadata__"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(file: Path, case: str) -> None:
    header, data, message = BAD[case]
    with pytest.raises(CheckpointError) as caught:
        open_file(write(file, header, data))
    assert message in str(caught.value)
    assert caught.value.file == str(file)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("length", (13, 1 << 20, 2**63, 2**64 - 1))
def test_header_length_beyond_the_file(file: Path, length: int) -> None:
    with pytest.raises(CheckpointError, match="header length of"):
        open_file(write(file, b"{}", 10, length=length))


@pytest.mark.parametrize("size", range(8))
def test_shorter_than_a_length(file: Path, size: int) -> None:
    file.write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=f"found {size} bytes"):
        open_file(file)


@pytest.mark.parametrize("keep", (8, 9, 40, -1, -12))
def test_truncated(file: Path, keep: int) -> None:
    whole = write(file, TWO, 24).read_bytes()
    file.write_bytes(whole[:keep])
    with pytest.raises(CheckpointError):
        open_file(file)


def sparse(path: Path, header: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header)


ENTRY = '"%06d":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}'
HOSTILE: dict[str, Callable[[], bytes]] = {
    "brackets": lambda: b'{"a":' + b"[" * (40 << 20),
    "name": lambda: b'{"' + b"a" * (40 << 20),
    "escapes": lambda: b'{"__metadata__":{"a":"' + b'\\"' * (20 << 20),
    "metadata": lambda: b'{"__metadata__":{' + b'"":"",' * (8 << 20),
    "spaces": lambda: b"{" + b" " * (40 << 20),
    "too many tensors": lambda: ("{" + ",".join(ENTRY % i for i in range(60_000)) + "}").encode(),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_cost_little(file: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays near the size of the header's text, here up to 40 MB."""
    monkeypatch.setattr(header_module, "MAX_TENSORS", 50_000)
    text = HOSTILE[case]()
    sparse(file, text)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            open_file(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 128 << 20


def test_header_larger_than_the_limit_is_not_read(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write((65 << 20).to_bytes(8, "little"))
        stream.truncate(66 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="header of at most"):
            open_file(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
