"""Small JSON files of our own: read without trust, replaced so that a crash leaves the old or the new one."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

MAX_BYTES = 64 << 20


def read_json(path: Path) -> object:
    """The value, None if there is no file that can be read: callers keep here only what they can find out again."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        value: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value


def write_json(path: Path, value: object) -> None:
    """Raises OSError; then the old file is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(value, stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
