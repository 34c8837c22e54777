"""CodeView: a fence, highlighted in parts, so that a line more never colours the whole block again."""

from __future__ import annotations

from typing import ClassVar

from pygments.token import Token  # type: ignore[import-untyped, unused-ignore]
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.highlight import HighlightTheme, highlight

from exl2_tui.segments import Code
from exl2_tui.widgets.findable import Findable

PART_LINES = 80  # lines per widget; grows with the block
HIGHLIGHT_LIMIT = 10_000  # characters of a part; longer ones (minified files) stay plain


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


class CodeView(Vertical):
    """One fence: its language, then parts of PART_LINES lines, of which only the last is drawn again."""

    DEFAULT_CSS: ClassVar[str] = """
    CodeView { height: auto; border-left: outer $panel; padding: 0 0 0 1; }
    CodeView > Static { height: auto; width: 1fr; text-overflow: fold; }
    """

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code
        self._parts: list[tuple[int, Findable]] = []  # first line, widget
        self._language = ""

    def compose(self) -> ComposeResult:
        self._language = self.code.language
        start = 0
        while True:
            end = min(len(self.code.lines), start + self._part_lines(start))
            part = Findable(self._draw(start, end), markup=False)
            self._parts.append((start, part))
            yield part
            if end >= len(self.code.lines):
                return
            start = end

    def show(self, code: Code) -> None:
        """The same fence with more lines, or a short one that changed."""
        self.code = code
        if not self._parts:
            return
        if code.language != self._language:
            self._language = code.language
            self._update(0)
        while True:
            start = self._parts[-1][0]
            end = start + self._part_lines(start)
            self._update(len(self._parts) - 1)
            if len(code.lines) <= end:
                return
            self._parts.append((end, Findable("", markup=False)))
            self.mount_all([self._parts[-1][1]])

    def _part_lines(self, start: int) -> int:
        return max(PART_LINES, start // 100)

    def _update(self, index: int) -> None:
        start, part = self._parts[index]
        content = self._draw(start, min(len(self.code.lines), start + self._part_lines(start)))
        width = part.content_size.width
        rows = content.get_height({}, width) if width else 0
        grown = rows != part.content_size.height
        if grown:
            part.clear_cached_dimensions()
        part.update(content, layout=grown)  # laying out the screen costs more than everything else here

    def _draw(self, start: int, end: int) -> Content:
        lines = self.code.lines[start:end]
        if end == len(self.code.lines) and self.code.tail and end - start < self._part_lines(start):
            lines = [*lines, self.code.tail]
        text = "\n".join(line.expandtabs(4) for line in lines)
        language = self.code.language if len(text) <= HIGHLIGHT_LIMIT else ""
        body = highlight(text, language=language or "text", theme=CodeTheme)
        if start == 0 and self.code.language:
            return Content.styled(self.code.language, "$secondary") + "\n" + body
        return body
