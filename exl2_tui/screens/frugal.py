"""FrugalScreen: text that grows at the end of the screen is laid out where it can be seen, and drawn once."""

from __future__ import annotations

from textual import events
from textual.geometry import Size
from textual.screen import Screen
from textual.widget import Widget

from exl2_tui.compositor import FrugalCompositor


class FrugalScreen(Screen[None]):
    """A screen whose frames stay cheap while an answer is written into it.

    Where nothing but the height of known texts has changed, Textual's layout of every widget, seen or not, is replaced
    by the one it uses for scrolling, which stops at what is in view.
    """

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._compositor = FrugalCompositor()

    def grows(self, widget: Widget) -> bool:
        """Whether a widget that asks for a layout is a text that got longer, in full view of the reader."""
        return False

    def _refresh_layout(self, size: Size | None = None, scroll: bool = False) -> None:
        asking: set[Widget] = set().union(*self._layout_widgets.values())
        if size is not None or not asking or not self.is_current or not all(map(self.grows, asking)):
            super()._refresh_layout(size, scroll)
            return
        compositor = self._compositor
        compositor.update_widgets(self._dirty_widgets)
        self._layout_widgets.clear()
        exposed = compositor.reflow_visible(self, self.outer_size)
        for widget, place in compositor.layers:
            sizes = place.region.size, place.virtual_size, place.container_size
            if widget._size_updated(*sizes, layout=False) and widget in exposed:
                widget.post_message(events.Resize(*sizes))
        self._compositor_refresh()
