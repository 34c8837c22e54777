"""The one gate between outside text and the screen: model output, file names, hub metadata, error messages.

A terminal obeys control characters, and a reader believes what bidirectional overrides and invisible tags show. Every
character is judged alone, so a text may arrive in any pieces: clean(a) + clean(b) == clean(a + b). Escape sequences
lose their ESC and stay visible as plain letters. Widgets show the result as `Content`, which never parses markup.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from textual.content import Content

# C0 without tab and line feed, DEL, C1; marks, overrides and isolates of writing direction; line and paragraph
# separators; word joiners and invisible operators; byte order mark; annotation marks; the tag block.
FORBIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f"
)
_FORBIDDEN = re.compile(f"[{FORBIDDEN}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    """`text` without anything a terminal would obey; line feeds and tabs stay. Lone surrogates become U+FFFD."""
    return _SURROGATE.sub("\ufffd", _FORBIDDEN.sub("", text))


def one_line(text: str, width: int = 0) -> str:
    """`text` cleaned and on one line; with a width, cut to that many cells with an ellipsis."""
    line = _SPACE.sub(" ", clean(text)).strip()
    if width and cell_len(line) > width:
        line = set_cell_size(line, max(0, width - 1)).rstrip() + "…"
    return line


def column(text: str, cells: int) -> str:
    """`text` on one line that is exactly so many cells wide, at least the last of them blank: wide letters take two."""
    return set_cell_size(one_line(text, max(1, cells - 1)), max(0, cells))


def from_home(path: Path) -> str:
    """A path as a person writes it: what is in their home begins with "~"."""
    with contextlib.suppress(ValueError, RuntimeError):  # it is elsewhere, or there is no home
        return str(Path("~") / path.relative_to(Path.home()))
    return str(path)


def sentence(text: str) -> str:
    """A message of the core on one line, beginning as sentences do; a name that it begins with stays as it is."""
    line = one_line(text)
    return line[:1].upper() + line[1:] if line.partition(" ")[0].rstrip(",;:").isalpha() else line


def plain(text: str, style: str = "") -> Content:
    """Outside text as something a widget shows literally."""
    return Content.styled(clean(text), style) if style else Content(clean(text))


def speed_text(tokens_per_second: float) -> str:
    """Such as "12.5 tok/s" or "1061 tok/s": three digits tell enough, and rows are narrow."""
    return f"{tokens_per_second:.{0 if tokens_per_second >= 100 else 1}f} tok/s"


def tokens_text(count: int) -> str:
    """Such as "1 token" or "1,234 tokens"."""
    return f"{count:,} token" if count == 1 else f"{count:,} tokens"
