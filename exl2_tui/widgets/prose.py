"""ProseView: a run of text rows in one widget, with markers that hang and rows wrapped once."""

from __future__ import annotations

from typing import ClassVar

from textual.content import Content
from textual.geometry import Size

from exl2_tui.segments import Line, Prose
from exl2_tui.widgets.findable import Findable

_NEWLINE = Content("\n")


class ProseView(Findable):
    """Shows lines; those that are the same objects as before keep their wrapped rows."""

    DEFAULT_CSS: ClassVar[str] = "ProseView { width: 1fr; height: auto; text-wrap: nowrap; text-overflow: fold; }"

    def __init__(self, prose: Prose, *, classes: str | None = None) -> None:
        super().__init__("", markup=False, classes=classes)
        self._lines = list(prose.lines)
        self._rows: list[tuple[Line, list[Content]]] = []
        self._width = 0
        self._drawn = Content("")
        self._height = 0
        self._stale = True

    def show(self, prose: Prose) -> None:
        """Shows other lines; asks for a new layout only when the number of rows changed."""
        self._lines = list(prose.lines)
        self._stale = True
        if not self._width:
            return
        before = self._height
        content = self._draw(self._width)
        if self._height != before:
            self.clear_cached_dimensions()
        self.update(content, layout=self._height != before)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        self._draw(width)
        return self._height

    def render(self) -> Content:
        return self.lit(self._draw(self.content_size.width or self._width or 80))

    def _text(self) -> str:
        return self._draw(self.content_size.width or self._width or 80).plain

    def _draw(self, width: int) -> Content:
        if not self._stale and width == self._width:
            return self._drawn
        kept = self._rows if width == self._width else []
        rows: list[tuple[Line, list[Content]]] = []
        for index, line in enumerate(self._lines):
            same = index < len(kept) and kept[index][0] is line
            rows.append(kept[index] if same else (line, _wrap(line, width, first=index == 0)))
        flat = [row for _, wrapped in rows for row in wrapped]
        self._rows, self._width, self._stale = rows, width, False
        self._height = len(flat)
        self._drawn = _NEWLINE.join(flat)
        return self._drawn


def _wrap(line: Line, width: int, *, first: bool) -> list[Content]:
    """The rows of a line: lead before the first, hang before the others, a blank row above where there is a gap."""
    room = max(8, width - Content(line.lead).cell_length)
    wrapped = [row.rstrip() for row in line.body.wrap(room)] or [Content("")]
    rows = [_prefixed(line.lead if index == 0 else line.hang, row) for index, row in enumerate(wrapped)]
    return [Content(""), *rows] if line.gap and not first else rows


def _prefixed(prefix: str, row: Content) -> Content:
    return Content.styled(prefix, "$secondary") + row if prefix else row
