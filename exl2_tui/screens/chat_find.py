"""FindActions: finding words in the chat in view."""

from __future__ import annotations

import re
from collections.abc import Sequence

from textual.css.query import DOMQuery
from textual.widget import Widget

from exl2_tui.find import Match, matches, pattern_of
from exl2_tui.hints import hint
from exl2_tui.screens.chat_turns import TurnActions
from exl2_tui.widgets.composer import Composer
from exl2_tui.widgets.transcript import Transcript


class FindActions(TurnActions):
    """What the chat screen does for its find bar."""

    _found: Sequence[Match] = ()
    _found_at = 0
    _pattern: re.Pattern[str] | None = None

    async def action_find(self) -> None:
        """The bar is made when it is first needed: not for the first frame."""
        from exl2_tui.widgets.find_bar import FindBar

        if not self._find_bars:
            await self.mount_all([FindBar()], before=self.query_one("#queue"))
        for bar in self._find_bars.results(FindBar):  # none if the app is leaving
            bar.open()

    @property
    def _find_bars(self) -> DOMQuery[Widget]:
        return self.query("FindBar")

    def find(self, typed: str) -> str:
        """Looks for words in this chat, from the end, which is nearest to what is on screen; returns how it went."""
        self._pattern = pattern_of(typed)
        self._found = matches(self._session.chat.path(), self._pattern) if self._pattern is not None else []
        self._found_at = len(self._found) - 1
        return self._show_match()

    def find_next(self, step: int) -> str:
        """Goes to the next match (1) or the one before (-1), around the ends."""
        if self._found:
            self._found_at = (self._found_at + step) % len(self._found)
        return self._show_match()

    def find_nothing(self) -> None:
        """Back to writing; what was lit up is no longer."""
        self._pattern, self._found = None, []
        self.query_one(Transcript).find(None, None, 0)
        self.query_one(Composer).focus()

    def _show_match(self) -> str:
        transcript = self.query_one(Transcript)
        if not self._found:
            transcript.find(self._pattern, None, 0)
            return "not found" if self._pattern is not None else ""
        match = self._found[self._found_at]
        transcript.find(self._pattern, match.turn, match.number)
        keys = hint(self, "{find.next} next  {find.previous} before  {find.close} close")
        return f"{self._found_at + 1:,} of {len(self._found):,}   {keys}"
