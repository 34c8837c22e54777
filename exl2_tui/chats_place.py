"""ChatsPlace: opening, finding, exporting saved chats; what the app and its chat screen ask of the store."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exl2_tui.settings import data_dir
from exl2_tui.state import Changes
from exl2_tui.store.base import ChatRow, ChatStore
from exl2_tui.store.tree import Chat
from exl2_tui.text import from_home

if TYPE_CHECKING:
    from exl2_tui.app import Exl2App


class ChatsPlace:
    """Nothing here blocks: the store answers on its own thread."""

    def __init__(self, app: Exl2App, store: ChatStore) -> None:
        self._app = app
        self._store = store

    def rows(self) -> Future[list[ChatRow]]:
        """All saved chats, the last one first."""
        return self._store.list_chats()

    def pick(self) -> None:
        """The list of all chats, over whatever is on screen."""
        from exl2_tui.screens.chat_picker import ChatPicker

        app = self._app

        def export(chat_id: str) -> None:
            app.run_worker(self._load_and_export(chat_id), group="chats", exit_on_error=False)

        def chosen(chat_id: str | None) -> None:
            self.open(chat_id)
            app.repaint(Changes(chats=True))  # one may have been renamed or deleted

        app.push_screen(
            ChatPicker(
                self._store,
                app.session.chat.id,
                deleted=lambda chat_id: app.repaint(app.session.forget(chat_id)),
                renamed=lambda chat_id, title: app.repaint(app.session.renamed(chat_id, title)),
                export=export,
                wall_clock=app.wall_clock,
            ),
            chosen,
        )

    def open(self, chat_id: str | None) -> None:
        """Shows another chat."""
        app = self._app
        if chat_id is not None and chat_id != app.session.chat.id:
            app.run_worker(self.load(chat_id), group="chats", exclusive=True, exit_on_error=False)

    def export(self, chat: Chat) -> None:
        """Writes a chat to the exports folder and says where."""
        work = partial(self._write, chat, data_dir() / "exports")
        self._app.run_worker(work, thread=True, group="export", exit_on_error=False)

    async def load(self, chat_id: str) -> None:
        """Reads a chat and shows it; nothing happens if it is gone."""
        chat = await asyncio.wrap_future(self._store.load_chat(chat_id))
        if chat is not None:
            self._app.repaint(self._app.session.open(chat))

    async def _load_and_export(self, chat_id: str) -> None:
        chat = await asyncio.wrap_future(self._store.load_chat(chat_id))
        if chat is not None:
            self.export(chat)

    def _write(self, chat: Chat, directory: Path) -> None:
        from exl2_tui.store.export import export

        try:
            markdown, data = export(chat, directory)
        except OSError as error:
            self._app.call_from_thread(self._app.say, f"The chat could not be exported: {error.strerror}")
            return
        self._app.call_from_thread(
            self._app.say, f"Exported {markdown.name} and {data.suffix} to {from_home(markdown.parent)}"
        )
