"""KeysInOrder: keys that arrive in a burst reach what has the focus once those before them have been dealt with.

Textual gives a key to the widget that has the focus when the key arrives. What moves the focus (tab, enter, a key that
opens a screen) takes several trips through message queues until it has done so, and a terminal delivers a burst (a
paste without brackets, a macro, a fast typist on a slow line) in one read: its end would go to where the focus was.
"""

from __future__ import annotations

from collections import deque

from textual import events, on
from textual.app import App
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Input, TextArea

LAPS = 2  # the key itself, then the message it became (Input.Submitted, Button.Pressed)
LOST_SECONDS = 2.0  # a lap ends nowhere if the widget it goes through is removed meanwhile
FORM_KEYS = frozenset(
    ("enter", "tab", "shift+tab", "up", "down", "left", "right", "home", "end", "backspace", "delete")
)


class KeysInOrder(App[None]):
    """An app whose keys are dealt with one after the other. Text for a text field flows without waiting.

    A screen may let keys wait longer: while its attribute `keys_wait` is true, those of a form are kept. It ends with
    `keys_go_on`; escape and the keys of the whole app work meanwhile.
    """

    class Lap(Message):
        """Follows a key through the widgets up to the app."""

        def __init__(self, left: int) -> None:
            super().__init__()
            self.left = left

    def __init__(self) -> None:
        super().__init__()
        self._typed_ahead: deque[events.Key | events.Paste] = deque()
        self._under_way: Timer | None = None  # while a key is; ends the wait if its lap is lost
        self._text_flows = False  # text may still be on its way to the field that has the focus

    async def on_event(self, event: events.Event) -> None:
        if not isinstance(event, events.Key | events.Paste) or event.is_forwarded:
            await super().on_event(event)
        elif not self.screen_stack:
            return  # the app has left; a key behind the one that ended it has nowhere to go
        elif self._under_way is not None or self._screen_keeps(event):
            self._typed_ahead.append(event)
        elif isinstance(event, events.Paste) or self._is_text(event):
            self._text_flows = True
            await super().on_event(event)
        elif self._text_flows:  # a key with priority is not forwarded: it would overtake the text before it
            self._text_flows = False
            self._typed_ahead.appendleft(event)
            self._under_way = self.set_timer(LOST_SECONDS, self._arrived)
            self._send(self.Lap(1))
        else:
            self._under_way = self.set_timer(LOST_SECONDS, self._arrived)
            await super().on_event(event)
            if self._under_way is not None:
                self._send(self.Lap(LAPS))

    def keys_go_on(self, *, dropped: bool = False) -> None:
        """The screen that let keys wait takes them now, or they were meant for something that did not come."""
        if dropped:
            self._typed_ahead.clear()
        if self._under_way is None:
            self.call_later(self._arrived)

    def _is_text(self, key: events.Key) -> bool:
        return key.is_printable and isinstance(self.focused, Input | TextArea)

    def _screen_keeps(self, event: events.Key | events.Paste) -> bool:
        if not getattr(self.screen, "keys_wait", False):
            return False
        return isinstance(event, events.Paste) or event.is_printable or event.key in FORM_KEYS

    def _send(self, lap: Lap) -> None:
        if not (self.focused or self.screen).post_message(lap):
            self.call_later(self._arrived)

    @on(Lap)
    async def _lap_ended(self, lap: Lap) -> None:
        lap.stop()
        if self._under_way is None:
            return
        if lap.left > 1:
            self._send(self.Lap(lap.left - 1))
        else:
            await self._arrived()

    async def _arrived(self) -> None:
        """The key has done what it does: now those behind it, up to the next one that may move the focus."""
        if self._under_way is not None:
            self._under_way.stop()
            self._under_way = None
        while self._typed_ahead and self._under_way is None and not self._screen_keeps(self._typed_ahead[0]):
            await self.on_event(self._typed_ahead.popleft())
