"""TextView: text of any length in one widget, of which only what is in view is made and drawn.

A widget per paragraph would be simpler, but everything Textual does costs more with every widget there is: laying out,
matching styles, finding out what the mouse is over. An answer of 10,000 lines had 1,500 of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from textual.color import Color
from textual.content import Content
from textual.filter import LineFilter
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.widgets import Static

from exl2_tui.segments import ShownLine
from exl2_tui.widgets.growing import Growing
from exl2_tui.widgets.recent import Recent
from exl2_tui.widgets.text_rows import TextRows

KEPT = 512  # rows whose drawing is kept


@dataclass(frozen=True, slots=True)
class _Look:
    """What the drawing of every row depends on, besides its text."""

    style: Style
    width: int
    backgrounds: tuple[Color, Color]  # behind the widget, and in it
    filters: Sequence[LineFilter]


class TextView(Static, Growing):
    """Shows lines; matches in them can be lit up, and they can be selected across rows that are not in view."""

    DEFAULT_CSS: ClassVar[str] = "TextView { width: 1fr; height: auto; }"

    def __init__(self, lines: Sequence[ShownLine] = (), *, classes: str | None = None) -> None:
        super().__init__("", markup=False, classes=classes)
        self.auto_links = False  # there are none, and looking for them copies every row
        self.rows = TextRows()
        self.rows.replace(0, lines, [line.gap and number > 0 for number, line in enumerate(lines)])
        self._strips: Recent[int, tuple[str, Content, Strip]] = Recent(KEPT)  # by row, with what they were made of
        self._look: _Look | None = None

    def changed(self, since: int, before: int) -> None:
        """Lines from `since` on may look different now; asks for a layout only if there are not `before` rows."""
        rows = self.rows
        grown = rows.height != before
        if grown:
            self.clear_cached_dimensions()
        first = max(rows.top(since), rows.height - self.screen.size.height)  # who sees it grow sees its end
        while first < rows.height and self._is_drawn(first):
            first += 1
        self.refresh(Region(0, first, rows.width, max(1, rows.height - first)), layout=grown)

    def lay_out(self, width: int) -> None:
        """Makes `rows` fit the width."""
        if width != self.rows.width:
            self.rows.lay_out(width)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        self.lay_out(width)
        return self.rows.height

    def render(self) -> Content:
        """All of the text; what is on screen comes from `render_line`."""
        self.lay_out(self.rows.width or self.content_size.width or 80)
        return self.rows.content

    def render_lines(self, crop: Region) -> list[Strip]:
        """Rows as they go to the screen, each made once. There is nothing around them: no border, padding or opacity.

        They do not say where their characters stand, which only `render_line` is asked for: so all text of one look
        has one style, whose codes for the terminal are made once.
        """
        look = _Look(self.visual_style, self.size.width, self.background_colors, self.get_line_filters())
        if look != self._look:
            self._look = look
            self._strips.clear()
        strips = [self._strip(y) for y in crop.line_range]
        if crop.column_span != (0, self.size.width):
            strips = [strip.crop(*crop.column_span) for strip in strips]
        return strips

    def render_line(self, y: int) -> Strip:
        """One row with the places of its characters, for the mouse."""
        bar, text = self.rows.row(y)
        return Strip(self._segments(bar, text)).apply_offsets(-len(bar), y)

    def _strip(self, y: int) -> Strip:
        bar, text = self.rows.row(y)
        selection = self.text_selection
        span = selection.get_span(y) if selection is not None else None
        if span is not None:
            chosen = Style.from_styles(self.screen.get_component_styles("screen--selection"))
            return self._finished(bar, text.stylize(chosen, span[0], len(text.plain) if span[1] == -1 else span[1]))
        kept = self._strips.get(y)
        if kept is None or kept[0] != bar or not kept[1].is_same(text):
            kept = self._strips.put(y, (bar, text, self._finished(bar, text)))
        return kept[2]

    def _finished(self, bar: str, text: Content) -> Strip:
        """A row as wide as the widget, in the colours of the terminal."""
        look = self._look
        assert look is not None  # `render_lines` has set it
        base, background = look.backgrounds
        strip = Strip(self._segments(bar, text), len(bar) + text.cell_length)
        strip = strip.adjust_cell_length(look.width, Style(background=base + background).rich_style)
        for line_filter in look.filters:
            strip = strip.apply_filter(line_filter, background)
        return strip

    def _segments(self, bar: str, text: Content) -> list[Segment]:
        look = self.visual_style
        segments = [Segment(bar, (look + self._get_style("$panel")).rich_style)] if bar else []
        for piece, style in text.render(look, end="", parse_style=self._get_style):
            segments.append(Segment(piece, (look + style).rich_style))
        return segments

    def _is_drawn(self, y: int) -> bool:
        """Whether what is kept for a row is what stands there now."""
        kept = self._strips.get(y)
        bar, text = self.rows.row(y)
        return kept is not None and kept[0] == bar and kept[1].is_same(text)

    def get_selection(self, selection: Selection) -> tuple[str, str]:
        return self.rows.copied(selection), "\n"

    def find(self, pattern: re.Pattern[str] | None, current: int) -> int:
        """Lights up every match, `current` of them more than the others; returns how many there are."""
        if pattern is not None or self.rows.finding:
            self.refresh()
        return self.rows.find(pattern, current)

    def row_of(self, number: int) -> int:
        """The row in which a match begins."""
        return self.rows.row_of(number)
