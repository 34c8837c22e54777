"""DraftActions: what was written and not sent stays with its chat, over other chats and the end of the program."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from textual import work
from textual.timer import Timer
from textual.widgets import TextArea

from exl2_tui.screens.chat_turns import TurnActions
from exl2_tui.session import ChatSession
from exl2_tui.store.base import ChatStore
from exl2_tui.widgets.composer import Composer

DRAFT_SECONDS = 1.0  # until what was typed is saved


class DraftActions(TurnActions):
    """What the chat screen does with the text in its composer."""

    def __init__(self, session: ChatSession, copy: Callable[[str, str], None], store: ChatStore) -> None:
        super().__init__(session, copy)
        self._store = store
        self._draft_timer: Timer | None = None

    @work(group="draft", exit_on_error=False)
    async def restore_draft(self) -> None:
        """What was typed into a new chat and not sent before the program ended."""
        chat = self._session.chat
        draft = await asyncio.wrap_future(self._store.load_draft(""))
        if draft and self._session.chat is chat and not chat.turns and not self.query_one(Composer).text:
            chat.draft = draft
            self.show_draft()

    def show_draft(self) -> None:
        """The text of the chat in view, whose questions can be walked through behind it."""
        composer = self.query_one(Composer)
        composer.asked_here([turn.text for turn in self._session.chat.path() if turn.role == "user"])
        if composer.message != self._session.chat.draft:
            composer.set_message(self._session.chat.draft)

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        if event.text_area.id != "composer":
            return
        self._session.chat.draft = self.query_one(Composer).message
        if self._draft_timer is None:
            self._draft_timer = self.set_timer(DRAFT_SECONDS, self._save_draft)

    def _save_draft(self) -> None:
        self._draft_timer = None
        self._session.save_draft(self._session.chat)
