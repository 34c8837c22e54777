"""The tables of the chat database and how older ones become them. One script per version, never changed afterwards."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from exl2_tui.core.errors import UnsupportedError

PATIENCE = 5.0  # seconds to wait for another program that writes
VERSIONS = (
    """
    CREATE TABLE chat (
        id TEXT PRIMARY KEY,
        title TEXT NOT NULL,
        head TEXT,                      -- the turn in view
        mode TEXT NOT NULL,
        system TEXT NOT NULL,
        created REAL NOT NULL,          -- Unix seconds
        updated REAL NOT NULL
    );
    CREATE TABLE turn (
        number INTEGER PRIMARY KEY,     -- order of creation
        id TEXT NOT NULL UNIQUE,
        chat TEXT NOT NULL REFERENCES chat (id) ON DELETE CASCADE,
        parent TEXT,
        role TEXT NOT NULL,
        text TEXT NOT NULL,
        state TEXT NOT NULL,            -- writing, done, stopped, error
        created REAL NOT NULL,
        mode TEXT NOT NULL,
        model TEXT NOT NULL,
        note TEXT NOT NULL,
        hint TEXT NOT NULL,
        dropped INTEGER NOT NULL,
        token_ids BLOB NOT NULL,        -- 4 bytes each, little-endian
        stats TEXT NOT NULL             -- GenerationFinished as JSON, or ''
    );
    CREATE INDEX turn_chat ON turn (chat, number);
    CREATE INDEX chat_updated ON chat (updated);
    CREATE VIRTUAL TABLE turn_words USING fts5 (text, content='turn', content_rowid='number');
    CREATE TRIGGER turn_added AFTER INSERT ON turn BEGIN
        INSERT INTO turn_words (rowid, text) VALUES (new.number, new.text);
    END;
    CREATE TRIGGER turn_removed AFTER DELETE ON turn BEGIN
        INSERT INTO turn_words (turn_words, rowid, text) VALUES ('delete', old.number, old.text);
    END;
    CREATE TRIGGER turn_changed AFTER UPDATE OF text ON turn BEGIN
        INSERT INTO turn_words (turn_words, rowid, text) VALUES ('delete', old.number, old.text);
        INSERT INTO turn_words (rowid, text) VALUES (new.number, new.text);
    END;
    """,
    """
    CREATE TABLE draft (
        chat TEXT PRIMARY KEY,          -- '' for a chat that has no turns yet, and so no row
        text TEXT NOT NULL
    );
    CREATE TRIGGER chat_removed AFTER DELETE ON chat BEGIN
        DELETE FROM draft WHERE chat = old.id;
    END;
    """,
)


def open_database(path: Path) -> sqlite3.Connection:
    """Opens or makes the database and brings it up to date, keeping a copy of an older one beside it.

    Raises UnsupportedError if a newer program made it, sqlite3.DatabaseError if it is damaged, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        version = _version(connection)
        if version > len(VERSIONS):
            raise UnsupportedError(
                f"the chats were saved by a newer version (format {version}, this one knows {len(VERSIONS)})",
                file=path,
                hint="Update exl2-tui; until then nothing is saved",
            )
        for number in range(version, len(VERSIONS)):
            if version:  # not for the steps of a new one
                with sqlite3.connect(path.with_name(f"{path.name}.v{number}")) as copy:
                    connection.backup(copy)
            _upgrade(connection, number)
        connection.execute("SELECT count(*) FROM chat").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """SQLite's own timeout does not cover another program that is doing the same to a new file."""
    end = time.monotonic() + PATIENCE
    while not _try_wal(connection):
        if time.monotonic() > end:
            raise sqlite3.OperationalError("another program keeps the chats locked")
        time.sleep(0.01)


def _try_wal(connection: sqlite3.Connection) -> bool:
    """False: another program is at it."""
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    return True


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _upgrade(connection: sqlite3.Connection, number: int) -> None:
    """Brings version `number` to the next one, unless another program that was started with this one did."""
    try:
        connection.executescript(f"BEGIN IMMEDIATE; {VERSIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")
    except sqlite3.OperationalError:
        connection.rollback()
        if _version(connection) <= number:
            raise
