"""Colours. Every pair of text and background reaches 4.5:1 (tests/tui/test_themes.py); meaning never rests on colour.

"auto" asks the terminal for its background before the app starts. "terminal" uses the terminal's own 16 colours, "mono"
none at all; it is the only theme where NO_COLOR is set (no-color.org).
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from dataclasses import replace

from textual.theme import Theme

ANSWER_SECONDS = 0.12  # how long a terminal may take to name its background; it also answers the question after it

DARK = Theme(
    name="exl2-dark",
    primary="#8ab4d8",
    secondary="#a3a9b3",
    accent="#8ab4d8",
    success="#8fbf95",
    warning="#d9b878",
    error="#e58f8a",
    foreground="#d8dbe0",
    background="#14171b",
    surface="#1a1e23",
    panel="#23282f",
    dark=True,
    text_alpha=1.0,
    variables={
        "block-cursor-background": "#283d50",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": "#23282f",
        "block-cursor-blurred-foreground": "#d8dbe0",
        "input-cursor-background": "#d8dbe0",
        "input-cursor-foreground": "#14171b",
        "input-selection-background": "#283d50",
        "input-selection-foreground": "#ffffff",
        "screen-selection-background": "#283d50",
        "field": "#1a1e23",
        "found": "#283d50",
        "footer-key-foreground": "#8ab4d8",
        "footer-description-foreground": "#a3a9b3",
        "footer-background": "#14171b",
        "scrollbar": "#3a414b",
        "scrollbar-hover": "#5b6573",
        "scrollbar-active": "#8ab4d8",
        "scrollbar-background": "#14171b",
        "scrollbar-background-hover": "#14171b",
        "scrollbar-background-active": "#14171b",
        "border": "#8ab4d8",
        "border-blurred": "#3a414b",
    },
)

LIGHT = Theme(
    name="exl2-light",
    primary="#2b648f",
    secondary="#5c626b",
    accent="#2b648f",
    success="#2b6e3b",
    warning="#7a5200",
    error="#a8322c",
    foreground="#23262a",
    background="#fbfaf8",
    surface="#f3f1ed",
    panel="#e8e5df",
    dark=False,
    text_alpha=1.0,
    variables={
        "block-cursor-background": "#cfe0ee",
        "block-cursor-foreground": "#14171b",
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": "#e8e5df",
        "block-cursor-blurred-foreground": "#23262a",
        "input-cursor-background": "#23262a",
        "input-cursor-foreground": "#fbfaf8",
        "input-selection-background": "#cfe0ee",
        "input-selection-foreground": "#14171b",
        "screen-selection-background": "#cfe0ee",
        "field": "#f3f1ed",
        "found": "#cfe0ee",
        "footer-key-foreground": "#2b648f",
        "footer-description-foreground": "#5c626b",
        "footer-background": "#fbfaf8",
        "scrollbar": "#c9c5bc",
        "scrollbar-hover": "#9b968b",
        "scrollbar-active": "#2b648f",
        "scrollbar-background": "#fbfaf8",
        "scrollbar-background-hover": "#fbfaf8",
        "scrollbar-background-active": "#fbfaf8",
        "border": "#2b648f",
        "border-blurred": "#c9c5bc",
    },
)

TERMINAL = Theme(
    name="exl2-terminal",
    ansi=True,
    primary="ansi_blue",
    secondary="ansi_default",
    accent="ansi_cyan",
    success="ansi_green",
    warning="ansi_yellow",
    error="ansi_red",
    foreground="ansi_default",
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    boost="ansi_default",
    variables={
        "ansi-background": "ansi_default",
        "ansi-foreground": "ansi_default",
        "input-cursor-text-style": "reverse",
        # Reversed: on the cursor row every colour has the contrast that it has elsewhere, whatever the palette is.
        "block-cursor-background": "ansi_default",
        "block-cursor-foreground": "ansi_default",
        "block-cursor-text-style": "bold reverse",
        "block-cursor-blurred-background": "ansi_default",
        "block-cursor-blurred-foreground": "ansi_default",
        "input-cursor-background": "ansi_default",
        "input-cursor-foreground": "ansi_default",
        "input-selection-background": "ansi_blue",
        "input-selection-foreground": "ansi_bright_white",
        "screen-selection-background": "ansi_blue",
        "screen-selection-foreground": "ansi_bright_white",
        "field": "ansi_default",
        "found": "ansi_blue",
        "footer-key-foreground": "ansi_cyan",
        "footer-description-foreground": "ansi_default",
        "footer-background": "ansi_default",
        "border": "ansi_blue",
        "border-blurred": "ansi_default",
        "scrollbar": "ansi_bright_black",
        "scrollbar-hover": "ansi_default",
        "scrollbar-active": "ansi_cyan",
        "scrollbar-background": "ansi_default",
        "scrollbar-background-hover": "ansi_default",
        "scrollbar-background-active": "ansi_default",
        "scrollbar-corner-color": "ansi_default",
    },
)

# Its colours never reach a terminal: each stands for an attribute, and mono.py draws that.
MONO = replace(
    TERMINAL,
    name="exl2-mono",
    primary="ansi_blue",
    accent="ansi_blue",
    warning="ansi_blue",
    error="ansi_blue",
    success="ansi_default",
    secondary="ansi_bright_black",
    panel="ansi_bright_black",
    variables={
        **TERMINAL.variables,
        "border-blurred": "ansi_bright_black",
        "field": "ansi_bright_black",
        "found": "ansi_bright_black",
        "footer-key-foreground": "ansi_blue",
        "footer-description-foreground": "ansi_bright_black",
        "input-selection-background": "ansi_blue",
        "input-selection-foreground": "ansi_default",
        "screen-selection-background": "ansi_blue",
        "screen-selection-foreground": "ansi_default",
    },
)

THEMES = {"dark": DARK, "light": LIGHT, "terminal": TERMINAL, "mono": MONO}


def theme_name(setting: str) -> str:
    """The Textual theme for a settings value; "auto" asks the terminal and must run before the app owns it."""
    if setting == "auto" and not colours_are_off():
        setting = "light" if background_is_light() else "dark"
    return known_theme_name(setting)


def known_theme_name(setting: str) -> str:
    """The Textual theme for a settings value other than "auto", while the app runs."""
    return (MONO if colours_are_off() else THEMES.get(setting, DARK)).name


def colours_are_off() -> bool:
    """Whether the person asks every program for no colour: no-color.org says that an empty value does not count."""
    return os.environ.get("NO_COLOR", "") != ""


def background_is_light() -> bool:
    """What the terminal says its background is; without an answer COLORFGBG; without that, dark."""
    answer = _ask_terminal()
    if answer is not None:
        return answer > 0.5
    last = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return last in ("7", "15")


def luminance(reply: bytes) -> float | None:
    """Luminance from 0 to 1 of an OSC 11 reply such as b"\\x1b]11;rgb:fbfb/fafa/f8f8\\x07"; None if there is none."""
    match = re.search(rb"\]11;rgba?:([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})", reply)
    if match is None:
        return None
    red, green, blue = (int(part, 16) / float(16 ** len(part) - 1) for part in match.groups())
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def _ask_terminal() -> float | None:
    """Sends OSC 11 and, since every terminal answers it, a device attributes request: its reply ends the wait."""
    if sys.platform == "win32" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    import termios
    import tty

    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    reply = b""
    try:
        before = termios.tcgetattr(terminal)
        tty.setcbreak(terminal)
        try:
            os.write(terminal, b"\x1b]11;?\x1b\\\x1b[c")
            end = time.monotonic() + ANSWER_SECONDS
            while (left := end - time.monotonic()) > 0 and not re.search(rb"\x1b\[\?[\d;]*c", reply):
                if select.select([terminal], [], [], left)[0]:
                    reply += os.read(terminal, 256)
        finally:
            termios.tcsetattr(terminal, termios.TCSANOW, before)
    except (OSError, termios.error):
        return None
    finally:
        os.close(terminal)
    return luminance(reply)
