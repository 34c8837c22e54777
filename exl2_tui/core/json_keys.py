"""JSON objects that strangers wrote: read with a limit, and their keys typed and in range. Standard library only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from exl2_tui.core.errors import ConfigError

MAX_CONFIG_BYTES = 4 << 20


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a small file. Raises ConfigError if it is missing, too large, malformed or no object."""
    try:
        size = file.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ConfigError(f"the file has {size} bytes, but at most {MAX_CONFIG_BYTES} are expected", file=file)
        parsed = json.loads(file.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            "the file does not exist", file=file, hint="A model directory needs config.json and *.safetensors."
        ) from None
    except OSError as error:
        raise ConfigError(f"the file cannot be read ({error.strerror})", file=file) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the file is not valid JSON ({error})", file=file) from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"expected a JSON object, found {shown(parsed)}", file=file)
    return parsed


def shown(value: object) -> str:
    """A value as JSON, short enough for an error message."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _is_number(value: object) -> bool:
    """bool counts as int in Python, and JSON as Python reads it has NaN, Infinity and integers beyond any float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


REQUIRED: Any = object()


class JsonKeys:
    """Typed, checked access to the keys of one JSON object. null counts as absent."""

    def __init__(self, raw: Mapping[str, Any], file: Path | str | None, prefix: str = "") -> None:
        self.raw = raw
        self.file = file
        self.prefix = prefix

    def get(self, key: str) -> Any:
        return self.raw.get(key)

    def fail(self, key: str, expected: str) -> NoReturn:
        found = shown(self.raw[key]) if key in self.raw else "missing"
        raise ConfigError(f"{self.prefix}{key} is {found}, but must be {expected}", file=self.file)

    def integer(self, key: str, low: int, high: int, *, default: int = REQUIRED) -> int:
        value = self.get(key)
        if value is None and default is not REQUIRED:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(key, f"an integer from {low} to {high}")
        return int(value)

    def number(self, key: str, low: float, high: float, *, default: float = REQUIRED) -> float:
        value = self.get(key)
        if value is None and default is not REQUIRED:
            value = default
        if not _is_number(value) or not low <= value <= high:
            self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, key: str, count: int, low: float, high: float) -> tuple[float, ...]:
        value = self.get(key)
        if not isinstance(value, list) or len(value) != count:
            self.fail(key, f"a list of {count} numbers")
        if not all(_is_number(item) and low <= item <= high for item in value):
            self.fail(key, f"a list of numbers from {low:g} to {high:g}")
        return tuple(float(item) for item in value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def text(self, key: str, *, default: str) -> str:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fail(key, "a string")
        return value

    def table(self, key: str) -> dict[str, Any] | None:
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(key, "an object")
        return value

    def decide(self, rule: bool | str) -> bool:
        """A fixed answer of the architecture, or the flag it names."""
        return self.flag(rule) if isinstance(rule, str) else rule

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """An id or a list of ids. Ids outside the vocabulary can never be produced: they are left out."""
        value = self.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if len(items) > 1000 or any(isinstance(item, bool) or not isinstance(item, int) for item in items):
            self.fail(key, "a token id or a list of token ids")
        return tuple(dict.fromkeys(item for item in items if 0 <= item < vocab_size))
