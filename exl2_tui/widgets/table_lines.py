"""A Markdown table as rows of text: columns share the width, cells wrap."""

from __future__ import annotations

from textual.content import Content

from exl2_tui.segments import Table

GAP = 2  # cells between columns
NARROWEST = 6  # a column is not squeezed below this


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


def layout(table: Table, width: int) -> list[Content]:
    """Bold header, a thin rule, then the cells."""
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
    return lines


def _pad(text: Content, width: int, align: str) -> Content:
    space = max(0, width - text.cell_length)
    left = space if align == "right" else space // 2 if align == "center" else 0
    return text.pad(left, space - left)
