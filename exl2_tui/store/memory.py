"""MemoryStore: chats live as long as the app. Used where the database cannot be, and by tests."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from exl2_tui.store.base import ChatRow
from exl2_tui.store.tree import Chat, Turn

T = TypeVar("T")


def done(value: T) -> Future[T]:
    """A future that already has its result."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


class MemoryStore:
    """Confirms every save at once; the chat objects are the only copies."""

    def __init__(self, saved: Callable[[int], object]) -> None:
        self._saved = saved
        self._chats: dict[str, Chat] = {}
        self._drafts: dict[str, str] = {}

    def save_chat(self, chat: Chat) -> None:
        self._chats[chat.id] = chat

    def save_turn(self, chat: Chat, turn: Turn, token: int | None = None) -> None:
        if token is not None:
            self._saved(token)

    def save_draft(self, chat_id: str, text: str) -> None:
        self._drafts[chat_id] = text

    def load_draft(self, chat_id: str) -> Future[str]:
        return done(self._drafts.get(chat_id, ""))

    def list_chats(self, words: str = "") -> Future[list[ChatRow]]:
        wanted = words.lower().split()
        rows = [
            ChatRow(chat.id, chat.title, chat.updated, len(chat.turns), draft=bool(self._drafts.get(chat.id)))
            for chat in reversed(self._chats.values())
            if all(
                word in f"{chat.title} {' '.join(turn.text for turn in chat.turns.values())}".lower() for word in wanted
            )
        ]
        return done(sorted(rows, key=lambda row: row.updated, reverse=True))

    def load_chat(self, chat_id: str) -> Future[Chat | None]:
        return done(self._chats.get(chat_id))

    def rename(self, chat_id: str, title: str) -> Future[None]:
        if chat_id in self._chats:
            self._chats[chat_id].title = title
        return done(None)

    def delete(self, chat_id: str) -> Future[None]:
        self._chats.pop(chat_id, None)
        self._drafts.pop(chat_id, None)
        return done(None)

    def close(self, timeout: float) -> None:
        """Nothing is left to write."""
