"""LiveText: an answer as rows of text, kept in step with a Document that grows."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.content import Content
from textual.geometry import Offset
from textual.selection import Selection

from exl2_tui.markdown import Document
from exl2_tui.segments import Code, Line, Prose, Segment, ShownLine, Table, Thought
from exl2_tui.widgets.code_lines import CodeLines
from exl2_tui.widgets.table_lines import layout
from exl2_tui.widgets.text_view import TextView


class LiveText(TextView):
    """Shows text that may still be growing. `feed` takes pieces, `finish` says that no more will come."""

    DEFAULT_CSS: ClassVar[str] = "LiveText { height: auto; }"

    def __init__(self, text: str = "", *, done: bool = True) -> None:
        super().__init__()
        self._document = Document(text)
        if done:
            self._document.finish()
        self._firsts: list[int] = []  # the first line of each segment
        self._stable = 0  # segments that will not change any more
        self._code: dict[int, CodeLines] = {}  # by segment
        self._opened: set[int] = set()  # segments of reasoning that are not folded

    def feed(self, text: str) -> None:
        self._document.feed(text)
        self._sync(self._stable)

    def finish(self) -> None:
        self._document.finish()
        self._sync(self._stable)

    @property
    def blocks(self) -> list[Code]:
        """The fences, in order."""
        return [segment for segment in self._document.segments if isinstance(segment, Code)]

    @property
    def has_thoughts(self) -> bool:
        return any(isinstance(segment, Thought) for segment in self._document.segments)

    def toggle_thoughts(self) -> None:
        """Shows reasoning that is folded, folds what is shown."""
        for index, segment in enumerate(self._document.segments):
            if isinstance(segment, Thought):
                self._toggle(index)

    def _toggle(self, index: int) -> None:
        self._opened ^= {index}
        self._sync(index)
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """A click on reasoning opens or folds it."""
        index = self._segment_at(event.y)
        if index is not None and isinstance(self._document.segments[index], Thought):
            self._toggle(index)

    def text_select_all(self) -> None:
        """A double click selects the paragraphs, the code or the table under it; a triple one all of the answer."""
        index = self._segment_at(self.app.mouse_position.y - self.content_region.y)
        if index is None:
            super().text_select_all()
            return
        first, last = self.rows.first_row(self._firsts[index]), self._bottom(index) - 1
        end = Offset(len(self.rows.row(last)[1].plain), last)
        self.screen.selections = {self: Selection(Offset(0, first), end)}

    def _segment_at(self, row: int) -> int | None:
        places = range(len(self._firsts))
        return next((i for i in places if self.rows.top(self._firsts[i]) <= row < self._bottom(i)), None)

    def _bottom(self, index: int) -> int:
        """The row after the last one of a segment."""
        after = self._firsts[index + 1] if index + 1 < len(self._firsts) else len(self.rows.lines)
        return self.rows.top(after)

    def lay_out(self, width: int) -> None:
        if width != self.rows.width:
            self.rows.replace(0, [], [])
            super().lay_out(width)
            self._fill(0)

    def _sync(self, start: int) -> None:
        """Draws the segments from `start` on; before there is a width, nothing."""
        if self.rows.width:
            before = self.rows.height
            self.changed(self._fill(start), before)

    def _fill(self, start: int) -> int:
        """Brings the lines in step with the segments from `start` on; returns the first line of these."""
        segments = self._document.segments
        start = min(start, len(segments), len(self._firsts))
        since = self._firsts[start] if start < len(self._firsts) else len(self.rows.lines)
        del self._firsts[start:]
        lines: list[ShownLine] = []
        gaps: list[bool] = []
        for index in range(start, len(segments)):
            segment = segments[index]
            added = self._lines(segment, index)
            joined = isinstance(segment, Prose) and index > 0 and isinstance(segments[index - 1], Prose)
            self._firsts.append(since + len(lines))
            lines += added
            gaps += [index > 0 and (not joined or added[0].gap), *(line.gap for line in added[1:])]
        same = self.rows.same(since, lines, gaps)
        self.rows.replace(since + same, lines[same:], gaps[same:])
        self._stable = self._document.settled
        return since

    def _lines(self, segment: Segment, index: int) -> list[ShownLine]:
        """At least one."""
        if isinstance(segment, Prose):
            return [*segment.lines]
        if isinstance(segment, Code):
            known = self._code.get(index)
            if known is None or known.code is not segment:
                known = self._code[index] = CodeLines(segment)
            return known.lines()
        if isinstance(segment, Table):
            bar = " " * segment.indent
            return [Line(row, bar=bar) for row in layout(segment, self.rows.width - segment.indent)]
        return _thought(segment, opened=index in self._opened)


def _thought(thought: Thought, *, opened: bool) -> list[ShownLine]:
    """Reasoning: one row with the number of words, or all of the text."""
    words = len(thought.text.split())
    verb = "Thinking" if thought.open else "Thought"
    head = f"{'▾' if opened else '▸'} {verb}, {words:,} words"
    shown = [head, *thought.text.strip().split("\n")] if opened else [head]
    return [Line(Content.styled(line, "$secondary")) for line in shown]
