"""Events from worker threads to the screen: many in, one wake-up, drained together. Knows nothing of Textual."""

from __future__ import annotations

import threading
from collections.abc import Callable

from exl2_tui.core.events import Event


class EventBridge:
    """A queue whose first item after a drain calls `wake` on the pushing thread."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def push(self, event: Event) -> None:
        with self._lock:
            first = not self._events
            self._events.append(event)
        if first:
            self._wake()

    def drain(self) -> list[Event]:
        """Everything since the last drain, in order."""
        with self._lock:
            events, self._events = self._events, []
        return events
