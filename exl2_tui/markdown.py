"""Markdown that arrives in pieces, as segments: prose, code, tables, reasoning.

Only the last open block is parsed again when text arrives; everything before it is settled and never touched. So the
cost of a piece does not grow with the answer, and any split of a text gives the same segments (tests/tui). Every
string passes `text.clean` after parsing, because Markdown itself can spell a control character (`&#27;`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from textual.content import Content

from exl2_tui.segments import Code, Line, Prose, Segment, Table, Thought
from exl2_tui.text import clean

BLOCK_LIMIT = 2_500  # characters of one open block; longer ones are cut at a line, so that parsing stays cheap
NESTED_LIMIT = 12_000  # the same where a cut would tear a fence or table inside a list
LINE_LIMIT = 6_000  # characters of one line of prose; then it is broken at a space, for the same reason
SLICE = 2_000  # characters parsed at a time
PROSE_LINES = 60  # lines of one prose segment: those of the last one are looked at again with every piece

CODE_STYLE = "$accent"
QUOTE_BAR = "▎ "
BULLETS = "•◦▪"
_OPENING = re.compile(r"^( {0,3})(`{3,}|~{3,})[ \t]*([^\n]*)\n")

_parser = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["table", "strikethrough"])
    .disable(["reference", "html_block", "html_inline", "entity"])
)


@dataclass(slots=True)
class _Fence:
    """A top-level fence being written, opened by `length` of `char` behind `indent` spaces."""

    char: str
    length: int
    indent: int
    code: Code

    def closes(self, line: str) -> bool:
        bare = line.strip(" \t")
        shallow = len(line) - len(line.lstrip(" ")) < 4
        return shallow and len(bare) >= self.length and not bare.strip(self.char)

    def may_close(self, line: str) -> bool:
        """Whether an unfinished line could become the closing one; it is not shown until it is decided."""
        return not line.strip(" ").strip(self.char)

    def dedent(self, line: str) -> str:
        spaces = len(line) - len(line.lstrip(" "))
        return line[min(spaces, self.indent) :]


class Document:
    """A text that grows. `segments` is what to show; `settled` of them will not change any more."""

    def __init__(self, text: str = "") -> None:
        self._settled: list[Segment] = []
        self._tail: list[Segment] = []
        self._source = ""  # not settled yet; begins at a block
        self._blank = False  # whether a blank line stands before it
        self._fence: _Fence | None = None
        self._thought: Thought | None = None
        self._begun = False
        if text:
            self.feed(text)

    @property
    def segments(self) -> list[Segment]:
        if not self._tail:
            return self._settled
        first = self._tail[0]
        if isinstance(first, Prose) and self._settled and isinstance(self._settled[-1], Prose) and self._has_room():
            joined = Prose(self._settled[-1].lines + first.lines)
            return [*self._settled[:-1], joined, *self._tail[1:]]
        return [*self._settled, *self._tail]

    @property
    def settled(self) -> int:
        """How many segments from the front are final; the last one may still get lines."""
        return max(0, len(self._settled) - 1)

    def feed(self, text: str) -> None:
        """Takes more text, in pieces of any size."""
        text = self._without_thought(clean(text))
        for start in range(0, len(text), SLICE):
            piece = text[start : start + SLICE]
            self._source += piece
            if "\n" in piece:
                self._settle()
            if self._fence is None:
                self._break_long_line()
        if text:
            self._draw_tail(final=False)

    def finish(self) -> None:
        """No more text comes: what was held back because it might have been a tag or a fence's end is shown."""
        if self._thought is not None and self._thought.open and self._source:
            self._thought.text += self._source
            self._source = ""
        self._begun = True
        self._draw_tail(final=True)

    # Reasoning in <think> tags

    def _without_thought(self, text: str) -> str:
        """Moves a leading <think> part aside; returns what belongs to the answer."""
        if self._begun:
            return text
        text = self._source + text
        self._source = ""
        if self._thought is None:
            bare = text.lstrip()
            if "<think>".startswith(bare[:7]) and len(bare) < 7:
                self._source = text
                return ""
            if not bare.startswith("<think>"):
                self._begun = True
                return text
            self._thought = Thought("", True)
            self._settled.append(self._thought)
            text = bare[7:]
        inside, tag, after = text.partition("</think>")
        if tag:
            self._thought.text += inside
            self._thought.open = False
            self._begun = True
            return after.lstrip("\n")
        keep = next((size for size in range(7, 0, -1) if inside.endswith("</think>"[:size])), 0)
        self._thought.text += inside[: len(inside) - keep]
        self._source = inside[len(inside) - keep :]
        return ""

    # Blocks

    def _settle(self) -> None:
        """Moves every finished block from the source to the settled segments."""
        while True:
            if self._fence is not None:
                if not self._read_fence(self._fence):
                    return
                continue
            complete = self._source[: self._source.rfind("\n") + 1]
            if not complete or not self._settle_blocks(complete):
                return

    def _read_fence(self, fence: _Fence) -> bool:
        """Takes complete lines into the fence; True once it is closed."""
        while (end := self._source.find("\n")) >= 0:
            line = self._source[:end]
            self._source = self._source[end + 1 :]
            fence.code.tail = ""
            if fence.closes(line):
                self._fence = None
                self._blank = True
                return True
            fence.code.lines.append(fence.dedent(line))
        return False

    def _break_long_line(self) -> None:
        """A line of prose without an end gets one."""
        line = self._source.rfind("\n") + 1
        if len(self._source) - line > LINE_LIMIT:
            space = self._source.rfind(" ", line + 1, line + LINE_LIMIT)
            cut = space if space > 0 else line + LINE_LIMIT
            self._source = f"{self._source[:cut]}\n{self._source[cut:].lstrip(' ')}"
            self._settle()

    def _settle_blocks(self, complete: str) -> bool:
        """Settles blocks of `complete`, which ends with a line feed. True if something was left to look at again."""
        blocks = list(_blocks(complete, self._blank))
        offsets = _line_offsets(complete)
        for index, block in enumerate(blocks):
            start, end = offsets[block.first], offsets[min(block.last, len(offsets) - 1)]
            limit = NESTED_LIMIT if block.fragile else BLOCK_LIMIT
            if end - start > limit and (cut := complete.rfind("\n", start + 1, start + limit) + 1) > start:
                self._append(_pieces_of(complete[start:cut], block.gap))
                self._drop(complete, cut)
                self._source = _table_head(complete[start:cut], block) + self._source
                return True
            if index + 1 == len(blocks):
                opening = _OPENING.match(complete[start:]) if block.kind == "fence" else None
                if opening is None:
                    self._drop(complete, start)
                    self._blank = block.gap  # also true right behind a fence
                    return False
                indent, marks, info = opening.groups()
                code = Code(_language(info))
                self._settled.append(code)
                self._fence = _Fence(marks[0], len(marks), len(indent), code)
                self._source = self._source[start + opening.end() :]
                return True
            self._append(block.pieces)
        if not blocks:  # blank lines only
            self._drop(complete, len(complete))
        return False

    def _drop(self, complete: str, count: int) -> None:
        """Forgets `count` characters of source that are settled."""
        if count:
            before = complete[:count].rstrip("\n")
            lines = complete[: count - 1].rsplit("\n", 1)
            self._blank = not lines[-1].strip() if before else True
            self._source = self._source[count:]

    def _has_room(self) -> bool:
        last = self._settled[-1]
        return isinstance(last, Prose) and len(last.lines) < PROSE_LINES

    def _append(self, pieces: list[Segment]) -> None:
        for piece in pieces:
            last = self._settled[-1] if self._settled else None
            if isinstance(piece, Prose) and isinstance(last, Prose) and self._has_room():
                last.lines.extend(piece.lines)
            else:
                self._settled.append(piece)

    def _draw_tail(self, *, final: bool) -> None:
        """What to show of the source that is not settled."""
        self._tail = []
        if not self._begun:
            return
        if self._fence is not None:
            hidden = self._fence.may_close(self._source) if not final else self._fence.closes(self._source)
            self._fence.code.tail = "" if hidden else self._fence.dedent(self._source)
            return
        for block in _blocks(self._source, self._blank):
            for piece in block.pieces:
                if isinstance(piece, Prose) and self._tail and isinstance(last := self._tail[-1], Prose):
                    last.lines.extend(piece.lines)
                else:
                    self._tail.append(piece)


@dataclass(slots=True)
class _Block:
    """A top-level block, or one item of a top-level list: source lines [first, last) and what it shows."""

    first: int
    last: int
    gap: bool
    kind: str
    fragile: bool
    pieces: list[Segment]


def _line_offsets(source: str) -> list[int]:
    offsets = [0]
    for line in source.splitlines(keepends=True) if "\f" not in source else source.split("\n"):
        offsets.append(offsets[-1] + len(line))
    return offsets


def _table_head(source: str, block: _Block) -> str:
    """The header of a table that was cut, so that the rows that follow are a table again."""
    lines = source.split("\n", 2)
    head = f"{lines[0]}\n{lines[1]}\n" if block.kind == "table" and len(lines) == 3 and lines[2] else ""
    return head if len(head) < BLOCK_LIMIT // 2 else ""


def _pieces_of(source: str, gap: bool) -> list[Segment]:
    return [piece for block in _blocks(source, gap) for piece in block.pieces]


def _blocks(source: str, blank_before: bool) -> Iterator[_Block]:
    """The blocks of `source`. Never raises: where nesting is too deep for the parser, the text is shown as it is."""
    lines = source.split("\n")
    tree = SyntaxTreeNode(_parser.parse(source))
    after_fence = False
    for node in tree.children:
        items = node.children if node.type in ("bullet_list", "ordered_list") else [node]
        for item in items:
            first, last = item.map or (0, 0)
            gap = after_fence or ((not lines[first - 1].strip()) if first else blank_before)
            after_fence = item.type == "fence"
            writer = _Writer(lines)
            if item.type == "list_item":
                writer.item(item, node, "", gap, 0)
            else:
                writer.node(item, "", "", gap, 0)
            kinds = {child.type for child in item.walk()}
            fragile = item.type not in ("table", "fence") and bool(kinds & {"table", "fence"})
            yield _Block(first, last, gap, item.type, fragile, writer.pieces)


class _Writer:
    """Walks one block and writes segments. `lead` goes before the next row of text, `hang` before those after it."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self.pieces: list[Segment] = []

    def node(self, node: SyntaxTreeNode, lead: str, hang: str, gap: bool, depth: int) -> None:
        kind = node.type
        if kind == "paragraph":
            self._line(_inline(node), lead, hang, gap)
        elif kind == "heading":
            style = "bold $primary" if node.tag in ("h1", "h2") else "bold"
            self._line(_inline(node).stylize(style), lead, hang, True)
        elif kind in ("fence", "code_block"):
            if lead.strip():
                self._line(Content(""), lead.rstrip(), hang, gap)
            code = clean(node.content).removesuffix("\n")
            self.pieces.append(Code(_language(node.info), code.split("\n") if code else [], indent=len(hang)))
        elif kind in ("bullet_list", "ordered_list"):
            for index, item in enumerate(node.children):
                self.item(item, node, lead if index == 0 else hang, self._gap(item) if index else gap, depth, hang)
        elif kind == "blockquote":
            for index, child in enumerate(node.children):
                before = (lead if index == 0 else hang) + QUOTE_BAR
                self.node(child, before, hang + QUOTE_BAR, self._gap(child) if index else gap, depth)
        elif kind == "hr":
            self._line(Content.styled("─" * 24, "$secondary"), lead, hang, gap)
        elif kind == "table":
            self.pieces.append(_table(node, len(hang)))

    def item(
        self, item: SyntaxTreeNode, parent: SyntaxTreeNode, lead: str, gap: bool, depth: int, hang: str = ""
    ) -> None:
        """A list item: its marker hangs before the first row, everything below is indented by as much."""
        ordered = parent.type == "ordered_list"
        marker = f"{item.info}{item.markup} " if ordered else f"{BULLETS[min(depth, 2)]} "
        inner = hang + " " * len(marker)
        if not item.children:
            self._line(Content(""), lead + marker, inner, gap)
        for index, child in enumerate(item.children):
            before = lead + marker if index == 0 else inner
            self.node(child, before, inner, self._gap(child) if index else gap, depth + 1)

    def _gap(self, node: SyntaxTreeNode) -> bool:
        first = (node.map or (0, 0))[0]
        return first > 0 and not self._lines[first - 1].lstrip("> \t")

    def _line(self, body: Content, lead: str, hang: str, gap: bool) -> None:
        line = Line(body, lead, hang, gap)
        if self.pieces and isinstance(last := self.pieces[-1], Prose):
            last.lines.append(line)
        else:
            self.pieces.append(Prose([line]))


def _language(info: str) -> str:
    return clean(info).strip().split(" ")[0].strip("{}.").lower()[:24]


def _table(node: SyntaxTreeNode, indent: int) -> Table:
    rows: list[list[Content]] = []
    align: list[str] = []
    for row in (part for part in node.walk() if part.type == "tr"):
        rows.append([_inline(cell) for cell in row.children])
        if not align:
            align = [str(cell.attrs.get("style", "")).removeprefix("text-align:") or "left" for cell in row.children]
    return Table(rows, align, indent)


def _inline(node: SyntaxTreeNode) -> Content:
    """The text of a paragraph, heading or cell with its styles. Line breaks stay where the model put them."""
    parts: list[tuple[str, str]] = []
    for child in node.children:
        _inline_parts(child, "", parts)
    return Content.assemble(*((clean(text), style) if style else clean(text) for text, style in parts))


_MARKS = {"strong": "bold", "em": "italic", "s": "strike"}


def _inline_parts(node: SyntaxTreeNode, style: str, parts: list[tuple[str, str]]) -> None:
    kind = node.type
    if kind in ("softbreak", "hardbreak"):
        parts.append(("\n", ""))
    elif kind == "code_inline":
        parts.append((node.content, f"{style} {CODE_STYLE}".strip()))
    elif kind in ("link", "image"):
        start = len(parts)
        inner = f"{style} underline".strip()
        for child in node.children:
            _inline_parts(child, inner, parts)
        target = str(node.attrs.get("href") or node.attrs.get("src") or "")
        if target and target != "".join(text for text, _ in parts[start:]):
            parts.append((f" ({target})", f"{style} $secondary".strip()))
    elif node.children:
        inner = f"{style} {_MARKS[kind]}".strip() if kind in _MARKS else style
        for child in node.children:
            _inline_parts(child, inner, parts)
    elif node.content:
        parts.append((node.content, style))
