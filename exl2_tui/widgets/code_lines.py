"""CodeLines: a fence as lines that are coloured when they are drawn, in parts, so that none is coloured as a whole."""

from __future__ import annotations

from functools import lru_cache

from pygments.token import Token  # type: ignore[import-untyped, unused-ignore]
from textual.content import Content
from textual.highlight import HighlightTheme, highlight

from exl2_tui.segments import Code, Line, ShownLine
from exl2_tui.widgets.recent import Recent

PART_LINES = 80  # lines coloured at once
PARTS_KEPT = 8  # of one fence
BAR = "▌ "
HIGHLIGHT_LIMIT = 10_000  # characters of a part; longer ones (minified files) stay plain

_BLANK = Content("")


class CodeTheme(HighlightTheme):
    """Few colours, all of them checked for contrast."""

    STYLES = {  # noqa: RUF012 - the base class fixes the type
        Token.Comment: "italic $secondary",
        Token.Keyword: "$accent",
        Token.Keyword.Constant: "$warning",
        Token.Literal.Number: "$warning",
        Token.Literal.String: "$success",
        Token.Literal.String.Doc: "italic $success",
        Token.Name.Builtin: "$accent",
        Token.Name.Class: "bold",
        Token.Name.Function: "bold",
        Token.Name.Decorator: "$warning",
        Token.Name.Tag: "$accent",
        Token.Name.Attribute: "$warning",
        Token.Operator.Word: "$accent",
        Token.Generic.Deleted: "$error",
        Token.Generic.Inserted: "$success",
        Token.Generic.Heading: "bold",
    }


class CodeLine:
    """A line of a fence; number counts from 0, -1 is the row with the language."""

    __slots__ = ("_owner", "bar", "number", "plain")
    lead = hang = ""
    gap = False

    def __init__(self, owner: CodeLines, number: int, plain: str, bar: str) -> None:
        self._owner = owner
        self.number = number
        self.plain = plain
        self.bar = bar

    @property
    def body(self) -> Content:
        return self._owner.coloured(self.number)


class CodeLines:
    """The lines of one fence. Those that are complete stay the same objects while it grows."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self._bar = " " * code.indent + BAR
        self._head = Line(Content.styled(code.language, "$secondary"), bar=self._bar) if code.language else None
        self._complete: list[CodeLine] = []
        self._parts: Recent[int, tuple[tuple[int, str], list[Content]]] = Recent(PARTS_KEPT)

    def lines(self) -> list[ShownLine]:
        """The language if it is known, then the code; at least one."""
        code = self.code
        for number in range(len(self._complete), len(code.lines)):
            self._complete.append(CodeLine(self, number, code.lines[number].expandtabs(4), self._bar))
        shown: list[ShownLine] = [self._head] if self._head is not None else []
        shown += self._complete
        if code.tail or not code.lines:
            shown.append(CodeLine(self, len(code.lines), code.tail.expandtabs(4), self._bar))
        return shown

    def coloured(self, number: int) -> Content:
        """A line as it is now: one that comes later may change what it means."""
        code = self.code
        part, inner = divmod(number, PART_LINES)
        first, end = part * PART_LINES, (part + 1) * PART_LINES
        state = (min(len(code.lines), end), code.tail if len(code.lines) < end else "")
        known = self._parts.get(part)
        if known is None or known[0] != state:
            lines = [*code.lines[first:end], code.tail] if len(code.lines) < end else code.lines[first:end]
            text = "\n".join(line.expandtabs(4) for line in lines)
            known = self._parts.put(part, (state, _coloured(text, code.language)))
        return known[1][inner] if inner < len(known[1]) else _BLANK


@lru_cache(maxsize=32)
def _coloured(text: str, language: str) -> list[Content]:
    """Lines in colours; blank ones at the end may be missing."""
    known = language if len(text) <= HIGHLIGHT_LIMIT else ""
    return highlight(text, language=known or "text", theme=CodeTheme).split("\n", allow_blank=True)
