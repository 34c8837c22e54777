"""KeyedList: rows that are known by a key, so that the cursor stays on its row whatever happens to the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

NARROWEST = 60  # cells a row is laid out for, at least


class KeyedList(OptionList):
    """One line per row, cut where it does not fit."""

    DEFAULT_CSS: ClassVar[str] = """
    /* The bar's column stays free: else rows would be cut, or laid out anew, when the bar comes. */
    KeyedList { text-wrap: nowrap; text-overflow: ellipsis; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes, markup=False, compact=True)

    @property
    def room(self) -> int:
        """Cells of a row."""
        return max(NARROWEST, self.scrollable_content_region.width or 77)

    @property
    def at_cursor(self) -> str | None:
        """The key of the row under the cursor."""
        if self.highlighted is None or self.highlighted >= self.option_count:
            return None
        return self.get_option_at_index(self.highlighted).id

    def put(self, rows: Sequence[tuple[str, Content]]) -> None:
        """Shows these rows, key and line. Where the row under the cursor is gone, the next one takes its place."""
        keys = [key for key, _ in rows]
        if keys == [option.id for option in self.options]:
            for index, (_, line) in enumerate(rows):
                self.replace_option_prompt_at_index(index, line)
            return
        kept, place = self.at_cursor, self.highlighted or 0
        self.set_options(Option(line, id=key) for key, line in rows)
        if rows:
            self.highlighted = keys.index(kept) if kept in keys else min(place, len(keys) - 1)
