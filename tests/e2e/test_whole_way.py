"""The whole way as a person goes it, with the real engine: chat, another mode, a conversion, a chat with the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Open
from tests.e2e.terminal import Screen, Tmux, settings


def ask(terminal: Screen, question: str) -> None:
    """Asks and waits for the whole answer; what it says is the model's business."""
    terminal.wait("ctx")
    terminal.type(question)
    terminal.press("enter")
    terminal.wait(lambda screen: "first token" in screen.partition(f"› {question}")[2])


@pytest.mark.slow
def test_chat_mode_convert_and_chat_with_the_result(
    in_tmux: Callable[[], Tmux], home: Path, nano_chat: Path, tmp_path: Path
) -> None:
    """In tmux, at 120x40. The conversion is cut to a few short rows, everything else is the real thing."""
    settings(home, {"models": f'directories = ["{nano_chat.parent}"]', "sampler": "temperature = 0.0"})
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"On day {number} the ferry left at noon, and nobody minded." for number in range(400)))
    terminal = in_tmux()
    ask(terminal, "What is a volcano?")

    terminal.press("ctrl+t")
    terminal.wait("Prompt mode")
    terminal.type("llama")
    terminal.wait("[INST]")
    terminal.press("enter")
    terminal.wait("· llama")
    ask(terminal, "Say hello.")

    terminal.press("f4")
    terminal.wait("No conversions yet")
    terminal.press("n")
    terminal.wait("nano-chat")
    terminal.press("enter")  # the first model of the list
    terminal.wait("2 Target")
    terminal.wait("Bits per weight")
    terminal.press("tab", "tab", "tab", str(text), "tab", "0")
    terminal.wait(lambda screen: "kB" in screen and "between 1 and" in screen)  # checked while it is typed
    terminal.press("ctrl+u", "6", "tab", "64")
    terminal.wait_gone("between 1 and")
    terminal.wait("It will be made")
    terminal.press("enter")
    terminal.wait("6 rows of 64 tokens")
    terminal.press("enter")

    terminal.wait("● measure")
    terminal.wait("● quantize")
    terminal.wait("mlp.down_proj")  # rows of layers
    terminal.press("f2")  # it goes on in the background
    terminal.wait("Message")
    terminal.wait(lambda screen: "Convert " in screen and "%" in screen.splitlines()[0])
    ask(terminal, "Say goodbye.")
    terminal.press("f4")
    terminal.wait("nano-chat")
    terminal.press("enter")
    terminal.wait("finished ·")
    terminal.wait("KL divergence")
    terminal.press("c")
    terminal.wait("nano-chat-exl2-4bpw")
    terminal.wait("ctx")
    ask(terminal, "What is a river?")
    terminal.press("ctrl+q")
    assert terminal.ended() == 0

    (model,) = (home / "models").iterdir()
    judged = json.loads((model / "report.json").read_bytes())["evaluation"]
    assert judged["status"] == "ok" and judged["kl_divergence"] < 0.5


def test_plain_is_line_by_line_also_on_a_terminal(app: Open) -> None:
    terminal = app("--plain")
    terminal.wait("loaded in")
    terminal.type("What is a volcano?\r")
    screen = terminal.wait(lambda screen: "\n" in screen.partition("volcano?")[2].strip() or screen.count(".") > 2)
    assert "ctx" not in screen and "Commands" not in screen  # nothing of the full screen
    terminal.press("ctrl+d")
    assert terminal.ended() == 0
