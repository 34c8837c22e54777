"""What a conversion costs the person who uses the app meanwhile: python benchmarks/ui_while_converting.py [MODEL]

A float model is converted by the app itself, on a pseudo-terminal of 120x40, while keys are pressed: letters in the
chat, and the keys that open every place. Milliseconds from the key to its text on screen, idle and converting.

    first     the first time after the start, when the place's modules are imported
    again     median of the times after that
    worst     the slowest of those
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from ui_terminal import Terminal

ROOT = Path(__file__).resolve().parents[1]
NANO_CHAT = ROOT.parent / "shared" / "models" / "nano-chat"
CHILD = """
import sys
sys.path.insert(0, {root!r})
from exl2_tui import app
from exl2_tui.core.requests import ConvertRequest
start = app.Exl2App._start_service
def start_and_convert(self):
    start(self)
    if sys.argv[1:]:
        work = sys.argv[2]
        self.convert.jobs.start(ConvertRequest(source=sys.argv[1], work=work, output=work + "/out", bits=(4.0,)))
app.Exl2App._start_service = start_and_convert
app.run(None)
"""
# What is measured: its key, what it brings to the screen, the key that leaves it again.
PLACES = {
    "settings": (b"\x1b[15~", b"Appearance", b"\x1b"),
    "models": (b"\x1bOR", b"MEMORY", b"\x1b"),
    "convert": (b"\x1bOS", b"Conversions", b"\x1b"),
    "help": (b"\x1bOP", b"Help: ", b"\x1b"),
    "commands": (b"\x10", b"what has the focus", b"\x1b"),
    "chats": (b"\x07", b"esc close", b"\x1b"),
    "prompt mode": (b"\x14", b"Prompt mode", b"\x1b"),
    "sampler": (b"\x13", b"Sampler", b"\x1b"),
}
ROUNDS = 4
REST = 0.4  # seconds after leaving a place


def measure(*converted: str) -> dict[str, list[float]]:
    """Milliseconds by what was pressed, the first one first."""
    settings = '[appearance]\ntheme = "dark"\n'
    terminal = Terminal(CHILD.format(root=str(ROOT)), *converted, settings=settings)
    try:
        terminal.wait_for(b"small-chat", 60)
        terminal.drain(1.0)
        if converted:
            terminal.wait_for(b"Convert ", 120)
        terminal.drain(3.0)
        times: dict[str, list[float]] = {"letter": []}
        for number in range(20):
            letter = b"ZQ"[number % 2 : number % 2 + 1]
            terminal.write(letter)
            times["letter"].append(terminal.wait_for(letter, 30) * 1000)
            terminal.drain(0.2)
        terminal.write(b"\x15")
        for _ in range(ROUNDS):
            for name, (key, text, leave) in PLACES.items():
                terminal.write(key)
                times.setdefault(name, []).append(terminal.wait_for(text, 30) * 1000)
                terminal.drain(REST)
                terminal.write(leave)
                terminal.drain(REST)
    finally:
        terminal.quit()
        if terminal.process.poll() is None:
            terminal.process.terminate()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(NANO_CHAT))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import tempfile

    idle = measure()
    busy = measure(options.model, tempfile.mkdtemp(prefix="exl2-tui-bench-"))
    if options.json:
        print(json.dumps({"idle": idle, "converting": busy}))
        return
    print(f"{'milliseconds until it is drawn':<32}{'idle':>8}{'':>16}{'converting':>12}")
    print(f"{'':<32}" + f"{'first':>8}{'again':>8}{'worst':>8}" * 2)
    for name in idle:
        row = f"{name:<32}"
        for times in (idle[name], busy[name]):
            row += f"{times[0]:8.0f}{statistics.median(times[1:]):8.0f}{max(times[1:]):8.0f}"
        print(row)


if __name__ == "__main__":
    main()
