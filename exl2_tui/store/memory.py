"""MemoryStore: keeps nothing; chats live as long as the app. For private sessions and tests."""

from __future__ import annotations

from collections.abc import Callable

from exl2_tui.store.tree import Chat, Turn


class MemoryStore:
    """Confirms every save at once."""

    def __init__(self, saved: Callable[[int], object]) -> None:
        self._saved = saved

    def save_chat(self, chat: Chat) -> None:
        """Nothing to do: the chat object is the only copy."""

    def save_turn(self, chat: Chat, turn: Turn, token: int | None = None) -> None:
        if token is not None:
            self._saved(token)
