"""HintRow: the last row of a dialog, which says what its keys do."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from exl2_tui.hints import hint


class HintRow(Static):
    """text: ours, with the names of actions in braces where their keys are to stand. more: behind it, outside text."""

    def __init__(self, text: str, more: str = "") -> None:
        super().__init__("", classes="hint", markup=False)
        self._text = text
        self._more = more

    def on_mount(self) -> None:
        self.update(Content(hint(self, self._text) + self._more))
