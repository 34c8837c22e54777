"""Whether a person sits at a terminal that can show a full screen. Standard library only."""

from __future__ import annotations

import os
import sys


def open_missing_streams() -> None:
    """Standard streams that whoever started the program had closed lead to nowhere, not into the next file opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="replace", closefd=False))


def has_terminal() -> bool:
    """True if a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def can_draw() -> bool:
    """True if that terminal can be drawn on: TERM=dumb is how editors, Braille displays and scripts say no."""
    return has_terminal() and os.environ.get("TERM", "") not in ("dumb", "unknown")
