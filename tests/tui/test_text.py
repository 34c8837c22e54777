"""Nothing a terminal would obey reaches the screen, however the text is cut."""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.content import Content

from exl2_tui.markdown import Document
from exl2_tui.segments import Code, Prose, Segment, Table, Thought
from exl2_tui.text import clean, column, from_home, one_line, plain, sentence

FAMILIES = {
    "csi": "\x1b[31mred\x1b[0m",
    "csi-8bit": "\x9b31mred",
    "osc-52": "\x1b]52;c;aGVsbG8=\x07",
    "osc-8": "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "osc-title": "\x1b]0;owned\x07",
    "osc-8bit": "\x9d0;owned\x9c",
    "dcs": "\x1bP1$r0m\x1b\\",
    "dcs-8bit": "\x90q\x9c",
    "apc-pm-sos": "\x1b_x\x1b\\\x1b^y\x1b\\\x1bXz\x1b\\",
    "clear": "\x1b[2J\x1b[3J\x1b[H\x1bc",
    "alt-screen": "\x1b[?1049h\x1b[?1000h\x1b[?2004h",
    "report": "\x1b[6n\x1b[c\x1b[5n\x05",
    "shift": "\x0e\x0f\x1b(0\x1bN\x1bO",
    "backspaces": "safe\b\b\b\bevil",
    "carriage return": "safe\revil",
    "vertical": "a\x0bb\x0cc\x85d",
    "bell and nul": "\x07\x00\x1a\x7f",
    "bidi override": "a\u202eb\u202dc\u202a\u202b\u202c",
    "bidi isolate": "\u2066a\u2067b\u2068c\u2069\u200e\u200f\u061c",
    "separators": "a\u2028b\u2029c",
    "invisible": "a\u200bb\u2060c\ufeffd\u180e\u2063",
    "tags": "a" + "".join(chr(0xE0000 + ord(c)) for c in "hidden") + "\U000e0001\U000e007f",
    "annotation": "\ufff9a\ufffab\ufffb",
    "surrogates": "\ud800a\udfff\udc9b",
}


def is_safe(text: str) -> bool:
    allowed = "\n\t"
    return not any(
        (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") and char not in allowed)
        or (unicodedata.category(char) == "Cf" and char not in "\u00ad\u200c\u200d" and not _harmless_format(char))
        for char in text
    )


def _harmless_format(char: str) -> bool:
    """Format characters of scripts (Arabic number signs, musical notation, ...) change nothing but their neighbours."""
    return unicodedata.name(char, "").startswith(("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN", "SHORTHAND", "MUSICAL"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_split_at_every_character(name: str) -> None:
    text = f"before {FAMILIES[name]} after"
    whole = clean(text)
    assert is_safe(whole) and whole.startswith("before ") and whole.endswith(" after")
    for cut in range(len(text) + 1):
        assert clean(text[:cut]) + clean(text[cut:]) == whole


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_split_at_every_byte(name: str) -> None:
    data = f"é {FAMILIES[name]} ü".encode("utf-8", "surrogatepass")
    for encoded in (data, data.replace(b"\xc2\x9b", b"\x9b")):  # also a raw, invalid C1 byte
        for cut in range(len(encoded) + 1):
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            pieces = [decoder.decode(encoded[:cut]), decoder.decode(encoded[cut:], final=True)]
            assert is_safe("".join(clean(piece) for piece in pieces))


@given(st.text())
def test_clean_text_is_safe_and_stays_clean(text: str) -> None:
    assert is_safe(clean(text))
    assert clean(clean(text)) == clean(text)
    clean(text).encode("utf-8")


@given(st.text(), st.text())
def test_cleaning_pieces_is_cleaning_the_whole(left: str, right: str) -> None:
    assert clean(left) + clean(right) == clean(left + right)


@given(st.text(), st.integers(1, 60))
def test_one_line_fits(text: str, width: int) -> None:
    line = one_line(text, width)
    assert "\n" not in line and "\t" not in line
    assert Content(line).cell_length <= width


def test_ordinary_text_is_untouched() -> None:
    text = "Grüße, 你好, مرحبا, 👩‍👩‍👧 [b]bold[/b] \\[x]\n\ttab"
    assert clean(text) == text
    assert plain(text).plain == text
    assert plain("[red]x[/red]").spans == []


def shown(segments: list[Segment]) -> str:
    parts: list[str] = []
    for segment in segments:
        if isinstance(segment, Prose):
            parts += [line.lead + line.hang + line.body.plain for line in segment.lines]
        elif isinstance(segment, Code):
            parts += [segment.language, segment.text]
        elif isinstance(segment, Table):
            parts += [cell.plain for row in segment.rows for cell in row]
        elif isinstance(segment, Thought):
            parts.append(segment.text)
    return "\n".join(parts)


WRAPPINGS = ("{}", "# {}", "- {}", "`{}`", "[{}](http://{})", "```{}\n{}\n```", "|{}|\n|-|\n|{}|", "> {}", "<think>{}")


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_markdown_lets_nothing_through(name: str, wrapping: str) -> None:
    for payload in (FAMILIES[name], "".join(f"&#{ord(char)};" for char in FAMILIES[name])):
        text = wrapping.replace("{}", payload)
        document = Document()
        for char in text:
            document.feed(char)
            assert is_safe(shown(document.segments))
        document.finish()
        assert is_safe(shown(document.segments))


def test_sentences_begin_with_a_capital_and_names_stay() -> None:
    assert sentence("the message is too long") == "The message is too long"
    assert sentence("context, that is\nall") == "Context, that is all"
    assert sentence("config.json: hidden_size is missing") == "config.json: hidden_size is missing"
    assert sentence("\x1b") == ""


def test_paths_in_the_home_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    assert from_home(tmp_path / "ann" / "models" / "a") == "~/models/a"
    elsewhere = tmp_path / "bob" / "a"
    assert from_home(elsewhere) == str(elsewhere)


@pytest.mark.parametrize("name", ["plain", "日本語 モデル 😀", "日本語" * 30, "", "عربي שלום"])
@pytest.mark.parametrize("cells", [2, 10, 41])
def test_a_column_is_as_wide_as_its_cells_whatever_the_letters(name: str, cells: int) -> None:
    assert cell_len(column(name, cells)) == cells and column(name, cells).endswith(" ")
