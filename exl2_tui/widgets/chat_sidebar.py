"""ChatSidebar: recent chats beside the transcript where the terminal is wide; a click opens one, a key finds any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from exl2_tui.hints import hint
from exl2_tui.store.base import ChatRow
from exl2_tui.text import one_line
from exl2_tui.widgets.bars import Row

WIDTH = 28
LIMIT = 100  # chats; the others are found in the list of all chats
DRAFT = " not sent"  # something that was written in the chat
DAYS = ((1, "Today"), (2, "Yesterday"), (7, "This week"))


@dataclass(frozen=True, slots=True)
class _Line:
    """A chat, or a heading if there is no id."""

    text: str
    mark: str = ""
    chat_id: str | None = None

    @property
    def option(self) -> Option:
        return Option(Content.assemble(self.text, (self.mark, "$warning")), self.chat_id, disabled=self.chat_id is None)


class ChatSidebar(Vertical):
    """Titles under the day of their last change; the chat in view is marked."""

    DEFAULT_CSS: ClassVar[str] = f"""
    ChatSidebar {{ width: {WIDTH}; height: 1fr; display: none; border-right: solid $panel; }}
    ChatSidebar OptionList {{
        height: 1fr; border: none; padding: 0; background: $background; scrollbar-size-vertical: 1;
        text-wrap: nowrap; text-overflow: ellipsis;
    }}
    ChatSidebar OptionList > .option-list--option-disabled {{ color: $secondary; }}
    ChatSidebar OptionList > .option-list--option-highlighted {{
        background: $background; color: $primary; text-style: bold;
    }}
    ChatSidebar Row {{ margin: 1 0 0 0; }}
    """

    class Chosen(Message):
        """A chat was clicked."""

        def __init__(self, chat_id: str) -> None:
            super().__init__()
            self.chat_id = chat_id

    _lines: Sequence[_Line] = ()  # as shown

    def compose(self) -> ComposeResult:
        yield Row(id="sidebar-title")
        options = OptionList(markup=False, compact=True)
        options.can_focus = False
        yield options

    def show(self, rows: Sequence[ChatRow], current: str, now: float) -> None:
        """Fills the list, newest first."""
        self.query_one("#sidebar-title", Row).put(
            Content.styled("  Chats", "bold"), Content.styled(hint(self, "{chat.open} "), "$secondary")
        )
        lines: list[_Line] = []
        group = ""
        at: int | None = None
        for row in rows[:LIMIT]:
            name = day(now - row.updated)
            if name != group:
                lines.append(_Line(f"  {name}" if not group else f"\n  {name}"))
                group = name
            if row.id == current:
                at = len(lines)
            mark = "▌ " if row.id == current else "  "
            title = one_line(row.title, WIDTH - 5 - len(DRAFT) * row.draft) or "untitled"
            lines.append(_Line(mark + title, DRAFT if row.draft else "", row.id))
        box = self.query_one(OptionList)
        if lines != self._lines:
            self._lines = lines
            box.set_options(line.option for line in lines)
        box.highlighted = at

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option_id is not None:
            self.post_message(self.Chosen(event.option_id))


def day(seconds: float) -> str:
    """The heading for something that long ago."""
    return next((name for days, name in DAYS if seconds < days * 86_400), "Older")
