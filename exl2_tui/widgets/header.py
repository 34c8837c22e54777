"""Header: the first row of every screen: the places left, model and prompt mode right. A click goes there."""

from __future__ import annotations

from textual import events
from textual.content import Content

from exl2_tui.session import ChatSession
from exl2_tui.widgets.bars import Row
from exl2_tui.widgets.status import header, mode_label

ACTIONS = {"Chat": "place_chat", "Models": "models", "Convert": "convert", "Settings": "settings"}


class Header(Row):
    """place: the one this screen belongs to."""

    def __init__(self, place: str) -> None:
        super().__init__(id="header")
        self._place = place
        self._mode_cells = 0

    def show(self, session: ChatSession) -> None:
        self._mode_cells = Content(f" · {mode_label(session)} ").cell_length
        self.put(*header(session, self._place, self.app.size.width))

    async def on_click(self, event: events.Click) -> None:
        action = self._action_at(event.x)
        if action:
            await self.run_action(action)

    def _action_at(self, x: int) -> str:
        """What a click at a column does: a place goes there, the model to all models, the mode asks for another."""
        left, right = self._sides
        far = self.content_size.width - right.cell_length
        if x >= self.content_size.width - self._mode_cells:
            return "screen.pick_mode" if self._place == "Chat" else ""
        if x >= far:
            return "app.models"
        starts = [left.plain.index(f" {place} ") for place in ACTIONS]
        ends = [*starts[1:], starts[-1] + len(" Settings ")]
        return next((f"app.{action}" for end, action in zip(ends, ACTIONS.values(), strict=True) if x < end), "")
