"""tokenizer.model as data: the protobuf wire format of SentencePiece's ModelProto, read far enough to check and adjust.

Source: sentencepiece_model.proto. Field numbers: ModelProto 1 pieces, 2 trainer_spec, 3 normalizer_spec; SentencePiece
1 piece, 3 type; TrainerSpec 46 bos_piece, 47 eos_piece; NormalizerSpec 2 precompiled_charsmap, 3 add_dummy_prefix.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exl2_tui.core.errors import TokenizerError
from exl2_tui.core.tokenizer.backend import MAX_VOCAB

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Piece:
    """One vocabulary entry; `raw` is its message as stored."""

    text: str
    kind: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A checked tokenizer.model. `rest` holds every top-level field except the pieces, as stored."""

    pieces: tuple[Piece, ...]
    rest: bytes
    add_dummy_prefix: bool
    bos_piece: str
    eos_piece: str

    @classmethod
    def parse(cls, data: bytes, path: Path) -> ModelFile:
        """Raises TokenizerError for anything that is not a well-formed model with a vocabulary."""
        try:
            return cls._parse(data)
        except (ValueError, IndexError) as error:
            raise TokenizerError(
                f"not a SentencePiece model: {error}", file=path, hint="Fetch the file again from the model's page"
            ) from error

    @classmethod
    def _parse(cls, data: bytes) -> ModelFile:
        pieces: list[Piece] = []
        rest = bytearray()
        dummy_prefix, bos, eos = True, "<s>", "</s>"
        for number, value, raw in _fields(data):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
                if len(pieces) > MAX_VOCAB:
                    raise ValueError(f"more than {MAX_VOCAB} pieces")
                continue
            rest += raw
            if number == 2 and isinstance(value, bytes):
                for inner, setting, _ in _fields(value):
                    if inner == 46 and isinstance(setting, bytes):
                        bos = setting.decode()
                    elif inner == 47 and isinstance(setting, bytes):
                        eos = setting.decode()
            elif number == 3 and isinstance(value, bytes):
                for inner, setting, _ in _fields(value):
                    if inner == 2 and isinstance(setting, bytes):
                        _check_charsmap(setting)
                    elif inner == 3:
                        dummy_prefix = bool(setting)
        if not pieces:
            raise ValueError("it has no vocabulary")
        if len({piece.text for piece in pieces}) != len(pieces):
            raise ValueError("a piece occurs twice")
        return cls(tuple(pieces), bytes(rest), dummy_prefix, bos, eos)

    def serialize(self, *, control: frozenset[int], dummy_prefix: bool) -> bytes:
        """The model with the pieces `control` (ids) turned into control pieces and the dummy prefix set.

        Protobuf lets a later value of a field replace an earlier one, so adjusting is appending.
        """
        out = bytearray()
        for index, piece in enumerate(self.pieces):
            raw = piece.raw + b"\x18\x03" if index in control else piece.raw
            out += b"\x0a" + _varint(len(raw)) + raw
        return bytes(out + self.rest + b"\x1a\x02\x18" + bytes([dummy_prefix]))


def _piece(message: bytes) -> Piece:
    text, kind = "", NORMAL
    for number, value, _ in _fields(message):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 3 and isinstance(value, int):
            kind = value
    if not text:
        raise ValueError("a piece is empty")
    if kind not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE):
        raise ValueError(f"a piece has the unknown type {kind}")
    return Piece(text, kind, message)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """(field number, value, the field as stored); groups, which nothing uses, are refused."""
    at = 0
    while at < len(data):
        begin = at
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == _VARINT:
            value, at = _read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            value, at = data[at : at + size], at + size
        elif kind == _BYTES:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"wire type {kind} at byte {begin}")
        if number == 0 or at > len(data):
            raise ValueError(f"the field at byte {begin} is cut off or has no number")
        yield number, value, data[begin:at]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits before byte {at}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _check_charsmap(blob: bytes) -> None:
    """The normalization table is a trie the library walks without bounds checks: every step must stay inside.

    Layout: trie size in bytes (uint32), trie of uint32 units (darts-clone), zero-terminated strings. From unit i the
    walk goes to i ^ offset(i) ^ byte; a leaf (bit 31) holds a position in the strings.
    """
    if not blob:
        return
    size = int.from_bytes(blob[:4], "little")
    strings = len(blob) - 4 - size
    if len(blob) < 4 or size % 4 or size < 1024 or strings < 1 or blob[-1] != 0:
        raise ValueError("the normalization table has wrong sizes")
    units = array("I", blob[4 : 4 + size])
    if sys.byteorder == "big":
        units.byteswap()
    count = len(units)
    for index, unit in enumerate(units):
        if unit >> 31:
            if unit & 0x7FFFFFFF >= strings:
                raise ValueError("the normalization table points outside its strings")
        elif (index ^ ((unit >> 10) << ((unit & 0x200) >> 6))) | 0xFF >= count:
            raise ValueError("the normalization table points outside itself")
