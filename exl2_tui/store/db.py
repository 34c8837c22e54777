"""ChatDatabase: chats in sqlite, written by one thread in the order things happened, read through futures."""

from __future__ import annotations

import dataclasses
import json
import queue
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, cast

from exl2_tui.core.errors import Exl2Error
from exl2_tui.core.events import GenerationFinished
from exl2_tui.store.base import ChatRow
from exl2_tui.store.schema import open_database
from exl2_tui.store.tree import Chat, Turn

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]
LIST_LIMIT = 500
ENDED = "cut off when the program ended"

TURN_COLUMNS = "id, chat, parent, role, text, state, created, mode, model, note, hint, dropped, token_ids, stats"
SAVE_TURN = f"""
    INSERT INTO turn ({TURN_COLUMNS}) VALUES ({", ".join("?" * 14)})
    ON CONFLICT (id) DO UPDATE SET text = excluded.text, state = excluded.state, mode = excluded.mode,
        note = excluded.note, hint = excluded.hint, dropped = excluded.dropped,
        token_ids = excluded.token_ids, stats = excluded.stats
"""
SAVE_CHAT = """
    INSERT INTO chat (id, title, head, mode, system, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET title = excluded.title, head = excluded.head, mode = excluded.mode,
        system = excluded.system, updated = excluded.updated
"""
SAVE_DRAFT = "INSERT INTO draft (chat, text) VALUES (?, ?) ON CONFLICT (chat) DO UPDATE SET text = excluded.text"


class ChatDatabase:
    """Calls return at once. saved(token) and problem(text) are called on the database's thread.

    A chat that could not be written is still confirmed: the person is told, and the conversation goes on.
    """

    def __init__(self, path: Path, saved: Callable[[int], object], problem: Callable[[str], object]) -> None:
        self._path = path
        self._saved = saved
        self._problem = problem
        self._work: queue.SimpleQueue[Callable[[sqlite3.Connection | None], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="exl2-chats", daemon=True)
        self._thread.start()

    def save_chat(self, chat: Chat) -> None:
        row = (chat.id, _text(chat.title), chat.head, chat.mode, _text(chat.system), chat.created, chat.updated)
        self._write(lambda connection: connection.execute(SAVE_CHAT, row))

    def save_turn(self, chat: Chat, turn: Turn, token: int | None = None) -> None:
        row = _turn_row(chat, turn)  # copied now: the turn goes on growing
        self._write(lambda connection: _save_turn(connection, chat, row), token)

    def save_draft(self, chat_id: str, text: str) -> None:
        if text:
            self._write(lambda connection: connection.execute(SAVE_DRAFT, (chat_id, _text(text))))
        else:
            self._write(lambda connection: connection.execute("DELETE FROM draft WHERE chat = ?", (chat_id,)))

    def load_draft(self, chat_id: str) -> Future[str]:
        return self._ask(lambda connection: _draft(connection, chat_id), "")

    def list_chats(self, words: str = "") -> Future[list[ChatRow]]:
        return self._ask(lambda connection: _list(connection, words), [])

    def load_chat(self, chat_id: str) -> Future[Chat | None]:
        return self._ask(lambda connection: _load(connection, chat_id), None)

    def rename(self, chat_id: str, title: str) -> Future[None]:
        return self._ask(
            lambda connection: _nothing(
                connection.execute("UPDATE chat SET title = ? WHERE id = ?", (_text(title), chat_id))
            ),
            None,
        )

    def delete(self, chat_id: str) -> Future[None]:
        return self._ask(
            lambda connection: _nothing(connection.execute("DELETE FROM chat WHERE id = ?", (chat_id,))), None
        )

    def close(self, timeout: float) -> None:
        """Writes what waits, for at most `timeout` seconds."""
        self._work.put(None)
        self._thread.join(timeout)

    def _write(self, work: Work, token: int | None = None) -> None:
        def run(connection: sqlite3.Connection | None) -> None:
            if connection is not None:
                try:
                    work(connection)
                except sqlite3.IntegrityError:
                    pass  # the chat was deleted while its answer was being written
                except sqlite3.Error as error:
                    self._problem(f"The chat could not be saved: {error}")
            if token is not None:
                self._saved(token)

        self._work.put(run)

    def _ask(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> Future[T]:
        """Runs `work` after everything before it; `otherwise` is the answer where there is no database."""
        future: Future[T] = Future()

        def run(connection: sqlite3.Connection | None) -> None:
            if not future.set_running_or_notify_cancel():  # nobody waits any more; setting a result would raise
                return
            try:
                future.set_result(otherwise if connection is None else work(connection))
            except sqlite3.Error as error:
                self._problem(f"The chats could not be read: {error}")
                future.set_result(otherwise)

        self._work.put(run)
        return future

    def _loop(self) -> None:
        connection = self._open()
        while (work := self._work.get()) is not None:
            work(connection)
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection | None:
        """The database; a damaged one is put aside, and without any the app goes on unsaved."""
        try:
            return open_database(self._path)
        except (Exl2Error, OSError, sqlite3.OperationalError) as error:
            self._problem(f"Chats are not saved: {error}")
            return None
        except sqlite3.DatabaseError as error:
            aside = self._path.with_name(f"{self._path.name}.bad-{int(time.time())}")
            try:
                for end in ("", "-wal", "-shm"):
                    part = self._path.with_name(self._path.name + end)
                    if part.exists():
                        part.replace(aside.with_name(aside.name + end))
                connection = open_database(self._path)
            except (OSError, sqlite3.Error):
                self._problem(f"Chats are not saved: {error}")
                return None
            self._problem(f"The saved chats are damaged ({error}); they are kept as {aside.name}")
            return connection


def _nothing(_: object) -> None:
    return None


def _text(text: str) -> str:
    """sqlite stores UTF-8, which has no lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _turn_row(chat: Chat, turn: Turn) -> tuple[object, ...]:
    ids = struct.pack(f"<{len(turn.token_ids)}I", *turn.token_ids)
    stats = json.dumps(dataclasses.asdict(turn.stats)) if turn.stats else ""
    head = (turn.id, chat.id, turn.parent, turn.role, _text(turn.text), turn.state, turn.created)
    return (*head, turn.mode, turn.model, _text(turn.note), _text(turn.hint), turn.dropped, ids, stats)


def _save_turn(connection: sqlite3.Connection, chat: Chat, row: tuple[object, ...]) -> None:
    """The turn, and before it those of its branch that another window has deleted: here the chat goes on."""
    lost: list[Turn] = []
    at = cast("str | None", row[2])
    while at in chat.turns and connection.execute("SELECT 1 FROM turn WHERE id = ?", (at,)).fetchone() is None:
        lost.append(chat.turns[at])
        at = lost[-1].parent
    for turn in reversed(lost):
        connection.execute(SAVE_TURN, _turn_row(chat, turn))
    connection.execute(SAVE_TURN, row)


def _list(connection: sqlite3.Connection, words: str) -> list[ChatRow]:
    """Newest first; with words, chats where every word begins some word of a turn, or of the title."""
    terms = [word.replace('"', "") for word in _text(words).split()]
    match = " ".join(f'"{term}"*' for term in terms if term)
    count = "(SELECT count(*) FROM turn WHERE turn.chat = chat.id)"
    draft = "EXISTS (SELECT 1 FROM draft WHERE draft.chat = chat.id)"
    if not match:
        rows = connection.execute(
            f"SELECT id, title, updated, {count}, {draft} FROM chat ORDER BY updated DESC, rowid DESC LIMIT ?",
            (LIST_LIMIT,),
        )
        return [ChatRow(row[0], row[1], row[2], row[3], "", bool(row[4])) for row in rows]
    found = connection.execute(
        f"""
        SELECT chat.id, chat.title, chat.updated, {count},
               (SELECT snippet(turn_words, 0, '', '', '…', 12) FROM turn_words
                JOIN turn ON turn.number = turn_words.rowid
                WHERE turn_words MATCH ? AND turn.chat = chat.id LIMIT 1),
               {draft}
        FROM chat
        WHERE chat.title LIKE ? ESCAPE '\\' OR chat.id IN (
            SELECT turn.chat FROM turn_words JOIN turn ON turn.number = turn_words.rowid WHERE turn_words MATCH ?)
        ORDER BY chat.updated DESC, chat.rowid DESC LIMIT ?
        """,
        (match, f"%{_like(' '.join(terms))}%", match, LIST_LIMIT),
    )
    return [ChatRow(row[0], row[1], row[2], row[3], row[4] or "", bool(row[5])) for row in found]


def _draft(connection: sqlite3.Connection, chat_id: str) -> str:
    row = connection.execute("SELECT text FROM draft WHERE chat = ?", (chat_id,)).fetchone()
    return str(row[0]) if row is not None else ""


def _like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _load(connection: sqlite3.Connection, chat_id: str) -> Chat | None:
    row = connection.execute(
        "SELECT title, head, mode, system, created, updated FROM chat WHERE id = ?", (chat_id,)
    ).fetchone()
    if row is None:
        return None
    chat = Chat(mode=row[2], system=row[3], created=row[4], chat_id=chat_id)
    for values in connection.execute(f"SELECT {TURN_COLUMNS} FROM turn WHERE chat = ? ORDER BY number", (chat_id,)):
        turn = _turn(values)
        if turn.parent is None or turn.parent in chat.turns:
            chat.add(turn)
    chat.title, chat.updated, chat.draft = row[0], row[5], _draft(connection, chat_id)
    if row[1] in chat.turns:
        chat.head = row[1]
    return chat


def _turn(values: tuple[Any, ...]) -> Turn:
    """An answer that was being written when the program ended counts as stopped, and says so."""
    turn_id, _, parent, role, text, state, created, mode, model, note, hint, dropped, ids, stats = values
    return Turn(
        role=role,
        text=text,
        parent=parent,
        id=turn_id,
        state="stopped" if state == "writing" else state,
        created=created,
        mode=mode,
        model=model,
        note=ENDED if state == "writing" else note,
        hint=hint,
        dropped=dropped,
        token_ids=struct.unpack(f"<{len(ids) // 4}I", ids),
        stats=_stats(stats),
    )


def _stats(text: str) -> GenerationFinished | None:
    """Fields of other versions are left out; without the needed ones there are no figures."""
    if not text:
        return None
    names = {field.name for field in dataclasses.fields(GenerationFinished)}
    try:
        return GenerationFinished(**{name: value for name, value in json.loads(text).items() if name in names})
    except (TypeError, ValueError):
        return None
