"""Finding words in the chat in view, also where nothing of it is mounted."""

from __future__ import annotations

from textual.widgets import Static

from exl2_tui.find import matches, pattern_of
from exl2_tui.store.tree import Turn
from exl2_tui.widgets.find_bar import FindBar
from exl2_tui.widgets.text_rows import CURRENT, FOUND
from exl2_tui.widgets.text_view import TextView
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver


def lit(chat: ChatDriver, style: str) -> list[str]:
    """The texts drawn in a style, top to bottom."""
    found: list[str] = []
    for part in chat.transcript.query(TextView):
        content = part.render()
        spans = [span for span in content.spans if span.style == style]  # type: ignore[union-attr]
        found += [content.plain[span.start : span.end] for span in spans]  # type: ignore[union-attr]
    return found


def count(chat: ChatDriver) -> str:
    return str(chat.chat_screen.query_one("#found-count", Static).render()).strip()


def test_what_is_typed_is_text_and_capitals_matter() -> None:
    turns = [Turn("user", "A+b and a+B", None), Turn("assistant", "a+b\n  c. Axb", None)]
    assert pattern_of("  ") is None
    for typed, numbers in (("a+b", [0, 1, 0]), ("A+b", [0]), ("a+b c.", [0]), ("nothing", [])):
        pattern = pattern_of(typed)
        assert pattern is not None
        assert [match.number for match in matches(turns, pattern)] == numbers


async def test_matches_are_lit_counted_and_walked_through(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("about [apples]")
        await chat.answer("An apple is **an apple**.\n\n```python\napple = 'Apple'\n```\n\n| apple |\n|---|\n| pear |")
        chat.composer.set_message("draft")
        await pilot.press("ctrl+f", *"apple")
        await chat.settle()
        assert count(chat).startswith("6 of 6")
        assert lit(chat, CURRENT) == ["apple"] and len(lit(chat, FOUND)) == 5
        await pilot.press("enter")
        await chat.settle()
        assert count(chat).startswith("1 of 6") and lit(chat, CURRENT) == ["apple"]
        assert "[" in chat.text(chat.turns[0])
        await pilot.press("up", "up")
        await chat.settle()
        assert count(chat).startswith("5 of 6") and lit(chat, CURRENT) == ["Apple"]
        await pilot.press("ctrl+f", *"zebra")
        await chat.settle()
        assert count(chat) == "not found" and not lit(chat, FOUND)
        await pilot.press("escape")
        await chat.settle()
        assert chat.composer.has_focus and chat.composer.text == "draft"
        assert not chat.chat_screen.query_one(FindBar).display and not lit(chat, FOUND) + lit(chat, CURRENT)


async def test_a_match_far_above_is_brought_into_view(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        session = chat.app.session
        for number in range(250):
            session.chat.add(Turn("user", f"question {number}", session.chat.head))
            session.chat.add(Turn("assistant", "line\n\n" * 30 + f"needle-{number}-x", session.chat.head))
        chat.transcript.show(session.chat, to_end=True)
        await chat.settle()
        assert len(chat.turns) <= 20
        await pilot.press("ctrl+f", *"needle-7-x")
        await chat.settle()
        await pilot.pause()
        assert count(chat).startswith("1 of 1") and lit(chat, CURRENT) == ["needle-7-x"]
        assert len(chat.turns) <= 20
        spot = next(part for part in chat.transcript.query(TextView) if "needle-7-x" in str(part.render()))
        row = spot.region.y + spot.row_of(0)
        assert chat.transcript.region.y <= row < chat.transcript.region.bottom
