"""TooSmall: the one line a terminal shows that is too small for anything else."""

from __future__ import annotations

from textual import events
from textual.app import ComposeResult
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static


class TooSmall(ModalScreen[None]):
    """Covers everything until the terminal is larger; what runs below goes on."""

    DEFAULT_CSS = "TooSmall { background: $background; align: center middle; }"

    def __init__(self, smallest: tuple[int, int]) -> None:
        super().__init__()
        self._smallest = smallest

    def compose(self) -> ComposeResult:
        yield Static("", markup=False)

    def on_resize(self, event: events.Resize) -> None:
        width, height = self._smallest
        have = event.size
        self.query_one(Static).update(
            Content(f"exl2-tui needs {width}x{height} cells; this is {have.width}x{have.height}")
        )
