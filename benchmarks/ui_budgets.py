"""Measures the app against its budgets, with a model that only pretends: python benchmarks/ui_budgets.py [--json]

first frame   from starting the interpreter until the first frame is written, in a pseudo-terminal
flush         one flush of new text into a chat of 100 turns
key echo      from a key press to its character on screen while 1,000 tokens/s arrive
quit          from ctrl+q to the end of the process while an answer is written
idle          CPU seconds per second with nothing going on
widgets       widgets on the chat screen with 100 turns of code, lists and tables
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BUDGETS = {
    "first frame, ms": 300.0,
    "flush with 100 turns, ms": 15.0,
    "key echo at 1,000 tok/s, ms": 50.0,
    "quit while writing, ms": 1000.0,
    "idle CPU, %": 1.0,
    "widgets with 100 turns": 600.0,
}

CHILD = """
import sys, time
sys.path.insert(0, {root!r})
from exl2_tui.app import run
from tests.tui.fakes import TypingService
from tests.tui.demo import ANSWERS
run(None, service_factory=lambda post: TypingService(post, [ANSWERS[0] * 200], speed={speed}, join=0.03))
"""


class Terminal:
    """The app in a pseudo-terminal of 120x40, read and written like a person would."""

    def __init__(self, speed: float) -> None:
        import fcntl
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        home = tempfile.mkdtemp(prefix="exl2-tui-bench-")
        Path(home, "settings.toml").write_text('[appearance]\ntheme = "dark"\n[chat]\nmax_new_tokens = 100000\n')
        environment = {**os.environ, "EXL2_TUI_HOME": home, "TERM": "xterm-256color"}
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(root=str(ROOT), speed=speed)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

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


def first_frame() -> float:
    terminal = Terminal(60)
    terminal.wait_for(b"Welcome")
    seconds = time.perf_counter() - terminal.started
    terminal.drain(1.0)
    terminal.quit()
    return seconds * 1000


def idle() -> float:
    terminal = Terminal(60)
    terminal.wait_for(b"nano-chat")
    terminal.drain(4.0)
    before = terminal.cpu()
    terminal.drain(5.0)
    used = terminal.cpu() - before
    terminal.quit()
    return used / 5.0 * 100


def echo_and_quit() -> tuple[float, float]:
    """Median milliseconds until a typed letter is drawn, and milliseconds to quit, both while text streams in."""
    terminal = Terminal(1000)
    terminal.wait_for(b"nano-chat")
    terminal.drain(2.0)
    terminal.write(b"go\r")
    terminal.wait_for(b"writing")
    terminal.drain(2.0)
    times = []
    for number in range(20):
        letter = b"ZQ"[number % 2 : number % 2 + 1]  # letters that the answer does not contain
        terminal.write(letter)
        times.append(terminal.wait_for(letter))
        terminal.drain(0.1)
    return statistics.median(times) * 1000, terminal.quit() * 1000


async def flush_and_widgets() -> tuple[float, float]:
    """Milliseconds of CPU per flush into the last of 100 turns, layout and drawing included, and widgets on screen."""
    os.environ["EXL2_TUI_HOME"] = tempfile.mkdtemp(prefix="exl2-tui-bench-")
    from exl2_tui.app import Exl2App
    from exl2_tui.settings import Settings
    from tests.tui.demo import ANSWERS
    from tests.tui.driver import ChatDriver
    from tests.tui.fakes import FakeService

    app = Exl2App(FakeService, Settings(), model="nano-chat")
    async with app.run_test(size=(120, 40)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        for number in range(50):
            await chat.ask(f"question {number}")
            await chat.answer(ANSWERS[number % 2])
        await chat.ask("the last one")
        chat.service.ready()
        costs = []
        text = ANSWERS[0] * 3
        for start in range(0, len(text), 12):
            chat.service.say(text[start : start + 12])
            before = time.process_time()
            await chat.settle()
            costs.append(time.process_time() - before)
        widgets = len(list(app.screen.walk_children()))
    return statistics.median(costs) * 1000, float(widgets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    frames = [first_frame() for _ in range(5)][1:]  # the first run compiles
    echo, leave = echo_and_quit()
    flush, widgets = asyncio.run(flush_and_widgets())
    values = [statistics.median(frames), flush, echo, leave, idle(), widgets]
    results = dict(zip(BUDGETS, values, strict=True))
    if options.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:<30} {value:8.1f}   budget {BUDGETS[name]:6.0f}   {'ok' if value <= BUDGETS[name] else 'OVER'}")


if __name__ == "__main__":
    main()
