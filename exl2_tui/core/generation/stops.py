"""StopStrings: holds text back while it could still become a stop string."""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Watches streamed text for strings that end it.

    Text is given out as soon as no stop string can begin in it; the text of a stop string itself is never given out.
    Token boundaries do not matter. If several stop strings occur, the one that begins first counts.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(dict.fromkeys(s for s in strings if s))
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Adds text; returns what may be shown now and whether a stop string was reached, which ends the stream."""
        held = self._held + text
        starts = [start for start in map(held.find, self._strings) if start >= 0]
        if starts:
            self._held = ""
            return held[: min(starts)], True
        keep = max((_overlap(held, stop) for stop in self._strings), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """The text still held back, once it is certain that no more follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
