"""Findable: a text widget in which occurrences of a pattern can be lit up."""

from __future__ import annotations

import re

from textual.app import RenderResult
from textual.content import Content
from textual.widgets import Static

FOUND = "$input-selection-foreground on $input-selection-background"
CURRENT = "bold reverse"


class Findable(Static):
    """`find` lights up; whatever the widget shows later is searched as well."""

    _pattern: re.Pattern[str] | None = None
    _current = -1

    def render(self) -> RenderResult:
        content = super().render()
        return self.lit(content) if isinstance(content, Content) else content

    def find(self, pattern: re.Pattern[str] | None, current: int) -> int:
        """Lights up every match, `current` of them more than the others; returns how many there are."""
        if (pattern, current) != (self._pattern, self._current):
            self._pattern, self._current = pattern, current
            self.refresh()
        return len(list(pattern.finditer(self._text()))) if pattern is not None else 0

    def row_of(self, number: int) -> int:
        """The row of this widget in which a match begins."""
        found = list(self._pattern.finditer(self._text())) if self._pattern is not None else []
        if not 0 <= number < len(found):
            return 0
        before = Content(self._text()[: found[number].start() + 1])
        return max(0, before.get_height({}, self.content_size.width or 80) - 1)

    def lit(self, content: Content) -> Content:
        if self._pattern is None:
            return content
        for number, match in enumerate(self._pattern.finditer(content.plain)):
            content = content.stylize(CURRENT if number == self._current else FOUND, match.start(), match.end())
        return content

    def _text(self) -> str:
        content = super().render()
        return content.plain if isinstance(content, Content) else ""
