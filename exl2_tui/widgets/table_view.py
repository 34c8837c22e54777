"""TableView: a Markdown table as one widget; columns share the width, cells wrap."""

from __future__ import annotations

from typing import ClassVar

from textual.content import Content
from textual.geometry import Size

from exl2_tui.segments import Table
from exl2_tui.widgets.findable import Findable

GAP = 2  # cells between columns
NARROWEST = 6  # a column is not squeezed below this


class TableView(Findable):
    """Lays the table out for the width it gets."""

    DEFAULT_CSS: ClassVar[str] = "TableView { width: 1fr; height: auto; text-wrap: nowrap; text-overflow: fold; }"

    def __init__(self, table: Table) -> None:
        super().__init__("", markup=False)
        self._table = table
        self._drawn: tuple[int, Content] = (-1, Content(""))

    def show(self, table: Table) -> None:
        self._table = table
        self._drawn = (-1, Content(""))
        width = self.content_size.width
        grown = not width or self._draw(width).plain.count("\n") + 1 != self.content_size.height
        if grown:
            self.clear_cached_dimensions()
        self.refresh(layout=grown)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return self._draw(width).plain.count("\n") + 1

    def render(self) -> Content:
        return self.lit(self._draw(self.content_size.width or 80))

    def _text(self) -> str:
        return self._draw(self.content_size.width or 80).plain

    def _draw(self, width: int) -> Content:
        if self._drawn[0] != width:
            self._drawn = (width, layout(self._table, width))
        return self._drawn[1]


def column_widths(table: Table, width: int) -> list[int]:
    """Each column as wide as its widest cell; if that is too much, the widest give way first."""
    columns = len(table.align)
    widths = [
        max([1, *(line.cell_length for row in table.rows for line in row[column].split())]) for column in range(columns)
    ]
    room = max(columns * NARROWEST, width - GAP * (columns - 1))
    while sum(widths) > room and max(widths) > NARROWEST:
        widest = max(widths)
        second = max((value for value in widths if value < widest), default=NARROWEST)
        count = widths.count(widest)
        cut = max(1, min(widest - max(second, NARROWEST), -(-(sum(widths) - room) // count)))
        widths = [value - cut if value == widest else value for value in widths]
    return widths


def layout(table: Table, width: int) -> Content:
    """The table as rows of text: bold header, a thin rule, then the cells."""
    widths = column_widths(table, width)
    lines: list[Content] = []
    for number, row in enumerate(table.rows):
        cells = [cell.wrap(size) or [Content("")] for cell, size in zip(row, widths, strict=False)]
        for level in range(max(len(cell) for cell in cells)):
            parts = [
                _pad(cell[level].rstrip() if level < len(cell) else Content(""), size, align)
                for cell, size, align in zip(cells, widths, table.align, strict=False)
            ]
            line = Content(" " * GAP).join(parts)
            lines.append(line.stylize("bold") if number == 0 else line)
        if number == 0:
            lines.append(Content.styled((" " * GAP).join("─" * size for size in widths), "$secondary"))
    return Content("\n").join(lines)


def _pad(text: Content, width: int, align: str) -> Content:
    space = max(0, width - text.cell_length)
    left = space if align == "right" else space // 2 if align == "center" else 0
    return text.pad(left, space - left)
