"""ChatPicker: all saved chats, newest first; typing searches every message of every chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from exl2_tui.keymap import bindings
from exl2_tui.screens.dialogs import ChoiceDialog, LineDialog
from exl2_tui.state import Clock
from exl2_tui.store.base import ChatRow, ChatStore
from exl2_tui.text import one_line
from exl2_tui.widgets.hint_row import HintRow

SEARCH_DELAY = 0.12
DRAFT = "  not sent"  # something that was written in the chat


class ChatPicker(ModalScreen[str | None]):
    """Answers with the id of the chat to open, or None. `deleted(id)` and `export(id)` are told to the app."""

    HELP = "All saved chats, the last one first. Typing searches every message of every chat."

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("dialog", "cancel"),
        *bindings("chats"),
        Binding("enter", "choose", "Open", show=False, priority=True),
        Binding("up", "move(-1)", "Up", show=False, priority=True),
        Binding("down", "move(1)", "Down", show=False, priority=True),
    ]

    def __init__(
        self,
        store: ChatStore,
        current: str,
        *,
        deleted: Callable[[str], None],
        renamed: Callable[[str, str], None],
        export: Callable[[str], None],
        wall_clock: Clock,
    ) -> None:
        super().__init__(id="chats")
        self._store = store
        self._current = current
        self._deleted = deleted
        self._renamed = renamed
        self._export = export
        self._wall_clock = wall_clock
        self._rows: dict[str, ChatRow] = {}
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide -tall list-picker") as box:
            box.border_title = Content("Chats")
            yield Input(placeholder="search all messages", compact=True)
            yield OptionList(markup=False, compact=True, classes="-rows")
            yield HintRow(
                "⏎ open   {chats.rename} rename   {chats.delete} delete   {chats.export} export   {dialog.close} close"
            )

    def on_mount(self) -> None:
        self.query_one(Input).focus()
        self._search()

    def on_input_changed(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(SEARCH_DELAY, self._search)

    def _search(self) -> None:
        self.run_worker(self._fill(), group="search", exclusive=True, exit_on_error=False)

    async def _fill(self) -> None:
        words = self.query_one(Input).value
        rows = await asyncio.wrap_future(self._store.list_chats(words))
        options = self.query_one(OptionList)
        kept = self._highlighted()
        self._rows = {row.id: row for row in rows}
        width = max(20, options.scrollable_content_region.width or 60)
        options.set_options(Option(self._line(row, width), id=row.id) for row in rows)
        ids = [row.id for row in rows]
        if ids:
            options.highlighted = ids.index(kept) if kept in ids else 0
        box = self.query_one(".dialog")
        none = "no chat has these words" if words.strip() else "no chats yet"
        box.border_subtitle = Content(f"{len(rows):,} {'chat' if len(rows) == 1 else 'chats'}" if rows else none)

    def _line(self, row: ChatRow, width: int) -> Content:
        when = age(self._wall_clock() - row.updated)
        mark = "● " if row.id == self._current else "  "
        room = width - len(when) - 4
        title = one_line(row.title, room - len(DRAFT) * row.draft) or "untitled"
        text = Content.assemble((mark, "$primary"), title, (DRAFT if row.draft else "", "$warning"))
        rest = room - text.cell_length
        snippet = one_line(row.snippet, rest - 2) if rest > 12 else ""
        if snippet and not snippet.startswith(title.rstrip("…")):  # the words are in the title, which stands there
            text = Content.assemble(text, (f"  {snippet}", "$secondary"))
        return Content.assemble(text.pad_right(max(1, width - text.cell_length - len(when))), (when, "$secondary"))

    def _highlighted(self) -> str | None:
        options = self.query_one(OptionList)
        if options.highlighted is None or not options.option_count:
            return None
        return options.get_option_at_index(options.highlighted).id

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_move(self, step: int) -> None:
        options = self.query_one(OptionList)
        if options.option_count:
            options.highlighted = ((options.highlighted or 0) + step) % options.option_count

    def action_choose(self) -> None:
        chat_id = self._highlighted()
        if chat_id is not None:
            self.dismiss(chat_id)

    def action_cancel(self) -> None:
        self.dismiss(None)

    def action_export(self) -> None:
        chat_id = self._highlighted()
        if chat_id is not None:
            self._export(chat_id)
            self.dismiss(None)

    def action_rename(self) -> None:
        chat_id = self._highlighted()
        if chat_id is None:
            return

        def named(title: str | None) -> None:
            if title is not None and title.strip():
                self._store.rename(chat_id, title.strip())
                self._renamed(chat_id, title.strip())
                self._search()

        self.app.push_screen(LineDialog("Rename chat", self._rows[chat_id].title), named)

    def action_delete(self) -> None:
        chat_id = self._highlighted()
        if chat_id is None:
            return
        row = self._rows[chat_id]

        def answered(choice: str | None) -> None:
            if choice == "delete":
                self._deleted(chat_id)
                self._store.delete(chat_id)
                self._search()

        self.app.push_screen(
            ChoiceDialog(
                "Delete this chat?",
                f"{one_line(row.title, 50)}: {row.turns} messages. This cannot be undone.",
                [("keep", "Keep it"), ("delete", "Delete it for good")],
            ),
            answered,
        )


def age(seconds: float) -> str:
    """How long ago, in one unit."""
    for size, unit in ((7 * 86_400, "w"), (86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "now"
