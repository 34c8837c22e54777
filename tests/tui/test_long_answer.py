"""An answer of ten thousand lines: few widgets, and all of it there to read, find, copy and resize."""

from __future__ import annotations

import pytest
from textual.geometry import Offset
from textual.selection import SELECT_ALL, Selection
from textual.widgets import Static

from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until

LINES = 10_000
BLOCK = "```python\nfirst = 1\nsecond = 2\n```"
NEEDLE = "A needle in the middle.\n\n"
HEAD = f"line 1 begins\n\n{BLOCK}\n\n"


def long_text() -> str:
    """A quarter each of list, code, paragraphs and table rows, in runs of a few lines."""
    kinds = ("- item {0}", "```\ncode {0}\n```\n", "Paragraph {0} with **some** `words` in it.\n", "| a{0} | b |")
    parts = [HEAD]
    number = HEAD.count("\n") + 1
    while number < LINES:
        if number > LINES // 2 and NEEDLE not in parts:
            parts.append(NEEDLE)
        for kind in kinds:
            run = [kind.format(number + at) for at in range(6)]
            if kind.startswith("|"):
                run[1] = "|---|---|"
            text = "\n".join(run) + "\n\n"
            parts.append(text)
            number += text.count("\n")
    return "".join(parts) + "the last line"


def visible(chat: ChatDriver) -> str:
    """What is on the screen, row by row."""
    return "\n".join(strip.text for strip in chat.chat_screen._compositor.render_strips())


async def tell(chat: ChatDriver, text: str, pieces: int) -> None:
    chat.service.ready()
    size = len(text) // pieces + 1
    for start in range(0, len(text), size):
        chat.service.say(text[start : start + size])
        await until(lambda: not chat.app._bridge._events)
    await chat.settle()


async def test_it_is_read_from_end_to_end_with_few_widgets(make_app: MakeApp) -> None:
    text = long_text()
    assert text.count("\n") >= LINES
    async with make_app().run_test(size=(120, 40)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        before = len(list(chat.chat_screen.walk_children()))
        await chat.ask("ten thousand lines, please")
        await tell(chat, text, 5)
        assert len(list(chat.chat_screen.walk_children())) <= before + 10
        assert "the last line" in visible(chat)
        chat.transcript.go_to_top()
        await chat.settle()
        assert "line 1 begins" in visible(chat) and "second = 2" in visible(chat)
        chat.service.say("\n\nmore while nobody looks")
        await chat.settle()
        assert "line 1 begins" in visible(chat) and "more while" not in visible(chat)
        await pilot.press("ctrl+end")
        await chat.settle()
        assert "more while nobody looks" in visible(chat)
        chat.service.finish()
        await until(lambda: chat.app.session.writing is None)
        await chat.settle()
        live = chat.turns[-1].live
        assert chat.transcript.virtual_size.height > live.rows.height > LINES * 0.7
        chat.transcript.scroll_to(y=live.rows.height // 2, animate=False)
        await chat.settle()
        await pilot.resize_terminal(80, 24)
        await chat.settle()
        assert live.size.height == live.rows.height and live.region.right <= 80
        assert len([row for row in visible(chat).split("\n") if row.strip()]) > 12
        await pilot.press("ctrl+end")
        await chat.settle()
        assert "more while nobody looks" in visible(chat)


async def test_its_parts_are_copied_and_found_wherever_they_are(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    app = make_app()
    monkeypatch.setattr(app, "copy", lambda text, what: copied.append(text))
    async with app.run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("a long one")
        await tell(chat, long_text(), 4)
        chat.service.finish()
        await until(lambda: chat.app.session.writing is None)
        await pilot.press("alt+up", "c")
        await until(lambda: copied)
        assert copied == ["first = 1\nsecond = 2"]
        await pilot.press("escape", "ctrl+f", *"needle")
        await chat.settle()
        assert str(chat.chat_screen.query_one("#found-count", Static).render()).strip().startswith("1 of 1")
        await until(lambda: NEEDLE.strip() in visible(chat))
        live = chat.turns[-1].live
        found = live.row_of(0)
        chat.chat_screen.selections = {live: Selection(Offset(0, 0), Offset(6, found))}
        assert chat.chat_screen.get_selected_text().startswith("line 1 begins\n\npython\nfirst = 1\nsecond = 2\n\n")
        assert chat.chat_screen.get_selected_text().endswith("\n\nA need")
        await chat.settle()
        assert NEEDLE.strip() in visible(chat)
        chat.chat_screen.selections = {live: SELECT_ALL}
        assert chat.chat_screen.get_selected_text().rstrip().endswith("the last line")


async def test_a_double_click_selects_the_part_under_it_and_a_click_opens_reasoning(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("q")
        await chat.answer(f"<think>\nwell\n</think>\nBefore it.\n\n{BLOCK}\n\nAfter it.")
        live = chat.turns[-1].live
        assert live.rows.row(0)[1].plain == "▸ Thought, 1 words"
        await pilot.click(live, offset=(3, 0))
        await chat.settle()
        assert [live.rows.row(row)[1].plain for row in (0, 1, 2)] == ["▾ Thought, 1 words", "well", ""]
        assert "well" in visible(chat)
        await pilot.click(live, offset=(3, 0))
        await chat.settle()
        assert "well" not in visible(chat)
        await pilot.click(live, offset=(4, 5), times=2)
        await chat.settle()
        assert chat.chat_screen.get_selected_text() == "python\nfirst = 1\nsecond = 2"
