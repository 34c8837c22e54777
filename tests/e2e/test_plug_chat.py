"""Pulling the plug while chatting: nothing that was on the screen is lost, what is wrong is said, and it goes on."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import exl2_tui
from tests.e2e.conftest import Open
from tests.e2e.terminal import Terminal, program


def ask(terminal: Terminal, text: str = "tell me", words: int = 60) -> None:
    """Asks, and waits until the answer has come so far, or further: a certain word is soon out of view again."""
    terminal.wait("ctx")
    terminal.type(text)
    terminal.press("enter")
    terminal.wait(lambda screen: last_word(screen) >= words)


def open_newest(terminal: Terminal) -> str:
    """Opens the newest chat; returns the screen."""
    terminal.wait("ctx")
    terminal.press("ctrl+g")
    terminal.wait(lambda screen: "esc close" in screen and "tell me" in screen.partition("Chats ─")[2])
    terminal.press("enter")
    return terminal.wait(lambda screen: "stopped by you" in screen or "cut off when the program ended" in screen)


def is_saved(home: Path, text: str, table: str = "turn") -> bool:
    """Whether some turn, or draft, with this text is on disk."""
    with contextlib.closing(sqlite3.connect(f"file:{home}/chats.db?mode=ro", uri=True)) as chats:
        return bool(chats.execute(f"SELECT 1 FROM {table} WHERE text LIKE ?", (f"%{text}%",)).fetchone())


def last_word(screen: str) -> int:
    """Largest number of a word of the answer that is on the screen; -1 without one. The last one may be cut: word8."""
    return max((int(part[4:]) for part in screen.split() if part.startswith("word") and part[4:].isdigit()), default=-1)


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "the window is closed"])
def test_the_end_in_the_middle_of_an_answer(typing_app: Open, home: Path, end: str) -> None:
    terminal = typing_app()
    ask(terminal)
    seen = 60  # it is on the screen; what is under it may be half drawn
    if end == "SIGKILL":  # what was written is saved every second
        terminal.wait(lambda _: is_saved(home, "word60"))
    status = terminal.kill(getattr(signal, end)) if end.startswith("SIG") else terminal.hang_up()
    assert status == (-signal.SIGKILL if end == "SIGKILL" else 0)

    again = typing_app()
    assert "cut off when the program ended" in open_newest(again)
    again.wait(lambda screen: last_word(screen) >= seen)
    again.type("and now?")
    again.press("enter")
    again.wait("writing")


@pytest.mark.parametrize("drawn", [False, True])
def test_the_window_is_closed_at_the_start_and_no_signal_says_so(terminals: Open, home: Path, drawn: bool) -> None:
    """As under nohup: once the app waited for ever for a writer that had died, and read nothing in a circle."""
    terminal = terminals(["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *program()], home, (80, 24))
    if drawn:
        terminal.wait(lambda screen: screen.strip())
    terminal.hang_up()


@pytest.mark.parametrize("end", ["SIGKILL", "ctrl+q"])
def test_the_end_while_messages_wait(typing_app: Open, home: Path, end: str) -> None:
    terminal = typing_app()
    ask(terminal)
    terminal.type("waiting one")
    terminal.press("enter")
    terminal.wait("waiting one")
    terminal.type("half a thou")
    terminal.wait(lambda _: is_saved(home, "half a thou", "draft"))
    terminal.press("ctrl+q") if end == "ctrl+q" else terminal.kill(signal.SIGKILL)
    terminal.ended()

    again = typing_app()
    again.wait("Not sent yet, in “tell me”")
    open_newest(again)
    again.wait("waiting one half a thou")  # back in the composer, on two rows
    again.press("enter")
    again.wait("writing")
    again.wait(lambda _: not is_saved(home, "waiting one", "draft"))


def test_the_end_while_a_model_is_loaded(typing_app: Open) -> None:
    terminal = typing_app()
    terminal.wait("loading")
    terminal.kill()
    ask(typing_app(), words=5)


def test_a_tiny_window_and_back(typing_app: Open) -> None:
    terminal = typing_app()
    ask(terminal)
    terminal.resize(10, 3)
    terminal.wait("needs")
    terminal.resize(120, 40)
    terminal.wait(lambda screen: last_word(screen) > 60)
    terminal.press("escape")
    terminal.wait("stopped by you")


def test_a_full_disk_costs_no_word_on_the_screen(typing_app: Open) -> None:
    terminal = typing_app(120_000)
    ask(terminal, words=0)
    terminal.wait("could not be saved")
    terminal.press("escape")
    terminal.wait("stopped by you")
    terminal.press("ctrl+q")
    assert terminal.ended() == 0
    assert "tell me" in open_newest(typing_app())  # with room again


def test_a_home_that_cannot_be_written(typing_app: Open, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    terminal = typing_app(home=tmp_path / "file" / "home")
    terminal.wait("not saved")
    ask(terminal, words=30)
    terminal.press("escape")
    terminal.wait("stopped by you")
    terminal.press("ctrl+q")
    assert terminal.ended() == 0


def test_settings_that_are_no_toml(typing_app: Open, home: Path) -> None:
    (home / "settings.toml").write_text("[chat\nmode =")
    terminal = typing_app(size=(120, 40))
    terminal.wait("settings.toml.bad")
    ask(terminal, words=0)
    assert (home / "settings.toml.bad").read_text() == "[chat\nmode ="


def test_the_end_while_settings_are_written(home: Path) -> None:
    before = (home / "settings.toml").read_text()
    script = (
        "import os, signal, sys; from pathlib import Path; from exl2_tui.settings import *\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_settings(Settings(), Path(sys.argv[1]))"
    )
    assert subprocess.run([sys.executable, "-c", script, str(home)], check=False).returncode == -signal.SIGKILL
    assert (home / "settings.toml").read_text() == before


def test_chats_that_are_damaged(typing_app: Open, home: Path) -> None:
    (home / "chats.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)
    terminal = typing_app(size=(120, 40))
    terminal.wait("chats.db.bad")
    ask(terminal)
    terminal.press("ctrl+q")
    terminal.ended()
    assert "word60" in open_newest(typing_app(size=(120, 40)))


def test_chats_of_a_newer_version_are_left_alone(typing_app: Open, home: Path) -> None:
    with sqlite3.connect(home / "chats.db") as newer:
        newer.execute("CREATE TABLE chat (id TEXT, thought BLOB)")
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    terminal = typing_app(size=(120, 40))
    terminal.wait("Chats are not saved")
    ask(terminal, words=30)
    terminal.press("ctrl+q")
    terminal.ended()
    with sqlite3.connect(home / "chats.db") as still:
        assert still.execute("PRAGMA user_version").fetchone() == (99,)
    still.close()


def test_two_apps_on_one_home(typing_app: Open) -> None:
    first, second = typing_app(), typing_app()
    ask(first, "tell me one", words=20)
    ask(second, "tell me two", words=20)
    for terminal in (first, second):
        terminal.press("escape")
        terminal.wait("stopped by you")
        terminal.press("ctrl+q")
        assert terminal.ended() == 0
    third = typing_app()
    third.wait("ctx")
    third.press("ctrl+g")
    third.wait(lambda screen: "tell me one" in screen and "tell me two" in screen)


@pytest.mark.slow
def test_a_model_whose_files_go_away_while_it_is_used(app: Open, tmp_path: Path) -> None:
    """What was loaded stays; what is asked for again is said to be gone."""
    model = tmp_path / "mine"
    shutil.copytree(Path(exl2_tui.__file__).parent / "builtin" / "small-chat", model)
    terminal = app("chat", "-m", model)
    terminal.wait("ctx")
    shutil.rmtree(model)
    terminal.type("What is a volcano?")
    terminal.press("enter")
    terminal.wait("tokens")
    terminal.press("ctrl+q")
    terminal.ended()
    terminal = app("chat", "-m", model)
    terminal.wait("o model directory and no model name")
