"""FindBar: the row above the composer in which one looks for words in this chat."""

from __future__ import annotations

from typing import ClassVar, Protocol, cast

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Input, Static

from exl2_tui.keymap import bindings


class Finds(Protocol):
    """A screen in which words can be found."""

    def find(self, typed: str) -> str: ...
    def find_next(self, step: int) -> str: ...
    def find_nothing(self) -> None: ...


class FindBar(Horizontal):
    """Takes what is typed and which way to go; its screen, a Finds, does the finding and says how it went."""

    DEFAULT_CSS: ClassVar[str] = """
    FindBar { height: 1; display: none; padding: 0 2; background: $surface; }
    FindBar Static { width: auto; color: $secondary; }
    FindBar Input { width: 1fr; border: none; background: $field; }
    FindBar Input:focus { background-tint: $background 0%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("find")]
    HELP = (
        "Finds words in every turn of this branch of the chat, also in turns that are not on screen. An upper case "
        "letter makes it look at the case. {chat.open} searches all chats."
    )

    def compose(self) -> ComposeResult:
        yield Static(Content("find  "), markup=False)
        yield Input(compact=True)
        yield Static("", id="found-count", markup=False)

    @property
    def _finds(self) -> Finds:
        return cast(Finds, self.screen)

    def open(self) -> None:
        control = self.query_one(Input)
        control.cursor_blink = False
        self.display = True
        control.focus()
        control.action_select_all()
        self._tell(self._finds.find(control.value))

    def _tell(self, text: str) -> None:
        self.query_one("#found-count", Static).update(Content(f"  {text}"))

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.display:
            self._tell(self._finds.find(event.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_next_match()

    def action_next_match(self) -> None:
        self._tell(self._finds.find_next(1))

    def action_previous_match(self) -> None:
        self._tell(self._finds.find_next(-1))

    def action_close_find(self) -> None:
        self.display = False
        self._finds.find_nothing()
