"""ScanStore: what was found in model directories, kept on disk, so that only changed ones are read again.

An entry counts as long as the names, sizes and times of the directory's files are the same, and for this version of the
program only: another one may know more architectures. It is a cache: damage is the same as emptiness.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from exl2_tui import __version__
from exl2_tui.core.events import ModelInfo, ModelSource
from exl2_tui.core.library.json_file import read_json, write_json
from exl2_tui.core.model.footprint import Footprint

FORMAT = f"2 {__version__}"
READ_BY_DESCRIBE = (".safetensors", ".json")


@dataclass(frozen=True, slots=True)
class Examined:
    """One model directory; footprint None: it cannot be loaded."""

    info: ModelInfo
    footprint: Footprint | None


def fingerprint(path: Path) -> str:
    """Changes when a file that a description depends on is added, removed or written. Raises OSError."""
    files = []
    for entry in path.iterdir():
        if entry.name.endswith(READ_BY_DESCRIBE) and not entry.name.startswith("."):
            try:
                status = entry.stat()
            except OSError:  # a link to nothing
                files.append((entry.name, -1, -1))
                continue
            files.append((entry.name, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(files)).encode()).hexdigest()


class ScanStore:
    """The cache file. Not for two threads at once; two processes may overwrite each other's news, never damage it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries: dict[str, dict[str, Any]] = {}
        self._changed = False
        table = read_json(file)
        if isinstance(table, dict) and table.get("format") == FORMAT and isinstance(table.get("models"), dict):
            self._entries = table["models"]

    def get(self, path: Path, mark: str) -> Examined | None:
        """What is known of this directory, if `mark` is still its fingerprint."""
        entry = self._entries.get(str(path))
        if not isinstance(entry, dict) or entry.get("mark") != mark:
            return None
        try:
            info = _rebuilt(ModelInfo, entry["info"])
            numbers = entry["footprint"]
            footprint = None if numbers is None else _rebuilt(Footprint, numbers)
        except (KeyError, TypeError, ValueError):
            return None
        return Examined(info, footprint)

    def put(self, path: Path, mark: str, found: Examined) -> None:
        footprint = None if found.footprint is None else dataclasses.asdict(found.footprint)
        self._entries[str(path)] = {"mark": mark, "info": dataclasses.asdict(found.info), "footprint": footprint}
        self._changed = True

    def save(self, paths: set[str]) -> None:
        """Writes the file if anything changed; entries of other directories than `paths` are dropped."""
        gone = self._entries.keys() - paths
        if not gone and not self._changed:
            return
        self._entries = {path: entry for path, entry in self._entries.items() if path in paths}
        self._changed = False
        write_json(self._file, {"format": FORMAT, "models": self._entries})


def _rebuilt(kind: Any, values: object) -> Any:
    """A dataclass of strings and numbers from its dictionary. Raises TypeError or ValueError if it is none."""
    if not isinstance(values, dict):
        raise TypeError
    built = kind(**values)
    for field in dataclasses.fields(kind):
        value = getattr(built, field.name)
        wanted = {"int": (int,), "float": (int, float)}.get(str(field.type), (str,))
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise TypeError
    if kind is ModelInfo and built.source not in get_args(ModelSource):
        raise ValueError
    return built
