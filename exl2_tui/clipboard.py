"""Copying: OSC 52 first, since it also works over ssh; then a helper program where the machine has a display.

Nobody can tell whether a terminal obeyed OSC 52, so a helper runs as well when one fits this session.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

HELPERS = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    ("TMUX", ("tmux", "load-buffer", "-w", "-")),  # which by default passes on no OSC 52 of the programs in it
)
OSC52_LIMIT = 75_000  # bytes; larger ones are cut or ignored by common terminals


def helper_command() -> tuple[str, ...] | None:
    """The program that fills this machine's clipboard, if this session has one."""
    if sys.platform == "darwin":
        return ("pbcopy",)
    if sys.platform == "win32":
        return ("clip",)
    for variable, command in HELPERS:
        if os.environ.get(variable) and shutil.which(command[0]):
            return command
    return None


def copy_with_helper(text: str) -> bool:
    """Runs the helper; blocks up to two seconds, so call it on a thread. False if there is none or it failed."""
    command = helper_command()
    if command is None:
        return False
    try:
        done = subprocess.run(
            command, input=text.encode("utf-8", "replace"), timeout=2, check=False, capture_output=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
