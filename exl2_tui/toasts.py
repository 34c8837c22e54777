"""WarningApp: warnings that need no answer, in a corner of the screen."""

from __future__ import annotations

import time

from exl2_tui.app_styles import StyledApp
from exl2_tui.text import one_line

SECONDS = 12.0


class WarningApp(StyledApp):
    """An app with warnings. One that stands on the screen is not put there again: a full disk says the same often."""

    def __init__(self, theme: str) -> None:
        super().__init__(theme)
        self._warned: dict[str, float] = {}  # texts, and until when they can be read

    def warn(self, text: str) -> None:
        text, now = one_line(text), time.monotonic()
        if self._warned.get(text, now) <= now:
            self._warned[text] = now + SECONDS
            self.notify(text, severity="warning", timeout=SECONDS, markup=False)
