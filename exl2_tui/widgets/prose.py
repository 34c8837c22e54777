"""ProseView: a run of text rows in one widget, with markers that hang and rows wrapped once."""

from __future__ import annotations

from typing import ClassVar

from textual.content import Content
from textual.css.styles import RulesMap
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.style import Style
from textual.visual import RenderOptions

from exl2_tui.segments import Line, Prose
from exl2_tui.widgets.findable import Findable
from exl2_tui.widgets.growing import Growing

_NEWLINE = Content("\n")
_RULES: RulesMap = {"text_wrap": "nowrap", "text_overflow": "fold"}  # as in DEFAULT_CSS


class ProseView(Findable, Growing):
    """Shows lines. Those that are the same objects as before keep their wrapped rows, and these what was drawn."""

    DEFAULT_CSS: ClassVar[str] = "ProseView { width: 1fr; height: auto; text-wrap: nowrap; text-overflow: fold; }"

    def __init__(self, prose: Prose, *, classes: str | None = None) -> None:
        super().__init__("", markup=False, classes=classes)
        self.auto_links = False  # there are none, and looking for them copies every row
        self._lines = list(prose.lines)
        self._wrapped: list[tuple[Line, list[Content]]] = []
        self._rows: list[Content] = []
        self._width = 0
        self._stale = True
        self._strips: dict[int, tuple[Content, Strip]] = {}  # by row, with what it was drawn from
        self._look: Style | None = None

    def show(self, prose: Prose) -> None:
        """Shows other lines; asks for a new layout only when the number of rows changed."""
        self._lines = list(prose.lines)
        self._stale = True
        if not self._width:
            return
        before = self._rows
        rows = self._draw(self._width)
        same = next((y for y, (old, new) in enumerate(zip(before, rows, strict=False)) if old is not new), len(before))
        if len(rows) != len(before):
            self.clear_cached_dimensions()
        self.refresh(Region(0, same, self._width, max(1, len(rows) - same)), layout=len(rows) != len(before))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._draw(width))

    def render(self) -> Content:
        return self.lit(_NEWLINE.join(self._draw(self.content_size.width or self._width or 80)))

    def render_line(self, y: int) -> Strip:
        """One row, drawn once; a selection and matches span rows, so with one of them all are drawn together."""
        rows = self._draw(self._width or self.content_size.width)
        if self._pattern is not None or self.text_selection is not None or not y < len(rows):
            return super().render_line(y)
        if self.visual_style != self._look:
            self._look = self.visual_style
            self._strips.clear()
        row = rows[y]
        drawn, strip = self._strips.get(y, (None, None))
        if drawn is not row or strip is None:
            options = RenderOptions(self._get_style, _RULES)
            strip = row.render_strips(self._width, 1, self._look, options)[0].apply_offsets(0, y)
            self._strips[y] = (row, strip)
        return strip

    def _text(self) -> str:
        return _NEWLINE.join(self._draw(self.content_size.width or self._width or 80)).plain

    def _draw(self, width: int) -> list[Content]:
        """The rows at this width."""
        if not self._stale and width == self._width:
            return self._rows
        kept = self._wrapped if width == self._width else []
        wrapped: list[tuple[Line, list[Content]]] = []
        for index, line in enumerate(self._lines):
            same = index < len(kept) and kept[index][0] is line
            wrapped.append(kept[index] if same else (line, _wrap(line, width, first=index == 0)))
        self._wrapped, self._width, self._stale = wrapped, width, False
        self._rows = [row for _, rows in wrapped for row in rows]
        return self._rows


def _wrap(line: Line, width: int, *, first: bool) -> list[Content]:
    """The rows of a line: lead before the first, hang before the others, a blank row above where there is a gap."""
    room = max(8, width - Content(line.lead).cell_length)
    wrapped = [row.rstrip() for row in line.body.wrap(room)] or [Content("")]
    rows = [_prefixed(line.lead if index == 0 else line.hang, row) for index, row in enumerate(wrapped)]
    return [Content(""), *rows] if line.gap and not first else rows


def _prefixed(prefix: str, row: Content) -> Content:
    return Content.styled(prefix, "$secondary") + row if prefix else row
