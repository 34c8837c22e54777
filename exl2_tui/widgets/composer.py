"""Composer: where a message is written. Enter sends, ctrl+j adds a line, arrows at the edge walk through history."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.message import Message
from textual.widgets import TextArea

from exl2_tui.keymap import bindings
from exl2_tui.text import clean

PASTE_LIMIT = 8_000  # longer pastes stand in the text as one marker: editing a megabyte row would freeze the screen


class Composer(TextArea):
    """A TextArea that never sends by accident: a paste is only ever text."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("composer")]
    HELP = (
        "Write here; {composer.send} sends and {composer.newline} adds a line (Settings can swap them). While an "
        "answer is written, a message waits until it has ended: {composer.older} in the empty field takes it back to "
        "change it. What was not sent is kept with its chat. A long paste stands as one marker. {composer.older} on "
        "the first row walks through what you wrote earlier."
    )

    class Submitted(Message):
        """The person sends `text`; the composer is already empty."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class TakenBack(Message):
        """The person wants the message that was queued last back, to change it."""

    class Scrolled(Message):
        """The person wants the transcript moved by that many pages."""

        def __init__(self, pages: int) -> None:
            super().__init__()
            self.pages = pages

    def __init__(self, *, enter_sends: bool = True, turn_key: Callable[[str], bool] | None = None) -> None:
        super().__init__(
            soft_wrap=True,
            show_line_numbers=False,
            compact=True,
            highlight_cursor_line=False,
            placeholder="Message",
            tab_behavior="focus",
            id="composer",
        )
        self.set_reactive(TextArea.cursor_blink, False)  # calm, and a quiet terminal costs nothing
        self.queued = False  # whether messages wait; then up in an empty composer takes the last one back
        self._enter_sends = enter_sends
        self._turn_key = turn_key
        self._history: list[str] = []
        self._at: int | None = None  # index into history while walking through it
        self._draft = ""
        self._pastes: list[str] = []

    async def _on_key(self, event: events.Key) -> None:
        if self._turn_key is not None and self._turn_key(event.key):
            event.stop()
            event.prevent_default()
            return
        if event.key == "enter":  # TextArea would insert it before bindings are asked
            event.stop()
            event.prevent_default()
            self.action_send()
            return
        await super()._on_key(event)

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.insert_pasted(event.text)

    def insert_pasted(self, text: str) -> None:
        """Puts text at the cursor; a long one is kept aside and shown as a marker that stands for it."""
        text = clean(text.replace("\r\n", "\n").replace("\r", "\n"))
        if len(text) > PASTE_LIMIT:
            self._pastes.append(text)
            text = f"[paste {len(self._pastes)}: {len(text):,} characters]"
        if result := self._replace_via_keyboard(text, *self.selection):
            self.move_cursor(result.end_location)

    def set_message(self, text: str) -> None:
        """Replaces the text and puts the cursor behind it."""
        self.clear()
        self.insert_pasted(text)

    def asked_here(self, texts: list[str]) -> None:
        """What was asked in the chat in view, oldest first: it comes before what is sent from now on."""
        self._history = [*(text for text in self._history if text not in texts), *texts]
        self._at = None

    def remember(self, text: str) -> None:
        """Adds a message to the history."""
        if not self._history or self._history[-1] != text:
            self._history.append(text)
        self._at = None

    @property
    def message(self) -> str:
        """The text with markers replaced by what was pasted."""

        def original(match: re.Match[str]) -> str:
            number = int(match[1]) - 1
            return self._pastes[number] if 0 <= number < len(self._pastes) else match[0]

        return re.sub(r"\[paste (\d{1,4}): [\d,]+ characters\]", original, self.text)

    def action_send(self) -> None:
        if self._enter_sends:
            self._submit()
        else:
            self._replace_via_keyboard("\n", *self.selection)

    def action_newline(self) -> None:
        if self._enter_sends:
            self._replace_via_keyboard("\n", *self.selection)
        else:
            self._submit()

    def _submit(self) -> None:
        text = self.message
        if not text.strip():
            return
        self.remember(text)
        self.clear()
        self._pastes.clear()
        self.post_message(self.Submitted(text))

    def action_older(self) -> None:
        if self.queued and not self.text:
            self.post_message(self.TakenBack())
            return
        walking = self._at is not None
        if not self.cursor_at_first_line or not self._history or (self.text and not walking):
            self.action_cursor_up()
            return
        if self._at is None:
            self._draft = self.text
        self._recall(max(0, len(self._history) - 1 if self._at is None else self._at - 1))

    def action_newer(self) -> None:
        if self._at is None or not self.cursor_at_last_line:
            self.action_cursor_down()
        elif self._at + 1 < len(self._history):
            self._recall(self._at + 1)
        else:
            self._at = None
            self.set_message(self._draft)

    def action_cursor_page_up(self) -> None:
        self.post_message(self.Scrolled(-1))

    def action_cursor_page_down(self) -> None:
        self.post_message(self.Scrolled(1))

    def _recall(self, index: int) -> None:
        self.set_message(self._history[index])
        self._at = index
