"""The segment renderer: any split gives the same result, long texts cost no more per piece than short ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exl2_tui import markdown
from exl2_tui.markdown import BLOCK_LIMIT, Document
from exl2_tui.segments import Code, Prose, Segment, Table, Thought

SAMPLE = """# Title
Some **bold** and *italic* and `code`, [link](http://x.org) <b>html</b>.
Second line.

- one
- two with **bold**
  continued
  - nested
    1. deep

  ```python
  def f():
      return 1
  ```
- three

7) seven
8) eight

> quote
> - in a quote
> more

| a | b |
|:-:|--:|
| 1 | **2** |

````md
```inner
```
````
text right after
~~~
tilde
~~~

    indented code

***

Setext
===
![image](http://y.org/z.png) ~~gone~~
```unclosed
x
``"""


def dump(segments: list[Segment]) -> list[object]:
    result: list[object] = []
    for segment in segments:
        if isinstance(segment, Prose):
            result.append([(line.gap, line.lead, line.hang, line.body.markup) for line in segment.lines])
        elif isinstance(segment, Table):
            result.append(([[cell.markup for cell in row] for row in segment.rows], segment.align, segment.indent))
        elif isinstance(segment, Code):
            result.append((segment.language, segment.text, segment.indent))
        else:
            result.append((segment.text, segment.open))
    return result


def whole(text: str) -> list[object]:
    document = Document(text)
    document.finish()
    return dump(document.segments)


def in_pieces(pieces: list[str]) -> list[object]:
    document = Document()
    for piece in pieces:
        document.feed(piece)
    document.finish()
    return dump(document.segments)


def test_one_character_at_a_time() -> None:
    assert in_pieces(list(SAMPLE)) == whole(SAMPLE)


@pytest.mark.parametrize("cut", range(0, len(SAMPLE), 7))
def test_split_in_two(cut: int) -> None:
    assert in_pieces([SAMPLE[:cut], SAMPLE[cut:]]) == whole(SAMPLE)


FRAGMENTS = st.sampled_from(
    [
        "a",
        "word ",
        "\n",
        "\n\n",
        "- ",
        "  - ",
        "1. ",
        "2. ",
        "> ",
        "# ",
        "```",
        "```py\n",
        "~~~\n",
        "`",
        "**",
        "*",
        "|",
        "| a | b |\n",
        "|---|---|\n",
        "    ",
        "---\n",
        "===\n",
        "<think>",
        "</think>",
        "[x](y)",
        "<b>",
        "&amp;",
        "\t",
        "\\",
        "é",
        "***\n",
        "+ ",
    ]
)


def test_text_behind_an_empty_fence_keeps_its_gap() -> None:
    assert in_pieces(["~~~\n", "~~~\na\n"]) == whole("~~~\n~~~\na\n")


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=30), st.data())
def test_any_split_renders_as_the_whole(fragments: list[str], data: st.DataObject) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert in_pieces(pieces) == whole(text)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_text_renders(text: str) -> None:
    assert in_pieces(list(text)) == whole(text)


def test_what_the_sample_becomes() -> None:
    document = Document(SAMPLE)
    document.finish()
    kinds = [type(segment).__name__ for segment in document.segments]
    assert kinds == ["Prose", "Code", "Prose", "Table", "Code", "Prose", "Code", "Code", "Prose", "Code"]
    first = document.segments[0]
    assert isinstance(first, Prose)
    assert [line.lead + line.body.plain for line in first.lines] == [
        "Title",
        "Some bold and italic and code, link (http://x.org) <b>html</b>.\nSecond line.",
        "• one",
        "• two with bold\ncontinued",
        "  ◦ nested",
        "    1. deep",
    ]
    nested, fence = document.segments[1], document.segments[4]
    assert isinstance(nested, Code) and isinstance(fence, Code)
    assert (nested.language, nested.indent, nested.text) == ("python", 2, "def f():\n    return 1")
    assert (fence.language, fence.text) == ("md", "```inner\n```")


def test_reasoning_is_taken_aside() -> None:
    document = Document()
    for char in "\n<think>a < b\n</thi no</think>\n\nAnswer":
        document.feed(char)
    document.finish()
    thought, answer = document.segments
    assert thought == Thought("a < b\n</thi no", False)
    assert isinstance(answer, Prose) and answer.lines[0].body.plain == "Answer"


def test_an_open_fence_does_not_show_half_of_its_end() -> None:
    document = Document("```py\nx\n``")
    code = document.segments[0]
    assert isinstance(code, Code) and code.text == "x"
    document.feed("`\nafter")
    assert len(document.segments) == 2


def test_a_long_table_goes_on_with_its_header() -> None:
    rows = [f"| {number} | {'x' * 20} |" for number in range(300)]
    document = Document("| n | text |\n|--:|---|\n" + "\n".join(rows) + "\n\nafter")
    tables = [segment for segment in document.segments if isinstance(segment, Table)]
    assert len(tables) > 1 and isinstance(document.segments[-1], Prose)
    assert all([cell.plain for cell in table.rows[0]] == ["n", "text"] for table in tables)
    assert [row[0].plain for table in tables for row in table.rows[1:]] == [str(number) for number in range(300)]


def test_windows_line_ends() -> None:
    assert whole("# a\r\n\r\n```\r\nx\r\n```\r\n") == whole("# a\n\n```\nx\n```\n")


@pytest.mark.parametrize(
    "text",
    [
        "A sentence of a paragraph without an end. " * 1_500,
        "One line of many\n" * 5_000,
        "- item with **bold** text\n" * 3_000,
        "- a\n" + "  - b\n" * 5_000,
        "```python\n" + "x = f(1)\n" * 50_000,
        "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 2_000,
        ">" * 3_000 + "deep",
        "[" * 4_000,
        "*a " * 2_000,
        "`" * 4_000 + "a",
    ],
    ids=["paragraph", "lines", "list", "nested", "code", "table", "quotes", "brackets", "stars", "ticks"],
)
def test_long_answers_stay_cheap(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 500 characters arriving at a time, no step parses much more than the block that is still open."""
    parsed = [0]
    parse = markdown._parser.parse

    def counting(source: str) -> object:
        parsed[-1] += len(source)
        return parse(source)

    monkeypatch.setattr(markdown._parser, "parse", counting)
    document = Document()
    for start in range(0, len(text), 500):
        parsed.append(0)
        document.feed(text[start : start + 500])
    document.finish()
    longest_line = max(map(len, text.split("\n")))  # a line is never cut
    assert max(parsed) <= 3 * (BLOCK_LIMIT + longest_line)
    assert len(document.segments) < 450
    assert (
        sum(len(line.body) for s in document.segments if isinstance(s, Prose) for line in s.lines[:1])
        < 450 * BLOCK_LIMIT
    )
