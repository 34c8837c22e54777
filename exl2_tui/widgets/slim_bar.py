"""SlimBar: the scroll bar of a text that grows. Textual 8.2.8 draws all its rows one by one for every frame."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.strip import Strip
from textual.widget import Widget


class SlimBar(ScrollBar):
    """A vertical scroll bar that looks as Textual's does; of equal rows, one is drawn.

    It comes and goes without a layout, for views that keep its column free.
    """

    @property
    def display(self) -> bool:
        view = self.parent
        return isinstance(view, Widget) and view.show_vertical_scrollbar

    @display.setter
    def display(self, on: bool | str) -> None:
        """What the view says counts."""

    def render_lines(self, crop: Region) -> list[Strip]:
        bar = self.render()
        assert isinstance(bar, ScrollBarRender) and isinstance(bar.style, Style)
        colors = bar.style.bgcolor, bar.style.color
        assert colors[0] is not None and colors[1] is not None
        segments = bar.render_bar(
            self.size.height,
            bar.virtual_size,
            bar.window_size,
            bar.position,
            self.size.width,
            back_color=colors[0],
            bar_color=colors[1],
        ).segments
        behind = self.visual_style.rich_style
        drawn: dict[Segment, Strip] = {}
        strips: list[Strip] = []
        for segment in segments[crop.y : crop.bottom]:
            if segment not in drawn:
                strip = Strip(Segment.apply_style([segment], behind), self.size.width)
                for line_filter in self.get_line_filters():
                    strip = strip.apply_filter(line_filter, self.background_colors[1])
                drawn[segment] = strip
            strips.append(drawn[segment])
        return strips
