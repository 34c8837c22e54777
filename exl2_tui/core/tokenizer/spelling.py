"""How vocabularies spell bytes: the decoder section of tokenizer.json, reduced to one token at a time.

Every decoder in use for language models maps each token to bytes on its own, apart from a space at the very start.
That is what makes streaming exact and cheap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exl2_tui.core.errors import TokenizerError

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Character to byte of byte-level BPE: printable Latin-1 stands for itself, the others for U+0100 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(rest)}


BYTE_ALPHABET = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class Spelling:
    """Turns a vocabulary entry into the bytes it stands for.

    byte_level: entries are written in BYTE_ALPHABET. byte_fallback: entries <0xNN> are single bytes. replacements are
    applied in order. leading_spaces: how many spaces decoding removes from the start of a whole text.
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    leading_spaces: int = 0

    def to_bytes(self, piece: str, *, added: bool = False) -> bytes:
        """added: the entry was put in beside the vocabulary and is spelled as plain text in byte-level ones."""
        if self.byte_fallback and (match := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        if self.byte_level and not added and all(char in BYTE_ALPHABET for char in piece):
            return bytes([BYTE_ALPHABET[char] for char in piece])
        return piece.encode()


def read_spelling(decoder: Any, path: Path) -> Spelling:
    """The decoder section of tokenizer.json; raises TokenizerError for kinds no language model uses."""
    byte_level = byte_fallback = False
    replacements: list[tuple[str, str]] = []
    leading = 0
    steps = _flatten(decoder)
    for step in steps:
        kind = step.get("type")
        pattern = step.get("pattern")
        if kind == "ByteLevel":
            byte_level = True
        elif kind == "ByteFallback":
            byte_fallback = True
        elif kind == "Metaspace":
            replacements.append((str(step.get("replacement", "▁")), " "))
            leading = 0 if step.get("prepend_scheme") == "never" else 1
        elif kind == "Replace" and isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            replacements.append((pattern["String"], str(step.get("content", ""))))
        elif kind == "Strip" and step.get("content") == " ":
            leading = int(step.get("start", 0))
        elif kind != "Fuse":
            raise TokenizerError(
                f"decoder {kind!r} is not one of ByteLevel, ByteFallback, Metaspace, Replace, Strip and Fuse",
                file=path,
                hint="This tokenizer belongs to a kind of model that does not generate text",
            )
    return Spelling(byte_level, byte_fallback, tuple(replacements), leading)


def _flatten(decoder: Any) -> list[dict[str, Any]]:
    if decoder is None:
        return [{"type": None}]
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for part in decoder.get("decoders", []) for step in _flatten(part)]
