"""StyledApp: themes and style sheets, without what Textual would do twice before the first frame.

Two things that Textual 8.2.8 leaves out are done here for the terminal's own colours: the theme an app begins with
decides whether colours are passed on as they are, and a list reverses the row under its cursor if its style says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.filter import ANSIToTruecolor, Monochrome, NoColor
from textual.screen import SystemModalScreen
from textual.style import Style
from textual.theme import Theme
from textual.widgets import OptionList

from exl2_tui.key_order import KeysInOrder
from exl2_tui.mono import Attributes
from exl2_tui.themes import MONO, THEMES

STYLES = Path(__file__).parent / "styles"
LATER_STYLES = ("dialogs", "form", "settings", "models", "convert")  # of screens that are not the first one


class StyledApp(KeysInOrder):
    """An app in one of our themes. Styles that only other screens need are read with `read_later_styles`."""

    CSS_PATH: ClassVar[list[str | Path]] = [STYLES / "base.tcss"]  # type: ignore[assignment] # as App uses it

    def __init__(self, theme: str) -> None:
        super().__init__()
        for known in THEMES.values():
            self.register_theme(known)
        self.set_reactive(App.theme, theme)
        self._css_variables = self.get_css_variables()
        self.stylesheet.set_variables(self._css_variables)
        self._fit_filters()

    def get_theme(self, theme_name: str) -> Theme | None:
        """Asked hundreds of times while styles are matched; Textual would copy its table of themes each time."""
        return self._registered_themes.get(theme_name) or super().get_theme(theme_name)

    def refresh_css(self, animate: bool = True) -> None:
        """Parses the style sheets again only if a colour changed: Textual would do it for the first frame, too."""
        variables = self.get_css_variables()
        if variables != self._css_variables:
            self._css_variables = variables
            self._fit_filters()
            super().refresh_css(animate)
            if self.screen_stack and isinstance(
                self.screen, SystemModalScreen
            ):  # Textual's palette, which it leaves out
                self.stylesheet.update(self.screen, animate=animate)

    def _fit_filters(self) -> None:
        """Colours by number reach the terminal only where the theme is of such, and none where it has no colours.

        Textual's own filter for NO_COLOR makes colours grey, and greys are colours.
        """
        kept = [known for known in self._filters if not isinstance(known, Monochrome | NoColor | Attributes)]
        for known in kept:
            if isinstance(known, ANSIToTruecolor):
                known.enabled = not self.native_ansi_color
        self._filters = [*kept, Attributes()] if self.theme == MONO.name else kept

    def read_later_styles(self) -> None:
        for name in LATER_STYLES:
            self.stylesheet.read(STYLES / f"{name}.tcss")


# An option list of Textual forgets `reverse`, which alone marks the row under the cursor in the terminal's own colours.
_style_of_option = OptionList.get_visual_style


def _style_with_reverse(self: OptionList, *component_classes: str, partial: bool = False) -> Style:
    style = _style_of_option(self, *component_classes, partial=partial)
    if any(self.get_component_styles(name).text_style.reverse for name in component_classes):
        style += Style(reverse=True)
    return style


OptionList.get_visual_style = _style_with_reverse  # type: ignore[method-assign,assignment] # also for lists of Textual's own
