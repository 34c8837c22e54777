"""ModelsTab: what the three screens of the Models place have in common: header, tabs, feedback, and a list to fill."""

from __future__ import annotations

from textual.screen import Screen

from exl2_tui.models_place import ModelsPlace
from exl2_tui.state import Changes
from exl2_tui.widgets.bars import StatusRow
from exl2_tui.widgets.header import Header
from exl2_tui.widgets.place_tabs import PlaceTabs


class ModelsTab(Screen[None]):
    """A screen with a Row #header, PlaceTabs and a StatusRow."""

    def __init__(self, place: ModelsPlace, *, id: str) -> None:
        super().__init__(id=id)
        self._place = place

    def fill(self) -> None:
        """Draws the list for the width there is."""
        raise NotImplementedError

    def repaint(self, changes: Changes) -> None:
        """Draws what changed outside of this place."""
        if changes.model or changes.status:
            self.query_one(Header).show(self._place.session)
        if changes.flash:
            self.query_one(StatusRow).say(changes.flash)

    def on_resize(self) -> None:
        self.call_after_refresh(self.fill)

    def on_screen_resume(self) -> None:
        """The size may have changed under a dialog."""
        self.call_after_refresh(self.fill)

    def on_place_tabs_chosen(self, event: PlaceTabs.Chosen) -> None:
        self._place.show(event.tab)
