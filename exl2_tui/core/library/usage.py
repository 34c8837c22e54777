"""When each model was last loaded: a small file beside the settings of the person."""

from __future__ import annotations

import time
from pathlib import Path

from exl2_tui.core.library.json_file import read_json, write_json

MOST = 500  # models remembered


def last_used(file: Path) -> dict[str, float]:
    """Seconds since the epoch by directory."""
    table = read_json(file)
    if not isinstance(table, dict):
        return {}
    return {path: float(when) for path, when in table.items() if isinstance(when, int | float)}


def mark_used(file: Path, path: Path, now: float | None = None) -> None:
    """Raises OSError if it cannot be written."""
    table = last_used(file)
    table[str(path.resolve())] = time.time() if now is None else now
    newest = sorted(table.items(), key=lambda item: -item[1])[:MOST]
    write_json(file, dict(newest))
