"""Whether a person sits at a terminal that can show a full screen. Standard library only."""

from __future__ import annotations

import os
import sys


def has_terminal() -> bool:
    """True if a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def can_draw() -> bool:
    """True if that terminal can be drawn on: TERM=dumb is how editors, Braille displays and scripts say no."""
    return has_terminal() and os.environ.get("TERM", "") not in ("dumb", "unknown")
