"""A program in a pseudo-terminal of 120x40, read and written like a person would."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Terminal:
    """Runs `code` in a Python of its own with a home of its own; `started` is when, by time.perf_counter."""

    def __init__(self, code: str, *arguments: str, settings: str) -> None:
        import fcntl
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        home = tempfile.mkdtemp(prefix="exl2-tui-bench-")
        Path(home, "settings.toml").write_text(settings)
        environment = {**os.environ, "EXL2_TUI_HOME": home, "TERM": "xterm-256color"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody who uses the app compiles it at every start
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = bytearray()  # bytes would be copied whole with every frame, on the cores that are measured

    def read(self, seconds: float) -> bytes:
        """What the app writes within that time, or less if it is quiet."""
        if not select.select([self.master], [], [], seconds)[0]:
            return b""
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return b""
        self.seen += data
        return data

    def wait_for(self, text: bytes, seconds: float = 15.0) -> float:
        """Seconds since the call until the text appeared in what was written."""
        begin = time.perf_counter()
        start = len(self.seen)
        while text not in self.seen[max(0, start - len(text)) :]:
            if time.perf_counter() - begin > seconds:
                raise TimeoutError(f"{text!r} never appeared")
            self.read(0.05)
        return time.perf_counter() - begin

    def drain(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.read(0.02)

    def write(self, text: bytes) -> None:
        os.write(self.master, text)

    def cpu(self) -> float:
        """CPU seconds the app used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def quit(self) -> float:
        """Seconds from ctrl+q until the process is gone."""
        begin = time.perf_counter()
        self.write(b"\x11")
        while self.process.poll() is None and time.perf_counter() - begin < 10:
            self.read(0.01)
        return time.perf_counter() - begin
