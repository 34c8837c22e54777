"""Small JSON files of a model directory, read with a limit on their size."""

from __future__ import annotations

import json
from pathlib import Path

from exl2_tui.core.errors import ConfigError

MAX_BYTES = 4 << 20  # parsed JSON can take twenty times the memory of its text


def read_json_object(path: Path) -> dict[str, object]:
    """The object in a file. Raises ConfigError if it is missing, unreadable, too large or no JSON object."""
    try:
        if not path.is_file():
            raise ConfigError("expected this file, found none", file=path, hint="Download the whole model directory")
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(f"expected at most {MAX_BYTES} bytes, found more", file=path)
        value = json.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror or error}", file=path) from error
    except RecursionError as error:
        raise ConfigError(
            "expected JSON of a sane depth, found brackets within brackets without end", file=path
        ) from error
    except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
        raise ConfigError(f"expected JSON, found something else: {error}", file=path) from error
    if not isinstance(value, dict):
        raise ConfigError(f"expected a JSON object, found {type(value).__name__}", file=path)
    return value
