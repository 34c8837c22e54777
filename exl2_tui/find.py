"""Finding words in a chat: a pattern from what was typed, and where it occurs. No widgets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from exl2_tui.store.tree import Turn
from exl2_tui.text import clean


@dataclass(frozen=True, slots=True)
class Match:
    """The `number`-th occurrence, from 0, in the text of a turn."""

    turn: Turn
    number: int


def pattern_of(typed: str) -> re.Pattern[str] | None:
    """What to look for: the words in this order, with any white space between them; None for nothing.

    Upper case letters must match if there are any.
    """
    words = [re.escape(word) for word in clean(typed).split()]
    flags = 0 if any(letter.isupper() for letter in typed) else re.IGNORECASE
    return re.compile(r"\s+".join(words), flags) if words else None


def matches(turns: Sequence[Turn], pattern: re.Pattern[str]) -> list[Match]:
    """Every occurrence in these turns, in order."""
    return [Match(turn, number) for turn in turns for number, _ in enumerate(pattern.finditer(turn.text))]
