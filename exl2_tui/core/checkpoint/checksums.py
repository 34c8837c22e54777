"""Known hashes of a model's files: SHA256SUMS beside them, as `sha256sum -c` reads it, and what blob names say.

Downloads and conversions write the file; the Hugging Face cache names each blob by its hash: SHA-256 for large files,
the hash git gives a blob for the others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exl2_tui.core.cancel import CancelToken

SUMS_FILE = "SHA256SUMS"
MAX_SUMS_BYTES = 4 << 20
READ_BYTES = 1 << 20
HashKind = Literal["sha256", "git"]

_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\x00-\x1f]{1,255})")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class KnownHash:
    """origin: where the hash was found, for people."""

    kind: HashKind
    value: str
    origin: str


def known_hash(file: Path, sums: Mapping[str, str]) -> KnownHash | None:
    """What the file must hash to, None if nobody knows. sums: of its directory."""
    if value := sums.get(file.name):
        return KnownHash("sha256", value, SUMS_FILE)
    if file.is_symlink():
        target = file.readlink()
        if target.parent.name == "blobs":
            if _SHA256.fullmatch(target.name):
                return KnownHash("sha256", target.name, "the name of its blob")
            if _GIT.fullmatch(target.name):
                return KnownHash("git", target.name, "the name of its blob")
    return None


def read_sums(directory: Path) -> dict[str, str]:
    """SHA-256 by file name from the directory's SHA256SUMS; other lines, such as comments, are passed over."""
    try:
        with (directory / SUMS_FILE).open("rb") as stream:
            text = stream.read(MAX_SUMS_BYTES).decode("utf-8", "replace")
    except OSError:
        return {}
    found = (_LINE.fullmatch(line) for line in text.splitlines())
    return {match[2]: match[1] for match in found if match is not None}


def write_sums(directory: Path, sums: Mapping[str, str], comment: str = "") -> None:
    """Writes SHA256SUMS. Raises OSError."""
    head = f"# {comment}\n" if comment else ""
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
    (directory / SUMS_FILE).write_text(head + lines, encoding="utf-8")


def new_digest(kind: HashKind, size: int) -> hashlib._Hash:
    """git hashes a blob's size with it."""
    if kind == "git":
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return hashlib.sha256()


def file_pieces(file: Path, cancel: CancelToken | None = None) -> Iterator[bytes]:
    """A file's bytes, piece by piece. Raises OSError, CancelledError."""
    with file.open("rb") as stream:
        while piece := stream.read(READ_BYTES):
            if cancel is not None:
                cancel.check()
            yield piece
