"""What the two tokenizer libraries are asked for, and the parts a prompt is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Part = str | int | tuple[int, ...]
"""A piece of a prompt: text (which never becomes a control token), one control token, or ids taken as they are."""

MAX_VOCAB = 1_000_000
"""Ids beyond this are a broken file: the largest vocabularies in use have about 262,000 entries."""


class Backend(Protocol):
    """One vocabulary with its algorithm. All ids are below `size`; every method is safe to call from any thread."""

    @property
    def size(self) -> int:
        """Largest id + 1, added tokens included."""

    @property
    def leading_spaces(self) -> int:
        """Spaces that full decoding removes from the start of a text, because encoding puts them there."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of a whole text; special: control pieces in it become their tokens."""

    def encode_parts(self, parts: Sequence[Part]) -> list[list[int]]:
        """Ids per part. Neighbouring texts are encoded as one; a token that spans two belongs to where it starts."""

    def piece(self, token_id: int) -> str | None:
        """The entry as the vocabulary spells it."""

    def token_id(self, piece: str) -> int | None: ...

    def text_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text, as UTF-8 that may end inside a character; control tokens: their spelling."""
