"""Warnings that need no answer, in a corner of the screen."""

from __future__ import annotations

from typing import Any

from textual.app import App

from exl2_tui.text import one_line

SECONDS = 12.0


def warn(app: App[Any], text: str) -> None:
    """Shows a text, unless it is on the screen already: a full disk says the same with every message."""
    text = one_line(text)
    if all(text != shown.message for shown in app._notifications):
        app.notify(text, severity="warning", timeout=SECONDS, markup=False)
