"""Attributes: the theme "mono" on its way to the terminal: colours become bold, dim, underlined or reversed text.

Not one colour is sent, not even the sequences that mean "the default one": NO_COLOR asks for none.
"""

from __future__ import annotations

from functools import lru_cache

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

BLUE, GREY = 4, 8  # numbers of ansi_blue and ansi_bright_black, the two that the theme uses
OF_TEXT = {BLUE: Style(bold=True), GREY: Style(dim=True)}
OF_GROUND = {BLUE: Style(reverse=True), GREY: Style(underline=True)}


class Attributes(LineFilter):
    """Emphasised text is bold, secondary text dim; a selection is reversed, a field to write in underlined."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            Segment(text, _attributes(style) if style is not None else None, control)
            for text, style, control in segments
        ]


@lru_cache(1024)
def _attributes(style: Style) -> Style:
    """The style without its colours; what the mouse does there stays."""
    plain = style.without_color
    if style.meta:
        plain += Style.from_meta(style.meta)
    if style.color is not None:
        plain += OF_TEXT.get(style.color.number or 0, Style.null())
    if style.bgcolor is not None and not style.reverse:
        plain += OF_GROUND.get(style.bgcolor.number or 0, Style.null())
    return plain + Style(dim=False) if plain.reverse else plain  # dim would take from the ground of a reversed row
