"""Rows of fixed height: places and model above, meters and feedback below."""

from __future__ import annotations

from typing import ClassVar

from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from exl2_tui.text import one_line
from exl2_tui.widgets.growing import Growing

METER_CELLS = 16
FLASH_SECONDS = 4.0


class Row(Static, Growing):
    """One row that is redrawn only when its content changed, never laid out again."""

    DEFAULT_CSS: ClassVar[str] = "Row { height: 1; width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__("", markup=False, id=id, classes=classes)
        self._shown = Content("")
        self._sides = (Content(""), Content(""))

    def put(self, left: Content, right: Content | None = None) -> None:
        """Shows `left` and, at the far end, `right`; where both do not fit, left gives way."""
        self._sides = (left, right or Content(""))
        line = self._line()
        if not line.is_same(self._shown):
            self._shown = line
            self.refresh()

    def render(self) -> Content:
        """Laid out for the width there is now, which a row may learn only after it was put."""
        self._shown = self._line()
        return self._shown

    def _line(self) -> Content:
        left, far = self._sides
        width = self.content_size.width or 80
        if not far:
            return left
        left = left.truncate(max(0, width - far.cell_length - 2), ellipsis=True)
        return left.pad_right(max(0, width - far.cell_length - left.cell_length)) + far

    @property
    def plain(self) -> str:
        return self._shown.plain


class StatusRow(Row):
    """The meters; for some seconds, one line of feedback in their place."""

    _timer: Timer | None = None
    _meters = (Content(""), Content(""))
    _saying = False

    def show(self, left: Content, right: Content) -> None:
        """New meters; they wait while feedback is shown."""
        self._meters = (left, right)
        if not self._saying:
            self.put(left, right)

    def say(self, text: str, style: str = "$primary", *, seconds: float = FLASH_SECONDS) -> None:
        """Feedback; seconds 0 keeps it until `hush`."""
        self._saying = True
        self.put(Content.styled("  " + one_line(text), style))
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(seconds, self.hush) if seconds else None

    def hush(self) -> None:
        """Back to the meters."""
        self._saying = False
        self.put(*self._meters)


def meter(done: float, total: float, *, cells: int = METER_CELLS, style: str = "$primary") -> Content:
    """A thin bar: the filled part in `style`, the rest in the border colour."""
    share = min(1.0, max(0.0, done / total)) if total > 0 else 0.0
    filled = min(cells, max(1 if done > 0 else 0, round(share * cells)))
    return Content.assemble(("━" * filled, style), ("─" * (cells - filled), "$secondary"))
