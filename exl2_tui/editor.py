"""Writing a message in the person's own editor ($VISUAL, $EDITOR, vi)."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from exl2_tui.core.errors import Exl2Error
from exl2_tui.text import one_line


def edit_text(text: str) -> str:
    """Opens `text` in the editor and returns what was saved; the app must be suspended meanwhile.

    Raises Exl2Error if the editor cannot be run or reports failure; nothing is lost then.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ("notepad" if os.name == "nt" else "vi")
    with tempfile.TemporaryDirectory(prefix="exl2-tui-") as directory:
        path = Path(directory) / "message.md"
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            code = subprocess.call([*shlex.split(command), str(path)])
        except (OSError, ValueError) as error:
            raise Exl2Error(f"the editor {one_line(command, 40)} could not be started: {error}") from error
        if code:
            raise Exl2Error(f"the editor {one_line(command, 40)} ended with code {code}; the message is unchanged")
        return path.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
