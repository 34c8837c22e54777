"""ThoughtView: the reasoning before an answer, folded to one row; a click or the turn cursor's `o` opens it."""

from __future__ import annotations

from typing import ClassVar

from textual.content import Content

from exl2_tui.segments import Thought
from exl2_tui.widgets.findable import Findable


class ThoughtView(Findable):
    """One row with the number of words, or all of the text."""

    DEFAULT_CSS: ClassVar[str] = "ThoughtView { width: 1fr; height: auto; color: $secondary; }"

    def __init__(self, thought: Thought) -> None:
        super().__init__("", markup=False)
        self._thought = thought
        self.opened = False

    def show(self, thought: Thought) -> None:
        self._thought = thought
        self.update(self._draw(), layout=self.opened)

    def on_mount(self) -> None:
        self.update(self._draw())

    def on_click(self) -> None:
        self.toggle()

    def toggle(self) -> None:
        self.opened = not self.opened
        self.update(self._draw())

    def _draw(self) -> Content:
        words = len(self._thought.text.split())
        verb = "Thinking" if self._thought.open else "Thought"
        head = Content(f"{'▾' if self.opened else '▸'} {verb}, {words:,} words")
        return head + "\n" + self._thought.text.strip() if self.opened else head
