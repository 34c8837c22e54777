"""The rows around every screen: places that can be clicked, keys as many as fit, lists that are as wide as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from textual.widgets import OptionList

from exl2_tui.screens.chat_picker import ChatPicker
from exl2_tui.screens.convert import ConvertScreen
from exl2_tui.screens.mode_picker import ModePicker
from exl2_tui.screens.models import ModelsScreen
from exl2_tui.screens.sampler import SamplerPanel
from exl2_tui.screens.settings import SettingsScreen
from exl2_tui.screens.too_small import TooSmall
from exl2_tui.widgets.header import Header
from exl2_tui.widgets.key_row import KeyRow
from tests.tui.conftest import MakeApp
from tests.tui.convert_fakes import FakeConvert
from tests.tui.driver import ChatDriver, until
from tests.tui.model_fakes import MODELS
from tests.tui.models_driver import models


def drawn(chat: ChatDriver) -> list[str]:
    return [strip.text for strip in chat.app.screen._compositor.render_strips()]


async def click(chat: ChatDriver, kind: type, text: str) -> None:
    """Clicks where a row of this kind says `text`."""
    row = chat.app.screen.query_one(kind)
    assert await chat.pilot.click(row, offset=(row.plain.index(text) + 1, 0))
    await chat.settle()


async def test_places_model_and_mode_are_a_click_away(make_app: MakeApp) -> None:
    async with make_app(convert_factory=FakeConvert).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        for place, screen in (("Models", ModelsScreen), ("Convert", ConvertScreen), ("Settings", SettingsScreen)):
            await click(chat, Header, place)
            await until(lambda screen=screen: isinstance(chat.app.screen, screen))  # type: ignore[misc]
        chat.app.session.converting = "44%"
        chat.app.screen.query_one(Header).show(chat.app.session)
        await click(chat, Header, "44%")
        await until(lambda: isinstance(chat.app.screen, ConvertScreen))
        await click(chat, Header, "Chat")
        await until(lambda: chat.app.screen is chat.chat_screen)
        await click(chat, Header, "auto")
        await until(lambda: isinstance(chat.app.screen, ModePicker))
        await pilot.press("escape")
        await click(chat, Header, "nano-chat")
        await until(lambda: isinstance(chat.app.screen, ModelsScreen))
        await click(chat, Header, "auto")  # another prompt mode is chosen in the chat
        assert isinstance(chat.app.screen, ModelsScreen)


async def test_the_row_of_keys_has_as_many_as_fit_and_help_always(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(60, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()

        def keys() -> str:
            return chat.app.screen.query_one(KeyRow).plain

        narrow = keys()
        assert (
            narrow.startswith(" ^n New  ^r Retry ") and narrow.endswith("f1 Help  ^p Commands ") and "…" not in narrow
        )
        await pilot.resize_terminal(120, 24)
        await chat.settle()
        assert "^s Sampler" in keys() and "^s Sampler" not in narrow and len(keys()) == 120
        await click(chat, KeyRow, "^s Sampler")
        await until(lambda: isinstance(chat.app.screen, SamplerPanel))
        await pilot.press("escape")
        await click(chat, KeyRow, "^p Commands")
        await until(lambda: chat.app.screen is not chat.chat_screen)


async def test_the_row_of_keys_says_what_can_be_done_now(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(120, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("x")
        row = chat.app.screen.query_one(KeyRow)
        assert row.plain.startswith(" esc Stop ")
        await chat.answer("y")
        await until(lambda: row.plain.startswith(" ^n New "))
        await pilot.press("alt+up")
        await until(lambda: row.plain.startswith(" esc Done  ^n New "))
        await pilot.hover(row, offset=(row.plain.index("^n"), 0))
        assert str(row.tooltip) == "new chat"


async def test_where_words_are_typed_a_letter_is_no_key(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.press("h")
        assert "Search" not in seen.app.screen.query_one(KeyRow).plain
        await seen.press(*"llama", "enter")
        assert "/ Search" in seen.app.screen.query_one(KeyRow).plain


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
async def test_a_row_beside_the_bar_is_whole(size: tuple[int, int], make_app: MakeApp) -> None:
    async with models(make_app, size) as seen:
        many = [replace(MODELS[0], name=f"model-{at}", path=f"/models/{at}") for at in range(60)]
        seen.fake.models = (*many, *MODELS)
        await seen.press("r")
        await seen.press("end")
        options = seen.app.screen.query_one("#list", OptionList)
        assert options.show_vertical_scrollbar
        lines = drawn(seen.chat)
        assert any("broken[2J" in line and "  broken" in line for line in lines)
        place = options.region
        rows = [line[: place.width] for line in lines[place.y : place.bottom] if " bpw " in line[: place.width]]
        assert rows and all(row.rstrip(" ▁▂▃▄▅▆▇█").endswith(("loaded", "yes", "tight")) for row in rows)


async def test_the_list_of_chats_keeps_the_age_beside_the_bar(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        for number in range(30):
            await chat.ask(f"question {number}")
            await chat.answer("yes")
            await pilot.press("ctrl+n")
        await pilot.press("ctrl+g")
        await until(lambda: isinstance(chat.app.screen, ChatPicker))
        await until(lambda: chat.app.screen.query_one(OptionList).option_count == 30)
        await chat.settle()
        rows = [line for line in drawn(chat) if "question" in line]
        assert rows and all(" now" in line for line in rows)


async def test_a_terminal_that_is_too_small_shows_nothing_but_that(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("a question")
        await chat.answer("an answer")
        await pilot.resize_terminal(50, 12)
        await until(lambda: isinstance(chat.app.screen, TooSmall))
        await chat.settle()
        assert [line.strip() for line in drawn(chat) if line.strip()] == ["exl2-tui needs 60x16 cells; this is 50x12"]


async def test_the_sampler_is_a_dialog_over_the_chat(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(120, 40)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("ctrl+s")
        await until(lambda: isinstance(chat.app.screen, SamplerPanel))
        await chat.settle()
        box = chat.app.screen.query_one(".dialog").region
        assert abs(box.x - (120 - box.right)) <= 1 and abs(box.y - (40 - box.bottom)) <= 1
        assert "nano-chat" in drawn(chat)[0]  # the chat is seen around it
