"""What drawing costs the engine: tokens/s of the built-in model alone, and in the app with 100 turns on a terminal.

Both are processes that stay; they answer the same chat in turn, one at a time, so that both see the same machine. The
model's stop tokens are ignored, so every answer has equally many tokens. Used by ui_budgets.py; alone:
python benchmarks/engine_under_ui.py [--rounds 9] [--theme dark]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ui_terminal import Terminal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TOKENS = 1500
CONTEXT = 4096  # more than the model was trained with: it is its speed that counts, in answers of some seconds
TURNS = 100

SHARED = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from exl2_tui.core.requests import ChatRequest, Message, SamplerSettings
SAMPLER = SamplerSettings(seed=7)
TURNS = [("question %d" % number, "A short answer with a **word**.") for number in range({TURNS} // 2)]

def endless():
    from exl2_tui.core.generation.generator import Generator
    stream = Generator.stream
    def without_stops(self, ids, settings, **options):
        return stream(self, ids, settings, **{{**options, "stop_ids": frozenset(), "stop_strings": ()}})
    Generator.stream = without_stops
"""

ALONE = (
    SHARED
    + f"""
from exl2_tui.core.engine import Engine
from exl2_tui.core.events import GenerationFinished
from exl2_tui.core.library.catalog import Library
endless()
engine = Engine()
from exl2_tui.core.requests import LoadOptions
engine.load(Library([], "").resolve(""), LoadOptions(context={CONTEXT}))
messages = []
for question, answer in TURNS:
    messages += [Message("user", question), Message("assistant", answer)]
messages[-1:] = []
print("ready", flush=True)
for line in sys.stdin:
    for event in engine.chat(ChatRequest(tuple(messages), sampler=SAMPLER, max_new_tokens={TOKENS})):
        if isinstance(event, GenerationFinished):
            print(json.dumps([event.generated_tokens, event.decode_speed]), flush=True)
"""
)

UNDER_UI = (
    SHARED
    + """
from exl2_tui import app
from exl2_tui.core.events import GenerationFinished, LoadFinished
from exl2_tui.service import Service
from exl2_tui.session import ChatSession
from exl2_tui.store.tree import Turn
out = open(sys.argv[1], "w")

class Talkative(ChatSession):
    def _fresh_chat(self, mode, system):
        chat = super()._fresh_chat(mode, system)
        for question, answer in TURNS:
            chat.add(Turn("user", question, chat.head))
            chat.add(Turn("assistant", answer, chat.head))
        return chat

def tee(post):
    def heard(event):
        if isinstance(event, LoadFinished):
            endless()
            print("ready", file=out, flush=True)
        if isinstance(event, GenerationFinished):
            print(json.dumps([event.generated_tokens, event.decode_speed]), file=out, flush=True)
        post(event)
    return Service(heard)
app.ChatSession = Talkative
app.run("", service_factory=tee)
"""
)


class Answers:
    """Lines that a process writes into a pipe. Waiting for them costs no time, and the terminal is read meanwhile."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._data = b""

    def next(self, terminal: Terminal, seconds: float = 60.0) -> str:
        end = time.monotonic() + seconds
        while b"\n" not in self._data:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("the app never answered")
            ready = select.select([terminal.master, self._pipe], [], [], left)[0]
            if terminal.master in ready:
                terminal.read(0)
            if self._pipe in ready:
                self._data += os.read(self._pipe, 4096)
        line, _, self._data = self._data.partition(b"\n")
        return line.decode()


def measure(rounds: int, theme: str = "dark") -> tuple[float, float, float, float]:
    """Median tokens/s alone and under the app, the median of the losses of the pairs in percent, and its standard error
    (of a median of normal numbers, from the middle half of the losses)."""
    home = tempfile.mkdtemp(prefix="exl2-tui-bench-")
    results = Path(home, "answers")
    answers = Answers(results)
    alone = subprocess.Popen(
        [sys.executable, "-c", ALONE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "EXL2_TUI_HOME": home},
    )
    assert alone.stdin is not None and alone.stdout is not None
    ask, told = alone.stdin, alone.stdout
    assert told.readline() == "ready\n"
    settings = f'[appearance]\ntheme = "{theme}"\n[chat]\nmax_new_tokens = {TOKENS}\n[sampler]\nseed = 7\n'
    settings += f"[load]\ncontext = {CONTEXT}\n"
    terminal = Terminal(UNDER_UI, str(results), settings=settings)

    def under_ui() -> list[float]:
        terminal.write(b"\x12")  # ctrl+r: the last question again
        speed: list[float] = json.loads(answers.next(terminal))
        terminal.drain(0.5)
        return speed

    def by_itself() -> list[float]:
        ask.write("\n")
        ask.flush()
        speed: list[float] = json.loads(told.readline())
        return speed

    try:
        assert answers.next(terminal) == "ready"
        terminal.drain(2.0)
        under_ui()
        by_itself()
        pairs: list[tuple[float, float]] = []
        for number in range(rounds):
            if number % 2:
                app, engine = under_ui(), by_itself()
            else:
                engine, app = by_itself(), under_ui()
            assert app[0] == engine[0], f"{app[0]} and {engine[0]} tokens"
            pairs.append((engine[1], app[1]))
    finally:
        terminal.quit()
        ask.close()
        alone.wait(10)
    losses = [100 * (1 - app / engine) for engine, app in pairs]
    lower, _, upper = statistics.quantiles(losses, n=4)
    return (
        statistics.median(engine for engine, _ in pairs),
        statistics.median(app for _, app in pairs),
        statistics.median(losses),
        0.93 * (upper - lower) / math.sqrt(rounds),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--theme", default="dark")
    options = parser.parse_args()
    engine, app, loss, error = measure(options.rounds, options.theme)
    print(
        f"engine alone {engine:,.0f} tok/s, under the app {app:,.0f}, loss {loss:.1f} ± {error:.1f} % (median of pairs)"
    )


if __name__ == "__main__":
    main()
