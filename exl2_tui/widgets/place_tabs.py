"""PlaceTabs: the three lists of the place Models, in one row; a click goes there."""

from __future__ import annotations

from textual.content import Content
from textual.events import Click
from textual.message import Message

from exl2_tui.widgets.bars import Row

TABS = (("models", "On this machine"), ("hub", "Hugging Face"), ("downloads", "Downloads"))


class PlaceTabs(Row):
    """`show` draws it; Chosen is posted for a click on another tab."""

    class Chosen(Message):
        """tab: "models", "hub" or "downloads"."""

        def __init__(self, tab: str) -> None:
            super().__init__()
            self.tab = tab

    def __init__(self, here: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._here = here
        self._ends: list[tuple[int, str]] = []

    def show(self, counts: dict[str, int], right: Content) -> None:
        """counts: shown behind the names where they are not 0."""
        parts: list[str | tuple[str, str]] = ["  "]
        self._ends = []
        at = 2
        for tab, title in TABS:
            count = f" {counts[tab]}" if counts.get(tab) else ""
            text = f"{title}{count}"
            parts.append((text, "bold $primary" if tab == self._here else "$secondary"))
            parts.append("    ")
            at += len(text) + 4
            self._ends.append((at - 2, tab))
        self.put(Content.assemble(*parts), right)

    def on_click(self, event: Click) -> None:
        tab = next((tab for end, tab in self._ends if event.x < end), None)
        if tab is not None and tab != self._here:
            self.post_message(self.Chosen(tab))
