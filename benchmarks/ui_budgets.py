"""Measures the app against its budgets: python benchmarks/ui_budgets.py [--json]

All but the last with a model that only pretends.

first frame   from starting the interpreter until the first frame is written, in a pseudo-terminal
flush         one flush of new text into a chat of 100 turns
key echo      from a key press to its character on screen while 1,000 tokens/s arrive
quit          from ctrl+q to the end of the process while an answer is written
idle          CPU seconds per second with nothing going on
widgets       widgets on the chat screen with 100 turns of code, lists and tables
open          from choosing a chat of 500 turns until its end is drawn
long answer   flush, key echo, widgets and memory at the end of an answer of 10,000 lines that is still being written
engine loss   what drawing takes from the tokens/s of the real engine with the built-in model (engine_under_ui.py)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine_under_ui import measure as engine_under_ui
from ui_terminal import Terminal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from tests.tui.driver import ChatDriver

BUDGETS = {
    "first frame, ms": 300.0,
    "flush with 100 turns, ms": 15.0,
    "key echo at 1,000 tok/s, ms": 50.0,
    "quit while writing, ms": 1000.0,
    "idle CPU, %": 1.0,
    "widgets with 100 turns": 600.0,
    "open a chat of 500 turns, ms": 500.0,
    "flush after 10,000 lines, ms": 15.0,
    "key echo after 10,000 lines, ms": 50.0,
    "widgets with 10,000 lines": 600.0,
    "memory for 10,000 lines, MB": 200.0,
    "engine loss, %": 5.0,
}

CHILD = """
import gc, sys
gc.disable()  # as exl2_tui.__main__ does
sys.path.insert(0, {root!r})
from exl2_tui.app import run
from tests.tui.fakes import TypingService
from tests.tui.demo import ANSWERS
begun = "\\n".join(((ANSWERS[0] + ANSWERS[1]).split("\\n") * {lines})[:{lines}])
run(None, service_factory=lambda post: TypingService(post, [ANSWERS[0] * 200], speed={speed}, join=0.03, begun=begun))
"""
LINES = 10_000


def started(speed: float, lines: int = 0) -> Terminal:
    """The app with a model that only pretends, in a pseudo-terminal. lines: what an answer begins with."""
    settings = '[appearance]\ntheme = "dark"\n[chat]\nmax_new_tokens = 100000\n'
    return Terminal(CHILD.format(root=str(ROOT), speed=speed, lines=lines), settings=settings)


def first_frame() -> float:
    terminal = started(60)
    terminal.wait_for(b"Welcome")
    seconds = time.perf_counter() - terminal.started
    terminal.drain(1.0)
    terminal.quit()
    return seconds * 1000


def idle() -> float:
    terminal = started(60)
    terminal.wait_for(b"nano-chat")
    terminal.drain(4.0)
    before = terminal.cpu()
    terminal.drain(5.0)
    used = terminal.cpu() - before
    terminal.quit()
    return used / 5.0 * 100


def echo_and_quit(lines: int = 0) -> tuple[float, float]:
    """Median milliseconds until a typed letter is drawn, and milliseconds to quit, both while text streams in.

    lines: of the answer that are there before the first letter is typed.
    """
    terminal = started(1000, lines)
    terminal.wait_for(b"nano-chat")
    terminal.drain(2.0)
    terminal.write(b"go\r")
    terminal.wait_for(b"writing", 60.0)
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
        flush = await flush_cost(chat)
        widgets = len(list(app.screen.walk_children()))
    return flush, float(widgets)


async def flush_cost(chat: ChatDriver) -> float:
    """Milliseconds of CPU per flush of twelve characters, drawn as they come: waiting for the pace is not counted."""
    from tests.tui.demo import ANSWERS

    chat.app._pace.wait = lambda speed: 0.0  # type: ignore[method-assign] # this app is measured, then gone
    costs = []
    text = ANSWERS[0] * 3
    for start in range(0, len(text), 12):
        chat.service.say(text[start : start + 12])
        begin = time.process_time()
        await chat.settle()
        costs.append(time.process_time() - begin)
    return statistics.median(costs) * 1000


async def long_answer() -> tuple[float, float, float]:
    """Of an answer of LINES lines: milliseconds of CPU per flush at its end, widgets on screen, megabytes it takes."""
    os.environ["EXL2_TUI_HOME"] = tempfile.mkdtemp(prefix="exl2-tui-bench-")
    from exl2_tui.app import Exl2App
    from exl2_tui.settings import Settings
    from tests.tui.demo import ANSWERS
    from tests.tui.driver import ChatDriver, until
    from tests.tui.fakes import FakeService

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    lines = ((ANSWERS[0] + ANSWERS[1]).split("\n") * LINES)[:LINES]
    app = Exl2App(FakeService, Settings(), model="nano-chat")
    async with app.run_test(size=(120, 40)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("a long answer, please")
        chat.service.ready()
        before = resident()
        for start in range(0, LINES, 100):
            chat.service.say("\n".join(lines[start : start + 100]) + "\n")
            await until(lambda: not app._bridge._events)
        await chat.settle()
        flush = await flush_cost(chat)
        widgets = len(list(app.screen.walk_children()))
        taken = resident() - before
    return flush, float(widgets), taken


async def open_long_chat() -> float:
    """Milliseconds from asking for a chat of 500 turns until its end is on screen, database included."""
    home = tempfile.mkdtemp(prefix="exl2-tui-bench-")
    os.environ["EXL2_TUI_HOME"] = home
    from exl2_tui.app import Exl2App
    from exl2_tui.settings import Settings
    from exl2_tui.store.db import ChatDatabase
    from exl2_tui.store.tree import Chat, Turn
    from tests.tui.demo import ANSWERS
    from tests.tui.driver import ChatDriver, until
    from tests.tui.fakes import FakeService

    app = Exl2App(
        FakeService,
        Settings(),
        model="nano-chat",
        store_factory=lambda saved, report: ChatDatabase(Path(home, "chats.db"), saved, report),
    )
    times = []
    async with app.run_test(size=(120, 40)) as pilot:
        driver = ChatDriver(pilot)

        def is_shown(text: str) -> bool:
            return text in driver.everything

        await driver.start()
        for name in ("a", "b"):
            chat = Chat(chat_id=name)
            for number in range(250):
                chat.add(Turn("user", f"{name}: question {number}", chat.head))
                chat.add(Turn("assistant", ANSWERS[number % 2] + f"\n\nend-{name}-{number}", chat.head))
            app._store.save_chat(chat)
            for turn in chat.turns.values():
                app._store.save_turn(chat, turn)
        for name in "abab":
            begin = time.perf_counter()
            await app.chats.load(name)
            await until(partial(is_shown, f"end-{name}-249"))
            await pilot.pause()
            times.append(time.perf_counter() - begin)
    app.close(5.0)
    return statistics.median(times) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    frames = [first_frame() for _ in range(8)][1:]  # the first run compiles
    echo, leave = echo_and_quit()
    flush, widgets = asyncio.run(flush_and_widgets())
    opened = asyncio.run(open_long_chat())
    long_flush, long_widgets, memory = asyncio.run(long_answer())
    long_echo, _ = echo_and_quit(LINES)
    engine, app, loss, error = engine_under_ui(31)
    values = [statistics.median(frames), flush, echo, leave, idle(), widgets, opened]
    values += [long_flush, long_echo, long_widgets, memory, loss]
    results = dict(zip(BUDGETS, values, strict=True))
    if options.json:
        speeds = {"engine alone, tok/s": engine, "engine under the app, tok/s": app, "error of the loss": error}
        print(json.dumps(results | speeds))
        return
    for name, value in results.items():
        print(f"{name:<30} {value:8.1f}   budget {BUDGETS[name]:6.0f}   {'ok' if value <= BUDGETS[name] else 'OVER'}")
    print(f"engine alone {engine:,.0f} tok/s, under the app {app:,.0f} tok/s; loss ± {error:.1f} %")


if __name__ == "__main__":
    main()
