"""Wrapping text: the rows that Content.wrap would make, ten times as fast for text of the usual characters.

An open paragraph is wrapped again with every piece that arrives, while the engine waits for the interpreter.
"""

from __future__ import annotations

import re
from functools import partial

from rich._wrap import divide_line
from rich.cells import cell_len
from textual.content import Content

TAB = 8  # cells, as Content has it
# Characters of one cell, of which every one but the space is part of a word.
_USUAL = re.compile("[ -~\u00a1-\u00ac\u00ae-\u02ff\u0391-\u03a9\u03b1-\u03c9\u0410-\u044f\u2010-\u2027]*").fullmatch


def fits(text: str, room: int) -> bool:
    """Whether a text certainly takes one row, as it is."""
    if "\n" in text or "\t" in text:
        return False
    return len(text) <= room if text.isascii() else cell_len(text) <= room


def count_rows(text: str, room: int) -> int:
    """How many rows `wrap` makes of it."""
    if fits(text, room):
        return 1
    return sum(len(_breaks(line.expandtabs(TAB), room)) + 1 for line in text.split("\n"))


def wrap(content: Content, room: int) -> list[Content]:
    """The rows of a text, at least one, without white space at their ends."""
    if fits(content.plain, room):
        return [_stripped(content)]
    rows: list[Content] = []
    for line in content.split("\n", allow_blank=True):
        whole = line.expand_tabs(TAB) if "\t" in line.plain else line
        rows += map(_stripped, whole.divide(_breaks(whole.plain, room)))
    return rows


def _stripped(row: Content) -> Content:
    return row.rstrip() if row.plain[-1:].isspace() else row


def _breaks(line: str, room: int) -> list[int]:
    """Where the rows after the first begin."""
    if not _USUAL(line) or line[:1] == " ":
        return _any_breaks(line, room)
    breaks: list[int] = []
    start = 0
    while len(line) - start > room:
        end = start + room
        if line[end] == " ":  # the word before it just fits
            rest = line[end:].lstrip(" ")
            if not rest:
                break
            start = len(line) - len(rest)
        else:
            start = line.rfind(" ", start, end) + 1
            if start <= (breaks[-1] if breaks else 0):  # a word that is longer than a row
                return _any_breaks(line, room)
        breaks.append(start)
    return breaks


_any_breaks = partial(divide_line, fold=True)
