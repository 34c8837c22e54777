"""Text as rows of a width: counted without being made, found, copied as it was before it was wrapped."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.content import Content
from textual.geometry import Offset
from textual.selection import SELECT_ALL, Selection

from exl2_tui.markdown import Document
from exl2_tui.segments import Code, Line, ShownLine
from exl2_tui.widgets.code_lines import CodeLines
from exl2_tui.widgets.live_text import LiveText
from exl2_tui.widgets.text_rows import CURRENT, FOUND, TextRows
from exl2_tui.widgets.wrap import _USUAL, count_rows, wrap
from tests.tui.demo import ANSWERS

TEXTS = st.text(st.sampled_from("ab .\tα漢🙂-"), max_size=60)
MARKS = st.sampled_from([("", ""), ("• ", "  "), ("10. ", "    "), ("▎ ", "▎ ")])


def rows_of(lines: list[ShownLine], width: int) -> TextRows:
    rows = TextRows()
    rows.replace(0, lines, [line.gap for line in lines])
    rows.lay_out(width)
    return rows


def shown(rows: TextRows) -> list[str]:
    return [bar + text.plain for bar, text in map(rows.row, range(rows.height))]


@st.composite
def some_lines(draw: st.DrawFn) -> list[ShownLine]:
    lines: list[ShownLine] = []
    for _ in range(draw(st.integers(1, 5))):
        lead, hang = draw(MARKS)
        text = "\n".join(draw(st.lists(TEXTS, min_size=1, max_size=3)))
        bar = draw(st.sampled_from(["", "▌ "]))
        lines.append(Line(Content(text), lead, hang, draw(st.booleans()), bar))
    return lines


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("abc  \t\n-é’Ж漢🙂"), max_size=80), st.integers(8, 30))
def test_text_is_wrapped_as_textual_wraps_it(text: str, room: int) -> None:
    rows = wrap(Content(text), room)
    assert [row.plain for row in rows] == ([row.plain.rstrip() for row in Content(text).wrap(room)] or [""])
    assert count_rows(text, room) == len(rows)


def test_usual_characters_take_a_cell() -> None:
    usual = [chr(code) for code in range(0x3000) if _USUAL(chr(code))]
    assert len(usual) > 500 and {cell_len(character) for character in usual} == {1}


@settings(max_examples=200, deadline=None)
@given(some_lines(), st.integers(20, 60), st.integers(20, 60))
def test_rows_are_counted_as_they_are_made(lines: list[ShownLine], width: int, other: int) -> None:
    rows = rows_of(lines, other)
    rows.lay_out(width)
    made = [len(rows._rows(number)) for number in range(len(lines))]
    assert rows.height == sum(made) + sum(line.gap for line in lines)
    assert all(text.cell_length + len(bar) <= width for bar, text in map(rows.row, range(rows.height)))
    top = 0
    for number, line in enumerate(lines):
        assert rows.top(number) == top
        top += made[number] + line.gap
        assert rows.line_at(top - 1) == number


@settings(max_examples=100, deadline=None)
@given(some_lines(), some_lines(), st.integers(0, 5), st.integers(20, 60))
def test_replaced_lines_are_as_if_they_had_always_been_there(
    old: list[ShownLine], new: list[ShownLine], at: int, width: int
) -> None:
    at = min(at, len(old))
    rows = rows_of(old, width)
    shown(rows)
    rows.replace(at, new, [line.gap for line in new])
    assert shown(rows) == shown(rows_of([*old[:at], *new], width))


@settings(max_examples=200, deadline=None)
@given(some_lines(), st.integers(20, 60))
def test_all_of_it_is_copied_as_it_was_before_it_was_wrapped(lines: list[ShownLine], width: int) -> None:
    def words(text: str) -> list[str]:
        return [line.rstrip() for line in text.expandtabs(1).replace("\t", " ").split("\n")]

    plain = [Line(Content(line.plain.replace("\t", " ").replace("\n", " ")), line.lead, line.hang) for line in lines]
    wanted = [f"{line.lead}{line.plain}" for line in plain]
    assert words(rows_of([*plain], width).copied(SELECT_ALL)) == words("\n".join(wanted))


def test_a_part_of_a_wrapped_line_is_copied_without_what_wrapping_added() -> None:
    rows = rows_of([Line(Content("one two three four five six"), "• ", "  "), Line(Content("seven"), gap=True)], 12)
    assert shown(rows) == ["• one two", "  three four", "  five six", "", "seven"]
    assert rows.copied(Selection(Offset(6, 0), Offset(7, 1))) == "two three"
    assert rows.copied(Selection(Offset(0, 1), Offset(6, 2))) == "three four five"
    assert rows.copied(Selection(Offset(7, 2), None)) == "six\n\nseven"
    assert rows.copied(Selection(Offset(2, 0), Offset(5, 0))) == "one"


@pytest.mark.parametrize("width", [20, 40, 92])
def test_matches_are_lit_where_they_are_also_across_lines_and_wraps(width: int) -> None:
    rows = rows_of(
        [Line(Content("an apple a day and an")), Line(Content("apple a night")), Line(Content("pear"))], width
    )
    assert rows.find(re.compile(r"an\s+apple"), 1) == 2
    assert rows.row_of(1) == rows.height - 3
    lit = [
        (text.plain[span.start : span.end], span.style)
        for _, text in map(rows.row, range(rows.height))
        for span in text.spans
    ]
    assert lit == [("an apple", FOUND), ("an", CURRENT), ("apple", CURRENT)]
    assert rows.find(None, -1) == 0
    assert not [text.spans for _, text in map(rows.row, range(rows.height)) if text.spans]


def test_code_is_the_same_text_in_colours_however_it_came() -> None:
    text = "\n".join(f'def f{n}(x):\n\treturn "{n}"  # {n}\n' for n in range(70))
    code = Code("python")
    grown = CodeLines(code)
    for line in text.split("\n"):
        code.tail = line[:3]
        grown.lines()
        code.lines.append(line)
        code.tail = ""
    first = grown.lines()
    whole = CodeLines(Code("python", text.split("\n"))).lines()
    assert [line.body.plain for line in first] == ["python", *text.expandtabs(4).split("\n")]
    assert all(a.body.is_same(b.body) and a.plain == a.body.plain for a, b in zip(first, whole, strict=True))
    assert {str(span.style) for line in first for span in line.body.spans} >= {"$accent", "$success", "bold"}


@pytest.mark.parametrize("width", [30, 60, 92])
def test_an_answer_that_grows_has_the_rows_of_one_that_was_there(width: int) -> None:
    text = "<think>\nhm\n</think>\n" + "\n\n".join(ANSWERS) + "\n- one\n\n  ```py\n  x = 1\n  ```\n"
    whole = LiveText(text)
    whole.lay_out(width)
    assert [block.text for block in whole.blocks] == [s.text for s in Document(text).segments if isinstance(s, Code)]
    assert shown(whole.rows)[0] == "▸ Thought, 1 words"
    wide = LiveText(text)
    wide.lay_out(120)
    wide.lay_out(width)
    assert shown(wide.rows) == shown(whole.rows)
