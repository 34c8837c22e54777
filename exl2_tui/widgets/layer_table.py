"""LayerTable: one row per finished linear, drawn on demand: 80 layers are 560 rows and still one widget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from exl2_tui.core.job_events import LayerQuantized
from exl2_tui.eta import exact
from exl2_tui.job_points import short_name
from exl2_tui.job_words import number
from exl2_tui.text import one_line

NUMBERS = 30  # cells of the columns on the right
RECIPE_FROM = 64  # cells from which the recipe has a column of its own


class LayerTable(ScrollView, can_focus=True):
    """Newest first, or worst first. The header row stays in view."""

    DEFAULT_CSS: ClassVar[str] = """
    LayerTable { height: 1fr; width: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"layer-table--head", "layer-table--outlier", "layer-table--now"}

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: list[LayerQuantized] = []
        self._flagged: frozenset[str] = frozenset()
        self._now = ""
        self._recipes = False

    def show(
        self, rows: Sequence[LayerQuantized], flagged: frozenset[str], *, worst_first: bool, running: bool
    ) -> None:
        """rows in model order; flagged: keys of halves that are far worse than their like."""
        newest = list(reversed(rows))
        if worst_first:
            newest.sort(key=lambda row: -row.error if math.isfinite(row.error) else -math.inf)
        self._rows = newest
        self._flagged = flagged
        self._now = rows[-1].key if rows and running and not worst_first else ""
        self._recipes = any(row.recipe for row in rows)  # a measurement has none
        self.virtual_size = Size(self.size.width, len(newest) + 1)
        self.refresh()

    def on_resize(self) -> None:
        self.virtual_size = Size(self.size.width, len(self._rows) + 1)

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        name = max(12, min(22, width - NUMBERS))
        recipe = max(0, width - NUMBERS - name - 2) if width >= RECIPE_FROM and self._recipes else 0
        if y == 0:
            text = f"{'LAYER':<{name}}{'BPW':>7}{'ERROR':>10}{'TIME':>11}" + ("  RECIPE" if recipe else "")
            return self._strip(text, "layer-table--head")
        index = y - 1 + self.scroll_offset.y
        if index >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        row = self._rows[index]
        label = one_line(short_name(row.key), name - 1)
        flagged = any(row.key.startswith(half) for half in self._flagged)
        mark = "!" if flagged else " "
        text = f"{label:<{name}}{row.bpw:>7.2f}{number(row.error):>9}{mark}{exact(row.seconds):>11}"
        if recipe:
            text += f"  {one_line(row.recipe.removesuffix(' s4'), recipe)}"
        return self._strip(
            text, "layer-table--outlier" if flagged else "layer-table--now" if row.key == self._now else ""
        )

    def _strip(self, text: str, style: str) -> Strip:
        look = self.get_component_rich_style(style) if style else self.rich_style
        return Strip([Segment(text, look)]).adjust_cell_length(self.size.width, self.rich_style)
