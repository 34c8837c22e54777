"""StreamDecoder: tokens in, whole characters out, as they arrive."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Joins the bytes of tokens and gives out every character as soon as its last byte is there.

    A token may end inside a character (byte fallback, byte-level BPE), so bytes are held back until it is complete.
    Each byte is looked at once: the cost of a push does not grow with the text. U+FFFD stands for bytes that can never
    become a character (one per maximal broken sequence, as in the Unicode standard), never for some that still may.
    """

    def __init__(self, text_bytes: Callable[[int], bytes], skipped: frozenset[int], leading_spaces: int) -> None:
        """skipped: ids that add nothing. leading_spaces: how many are removed from the very start of the text."""
        self._text_bytes = text_bytes
        self._skipped = skipped
        self._leading_spaces = leading_spaces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, often empty."""
        if token_id in self._skipped:
            return ""
        data = self._text_bytes(token_id)
        if self._leading_spaces and data:
            kept = data.lstrip(b" ")
            removed = min(len(data) - len(kept), self._leading_spaces)
            data = data[removed:]
            self._leading_spaces = 0 if data else self._leading_spaces - removed
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The end of the text: U+FFFD if it stops inside a character, else nothing. The decoder is done afterwards."""
        return self._decoder.decode(b"", final=True)
