"""FrugalScreen: text that grows at the end of the screen is laid out where it can be seen, and drawn once."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.geometry import Size
from textual.screen import Screen
from textual.widget import Widget

from exl2_tui.compositor import FrugalCompositor
from exl2_tui.widgets.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Growth:
    """A text in `view` got `rows` longer, or shorter."""

    view: Transcript
    rows: int


class FrugalScreen(Screen[None]):
    """A screen whose frames stay cheap while an answer is written into it.

    Where nothing but the height of a known text has changed, Textual's layout of every widget, seen or not, is replaced
    by moving what can be seen; where that is not enough, by the layout of what can be seen.
    """

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._compositor = self._frugal = FrugalCompositor()

    def growth(self, widget: Widget) -> Growth | None:
        """If a widget that asks for a layout is a text whose end the reader follows: where, and by how much it grew."""
        return None

    def _refresh_layout(self, size: Size | None = None, scroll: bool = False) -> None:
        asking: set[Widget] = set().union(*self._layout_widgets.values())
        text = asking.pop() if size is None and len(asking) == 1 and self.is_current else None
        growth = self.growth(text) if text is not None else None
        if text is None or growth is None:
            super()._refresh_layout(size, scroll)
            return
        self._layout_widgets.clear()
        self._compositor.update_widgets(self._dirty_widgets)
        if not self._grow(text, growth):
            self._lay_out_visible()
        self._compositor_refresh()

    def _grow(self, text: Widget, growth: Growth) -> bool:
        """Moves what the new rows move, if they are all that is new."""
        if growth.rows < 1 or not growth.view.shows_end:
            return False
        places = self._frugal.grow(text, growth.view, growth.rows)
        for widget, place in places.items():
            widget._size_updated(place.region.size, place.virtual_size, place.container_size, layout=False)
        if places:
            growth.view.grown(growth.rows)
        return bool(places)

    def _lay_out_visible(self) -> None:
        """The layout that Textual uses for scrolling, which stops at what is in view."""
        compositor = self._compositor
        exposed = compositor.reflow_visible(self, self.outer_size)
        for widget, place in compositor.layers:
            sizes = place.region.size, place.virtual_size, place.container_size
            if widget._size_updated(*sizes, layout=False) and widget in exposed:
                widget.post_message(events.Resize(*sizes))
