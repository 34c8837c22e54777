"""What the app asks of a place where chats are kept. Nothing blocks: results are futures of the store's own thread."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from exl2_tui.store.tree import Chat, Turn


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A chat as a list shows it; snippet: where the search words were found; draft: something in it was not sent."""

    id: str
    title: str
    updated: float
    turns: int
    snippet: str = ""
    draft: bool = False


class ChatStore(Protocol):
    """Saving is in order; `saved(token)`, given when the store is made, tells when a save is on disk.

    A draft is kept by the id of its chat, that of a chat without turns by "". An empty one is none.
    """

    def save_chat(self, chat: Chat) -> None: ...
    def save_turn(self, chat: Chat, turn: Turn, token: int | None = None) -> None: ...
    def save_draft(self, chat_id: str, text: str) -> None: ...
    def load_draft(self, chat_id: str) -> Future[str]: ...
    def list_chats(self, words: str = "") -> Future[list[ChatRow]]: ...
    def load_chat(self, chat_id: str) -> Future[Chat | None]: ...
    def rename(self, chat_id: str, title: str) -> Future[None]: ...
    def delete(self, chat_id: str) -> Future[None]: ...
    def close(self, timeout: float) -> None: ...
