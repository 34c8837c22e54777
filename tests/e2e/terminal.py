"""Terminals without a window: a program on a pseudo-terminal or in tmux, and the screen as a person would see it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

# What pyte does not know and would print: keyboard protocols, private modes with "$", application strings.
UNKNOWN = re.compile(rb"\x1b\[[<>=][\d;]*[a-zA-Z]|\x1b\[\?[\d;]*\$p|\x1b[_P^][^\x1b]*\x1b\\|\x1b\[\d* q")
UNFINISHED = re.compile(rb"\x1b(?:\[[\d;?<>=$ ]*|[_P^\]][^\x07\x1b]*\x1b?)?\Z")
KEYS = {
    "enter": "\r",
    "escape": "\x1b",
    "tab": "\t",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "alt+up": "\x1b[1;3A",
    "right": "\x1b[C",
    "left": "\x1b[D",
    "end": "\x1b[F",
    "f1": "\x1bOP",
    "f2": "\x1bOQ",
    "f3": "\x1bOR",
    "f4": "\x1bOS",
    "f5": "\x1b[15~",
    "f8": "\x1b[19~",
    "f12": "\x1b[24~",
}
AND_TELL = '"$@"; echo $? >"$0"'  # for a shell: a file and a command

LIMIT = 300.0  # seconds; reached only by what never comes


class Screen(ABC):
    """What a person sees of a program that runs, and its end."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The screen, its rows without the blanks on the right."""

    @property
    @abstractmethod
    def status(self) -> int | None:
        """The exit status; None while the program runs."""

    @abstractmethod
    def press(self, *keys: str) -> None:
        """Sends keys by name, such as "enter", "f4", "ctrl+q", or as text; several arrive in one go."""

    @abstractmethod
    def type(self, text: str) -> None:
        """Types a text."""

    @abstractmethod
    def close(self) -> None:
        """Ends the program, however it fares."""

    @abstractmethod
    def _read(self, seconds: float) -> bool:
        """Waits for what the program writes, at most so long; False if there is nothing."""

    def row(self, label: str) -> str:
        """The row with this label, "" if there is none."""
        return next((line for line in self.text.split("\n") if label in line), "")

    def wait(self, expected: str | Callable[[str], object], seconds: float = LIMIT) -> str:
        """Reads until the screen shows a text, wrapped or not (or the condition holds); returns the screen."""
        condition = expected if callable(expected) else (lambda screen: expected in " ".join(screen.split()))
        end = time.monotonic() + seconds
        while not condition(self.text):
            assert time.monotonic() < end, f"{expected!r} was never on the screen:\n{self.text}"
            if not self._read(0.1) and self.status is not None:
                assert condition(self.text), f"the program ended ({self.status}) with:\n{self.text}"
        return self.text

    def wait_gone(self, text: str, seconds: float = LIMIT) -> str:
        """Reads until the screen no longer shows a text."""
        return self.wait(lambda screen: text not in screen, seconds)

    def ended(self, seconds: float = LIMIT) -> int:
        """Reads until the program has ended; returns its exit status."""
        end = time.monotonic() + seconds
        while (status := self.status) is None:
            assert time.monotonic() < end, f"the program never ended:\n{self.text}"
            self._read(0.05)
        while self._read(0.0):
            pass
        return status


class Terminal(Screen):
    """Starts `command` on a pseudo-terminal and keeps the screen it draws."""

    def __init__(
        self, command: Sequence[str], home: Path, *, size: tuple[int, int] = (80, 24), **variables: str
    ) -> None:
        """size: columns, rows. variables: of the environment, besides a home of its own and no colour queries."""
        columns, rows = size
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._rest = b""
        self.written = bytearray()  # all that the program wrote
        self._master, slave = pty.openpty()
        self._resize_pty(columns, rows)
        more = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "TEXTUAL_ANIMATIONS": "none", **variables}
        self.process = subprocess.Popen(
            list(command),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**surroundings(home), **more},
            preexec_fn=_own_terminal,
        )
        os.close(slave)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display)

    @property
    def status(self) -> int | None:
        return self.process.poll()

    def press(self, *keys: str) -> None:
        data = [KEYS.get(key) or (chr(ord(key[-1]) & 0x1F) if key.startswith("ctrl+") else key) for key in keys]
        os.write(self._master, "".join(data).encode())

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        self._screen.resize(rows, columns)
        self._resize_pty(columns, rows)
        self.process.send_signal(signal.SIGWINCH)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Sends a signal and waits for the end; returns the exit status."""
        self.process.send_signal(number)
        return self.ended()

    def hang_up(self) -> int:
        """The window is closed: the terminal is gone."""
        os.close(self._master)
        self._master = -1
        return self.process.wait(LIMIT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._master >= 0:
            os.close(self._master)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            new = os.read(self._master, 65536)
        except OSError:  # the program has ended
            return False
        self.written += new
        data = self._rest + new
        unfinished = UNFINISHED.search(data)
        self._rest = unfinished.group() if unfinished else b""
        self._stream.feed(UNKNOWN.sub(b"", data[: len(data) - len(self._rest)]))
        return True

    def _resize_pty(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Tmux(Screen):
    """Starts `command` in a tmux of its own (no settings, its own socket), which also spells the keys."""

    def __init__(self, command: Sequence[str], home: Path, *, size: tuple[int, int] = (120, 40)) -> None:
        """size: columns, rows."""
        columns, rows = map(str, size)
        self._told = home.parent / "exit-status"  # tmux itself may miss the end of a program: it can lose a SIGCHLD
        self._told.unlink(missing_ok=True)
        self._tmux = ["tmux", "-L", f"exl2-tui-{os.getpid()}-{home.parent.name}", "-f", os.devnull, "-u"]
        variables = {**surroundings(home), "LANG": "C.UTF-8", "TEXTUAL_ANIMATIONS": "none"}
        keep = ["start-server", ";", "set-option", "-g", "remain-on-exit", "on", ";"]
        shell = ["sh", "-c", AND_TELL, str(self._told), *command]
        start = ["new-session", "-d", "-x", columns, "-y", rows, "--", *shell]
        subprocess.run([*self._tmux, *keep, *start], env=variables, check=True)

    @property
    def text(self) -> str:
        return self._ask("capture-pane", "-p")

    @property
    def status(self) -> int | None:
        told = self._told.read_text() if self._told.exists() else ""
        return int(told) if told else None

    def press(self, *keys: str) -> None:
        commands = []
        for key in keys:
            named = key in KEYS or key.startswith("ctrl+")
            commands += ["send-keys", *([_spelled(key)] if named else ["-l", "--", key]), ";"]
        self._ask(*commands[:-1])

    def type(self, text: str) -> None:
        self._ask("send-keys", "-l", "--", text)

    def close(self) -> None:
        socket = Path(self._ask("display-message", "-p", "#{socket_path}").strip())
        self._ask("kill-server")
        socket.unlink(missing_ok=True)  # tmux may leave it behind

    def _read(self, seconds: float) -> bool:
        time.sleep(seconds)  # tmux is asked for its screen, it does not tell
        return False

    def _ask(self, *command: str) -> str:
        return subprocess.run([*self._tmux, *command], check=True, capture_output=True, encoding="utf-8").stdout


def program(*arguments: str | Path) -> list[str]:
    """The command line of `exl2-tui` with these arguments."""
    return [sys.executable, "-m", "exl2_tui", *map(str, arguments)]


def surroundings(home: Path) -> dict[str, str]:
    """Environment variables for a program with this home. One thread: on a busy machine several wait for each other."""
    return {**os.environ, "EXL2_TUI_HOME": str(home), "HF_HUB_CACHE": str(home / "no-hub"), "OMP_NUM_THREADS": "1"}


def settings(home: Path, more: Mapping[str, str] | None = None) -> None:
    """Settings without questions to the terminal. more: further tables by name, as TOML."""
    home.mkdir(exist_ok=True)
    tables = {"appearance": 'theme = "dark"', **(more or {})}
    (home / "settings.toml").write_text("".join(f"[{name}]\n{text}\n\n" for name, text in tables.items()))


def _own_terminal() -> None:
    """In the child: a session whose terminal the pseudo-terminal is, so that closing it hangs up."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _spelled(key: str) -> str:
    """A key as tmux calls it: "ctrl+t" is C-t, "alt+up" M-Up."""
    modifier, _, name = key.rpartition("+")
    return {"": "", "ctrl": "C-", "alt": "M-"}[modifier] + (name if len(name) == 1 else name.capitalize())
