"""KeyCapture: takes another key for an action by pressing it, and refuses one that is taken or cannot be sent."""

from __future__ import annotations

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from exl2_tui.keymap import KEYS, effective, problem_of, spell_all
from exl2_tui.widgets.hint_row import HintRow


class KeyCapture(ModalScreen[str | None]):
    """Answers with the key, or None. enter and escape belong to the dialog and cannot be taken here."""

    takes_every_key = True  # also those of the app, such as the one that quits

    def __init__(self, name: str, overrides: dict[str, str]) -> None:
        super().__init__()
        self._key = next(key for key in KEYS if key.id == name)
        self._overrides = overrides
        self._pressed = ""
        self._wrong = ""

    def compose(self) -> ComposeResult:
        now = spell_all(effective(self._overrides)[self._key.id])
        with Vertical(classes="dialog") as box:
            box.border_title = Content("Another key")
            yield Static(Content(f"{self._key.help}: now {now}"), classes="text", markup=False)
            yield Static("", id="pressed", classes="text", markup=False)
            yield HintRow("press the key, then ⏎ to use it   esc leave as it was")

    def on_key(self, event: events.Key) -> None:
        event.stop()
        event.prevent_default()
        if event.key == "escape":
            self.dismiss(None)
        elif event.key == "enter":
            if self._pressed and not self._wrong:
                self.dismiss(self._pressed)
        else:
            self._pressed = event.key
            self._wrong = problem_of(self._key.id, self._pressed, self._overrides)
            shown = Content.styled(spell_all(self._pressed), "bold $primary")
            if self._wrong:
                shown = Content.assemble(shown, (f"   ✗ {self._wrong}", "$error"))
            self.query_one("#pressed", Static).update(shown)
