"""TextStream: the text of a reply as it grows, and which tokens stand for the part already shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from exl2_tui.core.generation.stops import StopStrings


class Decoder(Protocol):
    """Tokens to whole characters, as `Tokenizer.stream` returns it."""

    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


class TextTokenizer(Protocol):
    """What generation needs of a tokenizer."""

    vocab_size: int

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]: ...
    def decode(self, ids: Iterable[int], *, continuation: bool = False) -> str: ...
    def stream(self, *, continuation: bool = False) -> Decoder: ...


class TextStream:
    """Tokens in; text to show and the tokens it consists of out.

    A token is given out once all its text is, so the tokens given out always spell the text given out (but for a
    leading space, see strip): what is kept of a reply can be run again and finds its tokens in the cache. `stopped`
    turns true when a stop string was reached. strip: whitespace at the very start is not shown.
    """

    def __init__(self, tokenizer: TextTokenizer, stop_strings: Iterable[str], *, strip: bool = False) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream(continuation=True)
        self._stops = StopStrings(stop_strings)
        self._waiting: deque[tuple[int, int, int]] = deque()  # token, where its text begins and ends
        self._decoded = 0  # characters decoded and given out, before stripping
        self._shown = 0
        self._part = ""  # the shown beginning of the first waiting token
        self._strip = strip
        self.stopped = False

    def push(self, token: int) -> tuple[str, tuple[int, ...]]:
        """Adds a token; returns the text that may be shown now and the tokens it completes, both often empty."""
        begin = self._decoded
        text = self._decoder.push(token)
        self._decoded += len(text)
        self._waiting.append((token, begin, self._decoded))
        shown, self.stopped = self._stops.push(text)
        return self._give(shown)

    def finish(self, *, cut: bool) -> tuple[str, tuple[int, ...]]:
        """What was held back, once no token follows.

        cut: the reply was ended from outside, so half a character at its end is dropped instead of marked as broken.
        """
        if self.stopped:
            return "", ()
        end = "" if cut else self._decoder.flush()
        self._decoded += len(end)
        text, tokens = self._give(self._stops.flush() + end)
        return text, tokens if cut else (*tokens, *(token for token, _, _ in self._waiting))

    def _give(self, text: str) -> tuple[str, tuple[int, ...]]:
        self._shown += len(text)
        # A token without text of its own may be the first half of a character: it leaves with the next one.
        whole = [i for i, (_, begin, end) in enumerate(self._waiting) if begin < end <= self._shown]
        tokens = [self._waiting.popleft()[0] for _ in range(whole[-1] + 1 if whole else 0)]
        begin = next((begin for _, begin, end in self._waiting if begin < end), self._shown)
        self._part = (self._part + text)[-(self._shown - begin) :] if begin < self._shown else ""
        if self.stopped and self._part:
            tokens += self._spell(self._part)
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        return text, tuple(tokens)

    def _spell(self, text: str) -> list[int]:
        """Tokens for the beginning of a token, cut by a stop string; none if the tokenizer cannot spell it alone."""
        ids = self._tokenizer.encode(text)
        return ids if self._tokenizer.decode(ids, continuation=True) == text else []
