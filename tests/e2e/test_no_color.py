"""NO_COLOR (no-color.org): not one colour is sent to the terminal, on any screen, and all can be told apart."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import Open
from tests.e2e.terminal import Terminal, program, surroundings

# Numbers of "select graphic rendition" that are no colour: reset, bold, dim, italic, underlined, reversed, struck out.
ATTRIBUTES = {"", "0", "1", "2", "3", "4", "7", "9"}
WALK = (  # keys, and what is on the screen then
    (("find me", "enter"), "Call it with"),
    (("and more", "enter"), "It costs two comparisons"),
    (("ctrl+f", "pivot"), "5 of 5"),
    (("escape",), "ctx"),
    (("alt+up",), "y copy"),
    (("escape",), "ctx"),
    (("ctrl+t",), "What the model will see"),
    (("escape",), "ctx"),
    (("ctrl+s",), "Temperature"),
    (("down", "x"), "is not a"),
    (("escape",), "ctx"),
    (("ctrl+g",), "search all messages"),
    (("escape",), "ctx"),
    (("ctrl+p",), "Search for commands"),
    (("theme",), "Theme: light"),
    (("escape",), "ctx"),
    (("f8",), "System prompt"),
    (("f1",), "Help: Editing a text"),
    (("escape",), "use it"),
    (("escape",), "ctx"),
    (("f3",), "FITS"),
    (("i",), "Architecture"),
    (("h",), "Words of a name"),
    (("escape",), "FITS"),
    (("d",), "Nothing is being downloaded"),
    (("f4",), "makes an EXL2 model"),
    (("n",), "Model folder"),
    (("/nowhere",), "There is no such folder"),
    (("f5",), "Appearance"),
    (("ctrl+f", "token"), "Longest answer"),
    (("f2",), "ctx"),
    (("f12",), "NO_COLOR is set"),
)


def colours(written: bytes) -> set[str]:
    """Numbers that set a colour, also those that set the default one."""
    found = {number for codes in re.findall(rb"\x1b\[([\d;:]*)m", written) for number in re.split(rb"[;:]", codes)}
    return {number.decode() for number in found} - ATTRIBUTES


def came(shown: str, gone: str, screen: str) -> bool:
    """Whether a text is on the screen and another no longer, and no answer is written: escape would only stop it.

    An escape has done its work when what it closes is gone: half a frame may show what that covered too early, and an
    escape that a key follows at once is another key.
    """
    text = " ".join(screen.split())
    return shown in text and "esc Stop" not in text and not (gone and gone in text)


def demo(terminals: Open, home: Path) -> Terminal:
    return terminals([sys.executable, "-m", "tests.tui.demo"], home, (80, 24))


def test_no_screen_sends_a_colour(terminals: Open, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = demo(terminals, home)
    terminal.wait("ctx")
    before = ""
    for keys, shown in WALK:
        terminal.press(*keys)
        terminal.wait(partial(came, shown, before if keys == ("escape",) else ""))
        before = shown
    terminal.press("ctrl+q")
    assert terminal.ended() == 0
    assert b"\x1b[7m" in terminal.written and b"\x1b[1m" in terminal.written
    assert colours(bytes(terminal.written)) == set()


def test_an_empty_value_does_not_count(terminals: Open, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    terminal = demo(terminals, home)
    terminal.wait("ctx")
    assert "38" in colours(bytes(terminal.written))


@pytest.mark.parametrize("command", [["--help"], ["models"], ["modes"], ["models", "show", "nothing"]])
def test_no_command_sends_a_colour(command: list[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = subprocess.run(program(*command), env=surroundings(home), capture_output=True, check=False)
    assert colours(result.stdout + result.stderr) == set()
