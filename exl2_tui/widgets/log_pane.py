"""LogPane: what a conversion reported, newest at the end; follows unless the reader has scrolled up.

Lines are wrapped for the width there is when they are written: a pane that is hidden has none and waits, and one that
gets another width starts over.
"""

from __future__ import annotations

import textwrap
import time
from typing import ClassVar

from rich.text import Text
from textual import events, on
from textual.widgets import RichLog

from exl2_tui.job_state import LOG_LINES, JobState, LogLine
from exl2_tui.text import clean

INDENT = 11  # of what follows time and mark
MARKS = {"info": " ", "warning": "!", "error": "✗", "done": "✓"}


class LogPane(RichLog):
    """Draws lines once; `feed` adds those that are new, as soon as the pane is shown."""

    DEFAULT_CSS: ClassVar[str] = (
        "LogPane { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; background: $background; }"
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(max_lines=LOG_LINES, wrap=True, markup=False, highlight=False, id=id, min_width=20)
        self._seen = 0
        self._job: JobState | None = None
        self._wrapped_at = 0

    @on(events.Resize)
    def _width_changed(self) -> None:
        if self.size.width not in (0, self._wrapped_at):
            self._wrapped_at = self.size.width
            self._seen = 0
            self.clear()
        if self._job is not None:
            self.feed(self._job)

    def feed(self, job: JobState) -> None:
        """Adds what was logged since the last time, in one write."""
        self._job = job
        if not self.size.width:
            return
        new = min(job.logged - self._seen, len(job.log))
        self._seen = job.logged
        if new > 0:
            lines = list(job.log)[-new:]
            at_end = self.is_vertical_scroll_end
            self.write(Text("\n").join(map(self._draw, lines)), scroll_end=at_end, expand=True)

    def _draw(self, line: LogLine) -> Text:
        when = time.strftime("%H:%M:%S", time.localtime(line.time)) if line.time else "  before"
        style = {"warning": "bold", "error": "bold", "done": "bold"}.get(line.level, "")
        text = clean(line.text).replace("\n", " ")
        room = max(20, self.scrollable_content_region.width - INDENT)
        rows = textwrap.wrap(text, room, drop_whitespace=False, break_on_hyphens=False) or [""]
        return Text(f"{when} {MARKS[line.level]} " + f"\n{' ' * INDENT}".join(rows), style)
