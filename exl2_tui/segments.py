"""What a text is drawn as: runs of prose, fences, tables, reasoning. Plain data; markdown.py makes it of Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from textual.content import Content


class ShownLine(Protocol):
    """What is wrapped as one: a paragraph, a line of code, a row of a table.

    lead stands before its first row, hang before the others; gap: a blank row above. bar stands left of every row and
    is no part of the text. plain is the text of body, which may be costly to make.
    """

    @property
    def plain(self) -> str: ...
    @property
    def body(self) -> Content: ...
    @property
    def lead(self) -> str: ...
    @property
    def hang(self) -> str: ...
    @property
    def bar(self) -> str: ...
    @property
    def gap(self) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A ShownLine that is ready."""

    body: Content
    lead: str = ""
    hang: str = ""
    gap: bool = False
    bar: str = ""

    @property
    def plain(self) -> str:
        return self.body.plain


@dataclass(slots=True)
class Prose:
    lines: list[Line]


@dataclass(slots=True)
class Code:
    """A fence. lines are complete, tail is the line being written; indent: columns it is shifted right."""

    language: str
    lines: list[str] = field(default_factory=list)
    tail: str = ""
    indent: int = 0

    @property
    def text(self) -> str:
        return "\n".join([*self.lines, self.tail] if self.tail else self.lines)


@dataclass(slots=True)
class Table:
    """Cells by row, the header first; align: "left", "right" or "center" per column."""

    rows: list[list[Content]]
    align: list[str]
    indent: int = 0


@dataclass(slots=True)
class Thought:
    """Reasoning before the answer; open until its end tag came."""

    text: str
    open: bool


Segment = Prose | Code | Table | Thought
