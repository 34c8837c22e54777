"""LiveText: an answer as a few widgets, one per segment, kept in step with a Document that grows."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical

from exl2_tui.markdown import Document
from exl2_tui.segments import Code, Prose, Segment, Table, Thought
from exl2_tui.widgets.code_view import CodeView
from exl2_tui.widgets.growing import Growing
from exl2_tui.widgets.prose import ProseView
from exl2_tui.widgets.table_view import TableView
from exl2_tui.widgets.thought_view import ThoughtView

SegmentView = ProseView | CodeView | TableView | ThoughtView
VIEWS: dict[type[Segment], Any] = {Prose: ProseView, Code: CodeView, Table: TableView, Thought: ThoughtView}


class LiveText(Vertical, Growing):
    """Shows text that may still be growing. `feed` takes pieces, `finish` says that no more will come."""

    DEFAULT_CSS: ClassVar[str] = "LiveText { height: auto; }"

    def __init__(self, text: str = "", *, done: bool = True) -> None:
        super().__init__()
        self._document = Document(text)
        if done:
            self._document.finish()
        self._views: list[SegmentView] = []
        self._stable = 0

    def compose(self) -> ComposeResult:
        for index, segment in enumerate(self._document.segments):
            yield self._view(segment, index)
        self._stable = self._document.settled

    def feed(self, text: str) -> None:
        self._document.feed(text)
        self._sync()

    def finish(self) -> None:
        self._document.finish()
        self._sync()

    @property
    def blocks(self) -> list[CodeView]:
        """The fences, in order."""
        return [view for view in self._views if isinstance(view, CodeView)]

    @property
    def thoughts(self) -> list[ThoughtView]:
        return [view for view in self._views if isinstance(view, ThoughtView)]

    def _view(self, segment: Segment, index: int) -> SegmentView:
        view: SegmentView = VIEWS[type(segment)](segment)
        joined = isinstance(segment, Prose) and index > 0 and isinstance(self._views[index - 1], ProseView)
        above = 1 if index > 0 and (not joined or _begins_with_gap(segment)) else 0
        view.styles.margin = (above, 0, 0, segment.indent if isinstance(segment, Code | Table) else 0)
        self._views[index:] = [view]
        return view

    def _sync(self) -> None:
        """Draws the segments that are not settled; widgets are replaced only where the kind of a segment changed."""
        segments = self._document.segments
        for index in range(min(self._stable, len(segments)), len(segments)):
            segment = segments[index]
            view: Any = self._views[index] if index < len(self._views) else None
            if type(view) is VIEWS[type(segment)]:
                view.show(segment)
            else:
                for old in self._views[index:]:
                    old.remove()
                self.mount_all([self._view(part, at) for at, part in enumerate(segments[index:], index)])
                break
        for old in self._views[len(segments) :]:
            old.remove()
        del self._views[len(segments) :]
        self._stable = self._document.settled


def _begins_with_gap(segment: Segment) -> bool:
    return isinstance(segment, Prose) and bool(segment.lines) and segment.lines[0].gap
