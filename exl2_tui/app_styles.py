"""StyledApp: themes and style sheets, without what Textual would do twice before the first frame."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.theme import Theme

from exl2_tui.key_order import KeysInOrder
from exl2_tui.themes import THEMES

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

    def get_theme(self, theme_name: str) -> Theme | None:
        """Asked hundreds of times while styles are matched; Textual would copy its table of themes each time."""
        return self._registered_themes.get(theme_name) or super().get_theme(theme_name)

    def refresh_css(self, animate: bool = True) -> None:
        """Parses the style sheets again only if a colour changed: Textual would do it for the first frame, too."""
        variables = self.get_css_variables()
        if variables != self._css_variables:
            self._css_variables = variables
            super().refresh_css(animate)

    def read_later_styles(self) -> None:
        for name in LATER_STYLES:
            self.stylesheet.read(STYLES / f"{name}.tcss")
