"""What commands print: JSON lines for scripts, tables and one-line progress for people.

Everything that comes from a model or a file passes `clean` before it reaches the terminal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from exl2_tui.core.errors import Exl2Error
from exl2_tui.core.events import Event, LoadProgress
from exl2_tui.text import clean


def print_json(value: Any) -> None:
    """One JSON value on one line of stdout. Escaped to ASCII, so that no control character reaches a terminal."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def print_text(text: str, end: str = "\n") -> None:
    """Text that a model, a file or a person supplied, without control characters."""
    sys.stdout.write(clean(text) + end)
    sys.stdout.flush()


def complain(error: Exl2Error) -> None:
    """An error on stderr: what is wrong, where, and what to do."""
    where = ", ".join(part for part in (error.file, error.tensor) if part)
    sys.stderr.write(clean(f"exl2-tui: {where + ': ' if where else ''}{error.message}") + "\n")
    if error.hint:
        sys.stderr.write(clean(f"  {error.hint}") + "\n")


def note(text: str) -> None:
    """Something a person should know that is not the result: on stderr, so that pipes stay clean."""
    sys.stderr.write(clean(text) + "\n")


@contextmanager
def progress_line(label: str) -> Iterator[Callable[[int, int], None]]:
    """A line on stderr that shows percent and time left, and disappears at the end. Silent without a terminal.

    Nothing is shown in the first half second, so that short work does not flicker.
    """
    shown = False
    started = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal shown, last
        now = time.monotonic()
        if not sys.stderr.isatty() or total <= 0 or now - started < 0.5 or now - last < 0.1:
            return
        last = now
        shown = True
        left = (now - started) * (total - done) / done if done else 0.0
        sys.stderr.write(f"\r\x1b[K{label} {100 * done / total:3.0f} %, {left:.0f} s left")
        sys.stderr.flush()

    try:
        yield update
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextmanager
def load_progress(label: str) -> Iterator[Callable[[Event], None]]:
    """progress_line fed by the events of a model load."""
    with progress_line(label) as update:

        def on_event(event: Event) -> None:
            if isinstance(event, LoadProgress):
                update(event.done, event.total)

        yield on_event
