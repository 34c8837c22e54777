"""LayerChart: the error of every layer as columns on a log axis of three decades, with a threshold and a cursor.

One column per layer while they fit, wider ones when there is room; with more layers than columns, a column shows the
worst of its layers. What is not done yet stays empty, so the chart also says how far the work is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from exl2_tui.job_points import Point

EIGHTHS = " ▁▂▃▄▅▆▇█"
DECADES = 3
AXIS = 7  # cells of the scale on the left
WIDEST = 4  # cells of a column
UNDER = 2  # rows below the plot: flags with the axis, and layer numbers


class LayerChart(Widget, can_focus=True):
    """`show` gives it a slot per column; arrow keys or a click move the cursor."""

    DEFAULT_CSS: ClassVar[str] = "LayerChart { height: 8; width: 1fr; }"
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "layer-chart--bar",
        "layer-chart--outlier",
        "layer-chart--axis",
        "layer-chart--cursor",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Left", show=False),
        Binding("right", "move(1)", "Right", show=False),
        Binding("home", "move(-100000)", "First", show=False),
        Binding("end", "move(100000)", "Last", show=False),
    ]

    cursor: reactive[int | None] = reactive(None)

    class Moved(Message):
        """The cursor is on another column, or nowhere."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._points: Sequence[Point | None] = ()
        self._limit = 0.0
        self._top = 0  # power of ten at the upper edge

    def show(self, points: Sequence[Point | None], limit: float) -> None:
        """points: in model order, None for what is not done yet; limit: the threshold, 0 for none."""
        self._points = points
        self._limit = limit
        finite = [
            point.error for point in points if point is not None and math.isfinite(point.error) and point.error > 0
        ]
        self._top = math.ceil(math.log10(max(finite))) if finite else 0
        self._top = max(-9, min(9, self._top))
        self.refresh()

    @property
    def selected(self) -> Point | None:
        """The worst point of the column under the cursor."""
        columns = self._columns()
        return columns[min(self.cursor, len(columns) - 1)] if self.cursor is not None and columns else None

    def watch_cursor(self) -> None:
        self.post_message(self.Moved())

    def action_move(self, step: int) -> None:
        last = len(self._columns()) - 1
        if last >= 0:
            now = self.cursor if self.cursor is not None else (last + 1 if step < 0 else -1)
            self.cursor = max(0, min(last, now + step))

    def on_blur(self) -> None:
        self.cursor = None

    def on_click(self, event: Click) -> None:
        at = (event.x - AXIS) // self._column_width()
        if 0 <= at < len(self._columns()):
            self.cursor = at

    # Geometry

    @property
    def _room(self) -> int:
        return max(1, self.size.width - AXIS)

    def _column_width(self) -> int:
        return max(1, min(WIDEST, self._room // max(1, len(self._points))))

    def _starts(self) -> list[int]:
        """Index of the first point of every column, and the end."""
        columns = min(self._room, len(self._points))
        return [column * len(self._points) // columns for column in range(columns + 1)] if columns else [0]

    def _columns(self) -> list[Point | None]:
        """The point that each column shows: the worst of those it stands for."""
        groups = (self._points[start:end] for start, end in pairwise(self._starts()))
        return [max(filter(None, group), key=_badness, default=None) for group in groups]

    def _level(self, error: float, rows: int) -> int:
        """Height of a bar in eighths of a row."""
        if not math.isfinite(error):
            return rows * 8
        if error <= 0:
            return 1
        share = (math.log10(error) - (self._top - DECADES)) / DECADES
        return max(1, min(rows * 8, round(share * rows * 8)))

    # Drawing

    def render_line(self, y: int) -> Strip:
        height, width = self.size.height, self.size.width
        rows = max(1, height - UNDER)
        if width <= AXIS + 4:
            return Strip.blank(width)
        if y < rows:
            segments = self._plot_row(y, rows)
        elif y == rows:
            segments = self._axis_row()
        else:
            segments = self._number_row()
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _plot_row(self, y: int, rows: int) -> list[Segment]:
        axis = self.get_component_rich_style("layer-chart--axis")
        bar = self.get_component_rich_style("layer-chart--bar")
        outlier = self.get_component_rich_style("layer-chart--outlier")
        chosen = self.get_component_rich_style("layer-chart--cursor")
        segments = [Segment(self._scale(y, rows), axis)]
        below = (rows - 1 - y) * 8
        dots = self._limit > 0 and below < self._level(self._limit, rows) <= below + 8
        wide = self._column_width()
        gap = " " if wide > 2 else ""
        columns = self._columns()
        for number, point in enumerate(columns):
            level = self._level(point.error, rows) if point is not None else 0
            fill = EIGHTHS[max(0, min(8, level - below))]
            style = chosen if number == self.cursor else outlier if point is not None and point.outlier else bar
            if fill == " " and dots:
                segments.append(Segment("·" * wide, axis))
            else:
                segments.append(Segment(fill * (wide - len(gap)), style))
                segments.append(Segment("·" if gap and dots else gap, axis))
        left = self._room - wide * len(columns)
        segments.append(Segment(("·" if dots else " ") * max(0, left), axis))
        return segments

    def _scale(self, y: int, rows: int) -> str:
        """The value at the upper edge of this row, where a decade begins."""
        for decade in range(DECADES):
            if y == round(decade * rows / DECADES):
                power = self._top - decade
                text = f"{10.0**power:g}" if -4 <= power <= 3 else f"1e{power}"
                return f"{text.removeprefix('0') if text != '0' else text:>{AXIS - 2}} ┤"
        return " " * (AXIS - 1) + "│"

    def _axis_row(self) -> list[Segment]:
        """The axis; a ! under every column that is far worse than its like."""
        axis = self.get_component_rich_style("layer-chart--axis")
        outlier = self.get_component_rich_style("layer-chart--outlier")
        chosen = self.get_component_rich_style("layer-chart--cursor")
        wide = self._column_width()
        segments = [Segment(" " * (AXIS - 1) + "└", axis)]
        for number, point in enumerate(self._columns()):
            if number == self.cursor:
                segments.append(Segment("▲", chosen))
                segments.append(Segment("─" * (wide - 1), axis))
            elif point is not None and point.outlier:
                segments.append(Segment("!", outlier + Style(bold=True)))
                segments.append(Segment("─" * (wide - 1), axis))
            else:
                segments.append(Segment("─" * wide, axis))
        return segments

    def _number_row(self) -> list[Segment]:
        """Numbers of layers, two slots to a layer, as many as fit."""
        axis = self.get_component_rich_style("layer-chart--axis")
        wide = self._column_width()
        text = ""
        for column, start in enumerate(self._starts()[:-1]):
            if start % 2 == 0 and column * wide >= len(text) + (2 if text else 0):
                text = text.ljust(column * wide) + str(start // 2)
        return [Segment(" " * AXIS + text, axis)]


def _badness(point: Point) -> float:
    return point.error if math.isfinite(point.error) else math.inf
