"""TextRows: lines of text as rows of a width. Where every line begins is known; only rows that are asked for are made.

So a text of 100,000 lines costs a number per line, and a screenful of it costs a screenful. Knows no widget.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from textual.content import Content
from textual.selection import Selection

from exl2_tui.segments import ShownLine
from exl2_tui.widgets.recent import Recent
from exl2_tui.widgets.wrap import TAB, count_rows, wrap

FOUND = "$input-selection-foreground on $found"
CURRENT = "bold reverse"
NARROWEST = 8  # cells; text is wrapped no narrower than this
KEPT = 512  # lines whose rows are kept

_BLANK = Content("")


@dataclass(frozen=True, slots=True)
class Match:
    """An occurrence of the pattern in one line: characters [start, end) of its body. first: it begins here."""

    number: int
    start: int
    end: int
    first: bool


class TextRows:
    """width: cells, 0 until it is known. lines may only be changed by `replace`."""

    def __init__(self) -> None:
        self.width = 0
        self.lines: list[ShownLine] = []
        self._gaps: list[bool] = []
        self._tops = [0]  # the row at which each line begins, its blank row included; at the end, the height
        self._made: Recent[int, tuple[ShownLine, Content, list[Content]]] = Recent(KEPT)
        self._pattern: re.Pattern[str] | None = None
        self._current = -1
        self._matches: dict[int, list[Match]] | None = None  # by line; None: to be looked for

    @property
    def height(self) -> int:
        return self._tops[-1]

    def top(self, line: int) -> int:
        """The row at which a line begins, its blank row included; of the line after the last, the height."""
        return self._tops[line]

    def same(self, start: int, lines: Sequence[ShownLine], gaps: Sequence[bool]) -> int:
        """How many of `lines` stand at `start` already."""
        place = zip(self.lines[start:], self._gaps[start:], lines, gaps, strict=False)
        for count, (line, gap, other, other_gap) in enumerate(place):
            if line is not other or gap != other_gap:
                return count
        return min(len(self.lines) - start, len(lines))

    def first_row(self, line: int) -> int:
        """The row in which the text of a line begins."""
        return self._tops[line] + self._gaps[line]

    def replace(self, start: int, lines: Sequence[ShownLine], gaps: Sequence[bool]) -> None:
        """Puts `lines` in place of all from `start` on. gaps: whether each has a blank row above (not its own gap)."""
        self.lines[start:] = lines
        self._gaps[start:] = gaps
        self._matches = None
        self._measure(start)

    def lay_out(self, width: int) -> None:
        """Counts all rows again, for another width."""
        self.width = width
        self._made.clear()
        self._measure(0)

    def _measure(self, start: int) -> None:
        if not self.width:
            return
        del self._tops[start + 1 :]
        top = self._tops[-1]
        for line, gap in zip(self.lines[start:], self._gaps[start:], strict=True):
            top += gap + count_rows(line.plain, self._room(line))
            self._tops.append(top)

    def _room(self, line: ShownLine) -> int:
        return max(NARROWEST, self.width - cell_len(line.bar) - cell_len(line.lead))

    def line_at(self, row: int) -> int:
        """The line to which a row belongs."""
        return max(0, min(bisect_right(self._tops, row), len(self.lines)) - 1)

    def row(self, row: int) -> tuple[str, Content]:
        """What stands in a row: the bar, and the text. The text is the same object as long as it is the same text."""
        line = self.line_at(row)
        inner = row - self.first_row(line) if line < len(self.lines) else -1
        if inner < 0:
            return "", _BLANK
        rows = self._rows(line)
        return self.lines[line].bar, rows[inner] if inner < len(rows) else _BLANK

    def _rows(self, number: int) -> list[Content]:
        line = self.lines[number]
        body = self._lit(number)
        made = self._made.get(number)
        if made is not None and made[0] is line and made[1].is_same(body):
            return made[2]
        wrapped = wrap(body, self._room(line))
        rows = [_prefixed(line.hang if index else line.lead, row) for index, row in enumerate(wrapped)]
        return self._made.put(number, (line, body, rows))[2]

    @property
    def content(self) -> Content:
        """All rows."""
        return Content("\n").join(self.row(row)[1] for row in range(self.height))

    # Finding

    def find(self, pattern: re.Pattern[str] | None, current: int) -> int:
        """Lights up every match, `current` of them more than the others; returns how many there are."""
        self._current = current
        if pattern is not self._pattern:
            self._pattern, self._matches = pattern, None
        found = self._found()
        return sum(match.first for matches in found.values() for match in matches)

    @property
    def finding(self) -> bool:
        return self._pattern is not None

    def row_of(self, number: int) -> int:
        """The row in which a match begins; 0 if there is none of that number."""
        for line, matches in self._found().items():
            for match in matches:
                if match.number == number and match.first:
                    inner = sum(1 for begin, _, _ in self._places(line) if 0 < begin <= match.start)
                    return self.first_row(line) + inner
        return 0

    def _found(self) -> dict[int, list[Match]]:
        if self._matches is None:
            self._matches = {}
            for number, match in enumerate(self._pattern.finditer(self._text()) if self._pattern is not None else ()):
                for line, start, end in self._parts(*match.span()):
                    first = self._begins[line] + start == match.start()
                    self._matches.setdefault(line, []).append(Match(number, start, end, first))
        return self._matches

    def _text(self) -> str:
        """The text in which matches are looked for; leaves behind where in it the lines begin."""
        self._begins = [0]
        for line in self.lines:
            self._begins.append(self._begins[-1] + len(line.plain) + 1)
        return "\n".join(line.plain for line in self.lines)

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """A piece of the text by lines: (line, from, to)."""
        line = bisect_right(self._begins, start) - 1
        while line < len(self.lines) and self._begins[line] < max(end, start + 1):
            begin = self._begins[line]
            yield line, max(0, start - begin), min(len(self.lines[line].plain), end - begin)
            line += 1

    def _lit(self, number: int) -> Content:
        body = self.lines[number].body
        for match in self._found().get(number, ()) if self._pattern is not None else ():
            body = body.stylize(CURRENT if match.number == self._current else FOUND, match.start, match.end)
        return body

    # Copying

    def copied(self, selection: Selection) -> str:
        """The selected text, as it was before it was wrapped. Offsets are a row and characters from its beginning."""
        if not self.lines:
            return ""
        start = selection.start.transpose if selection.start is not None else (0, 0)
        end = selection.end.transpose if selection.end is not None else (self.height, 0)
        parts: list[str] = []
        for number in range(self.line_at(start[0]), self.line_at(min(end[0], self.height - 1)) + 1):
            top = self._tops[number]
            pieces = [("\n", 0, _BLANK)] if self._gaps[number] else []
            for row, (joint, skip, text) in enumerate([*pieces, *self._pieces(number)], top):
                if start[0] <= row <= end[0]:
                    first = max(skip, start[1]) if row == start[0] else skip
                    last = end[1] if row == end[0] else len(text.plain)
                    parts += [joint if parts else "", text.plain[first:last]]
        return "".join(parts)

    def _pieces(self, number: int) -> Iterator[tuple[str, int, Content]]:
        """Rows of a line with what joins them to the row before, and how many characters of them that replaces."""
        line = self.lines[number]
        before = 0
        for index, (begin, end, row) in enumerate(self._places(number)):
            between = line.plain.expandtabs(TAB)[before:begin]
            wrapped = index > 0 and "\n" not in between
            yield between if wrapped else "\n", len(line.hang) if wrapped else 0, row
            before = end

    def _places(self, number: int) -> Iterator[tuple[int, int, Content]]:
        """Rows of a line with the characters [begin, end) of its text that stand in them."""
        line = self.lines[number]
        text = line.plain.expandtabs(TAB)
        at = 0
        for index, row in enumerate(self._rows(number)):
            piece = row.plain[len(line.hang if index else line.lead) :]
            begin = max(at, text.find(piece, at))
            at = begin + len(piece)
            yield begin, at, row


def _prefixed(prefix: str, row: Content) -> Content:
    return Content.styled(prefix, "$secondary") + row if prefix else row
