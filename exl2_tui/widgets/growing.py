"""Growing: a widget that gets more rows at its end without being laid out or drawn again from its beginning.

In Textual 8.2.8 a widget that was given another height in a layout asks for a second layout, and forgets every row it
has drawn. While an answer is written, one of each per frame is what the engine loses.
"""

from __future__ import annotations

from textual.geometry import Size
from textual.widget import Widget


class Growing(Widget):
    """For widgets whose rows depend on their width only: no border, outline or padding at the bottom, no scroll bar.

    Named as the last base: Textual inherits styles from the first.
    """

    def _size_updated(self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True) -> bool:
        if size.width != self._size.width:
            return super()._size_updated(size, virtual_size, container_size, layout=False)
        changed = (size, virtual_size, container_size) != (self._size, self.virtual_size, self._container_size)
        self._layout_cache.clear()
        self._size = size
        self.set_reactive(Widget.virtual_size, virtual_size)
        self._container_size = container_size
        return changed
