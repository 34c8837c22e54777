"""The first start: what was found, the ways to begin, shown once; and a terminal that is too small."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Static

from exl2_tui.screens.first_run import FirstRun
from exl2_tui.screens.hub import HubScreen
from exl2_tui.screens.models import ModelsScreen
from exl2_tui.screens.too_small import TooSmall
from exl2_tui.settings import is_first_run, load_settings
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until


def everything(chat: ChatDriver) -> str:
    return "\n".join(str(part.render()) for part in chat.app.screen.query(Static))


async def test_what_was_found_and_a_choice_that_is_remembered(make_app: MakeApp, home: Path) -> None:
    assert is_first_run()
    async with make_app(first_run=True).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        assert isinstance(chat.app.screen, FirstRun)
        await until(lambda: "A Processor [x86], 2 cores, AVX-512 kernels" in everything(chat))
        assert "12.3 GB free" in everything(chat) and "none found" in everything(chat)
        await pilot.press("f1")
        await pilot.pause()
        assert "Nothing is decided for good" in everything(chat)
        await pilot.press("escape", "1")
        await until(lambda: chat.app.screen is chat.chat_screen)
        assert chat.composer.has_focus
        await until(lambda: not is_first_run())
        await chat.ask("hi")


async def test_a_folder_of_models(make_app: MakeApp, home: Path) -> None:
    async with make_app(first_run=True).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("2")
        await pilot.pause()
        await pilot.press(*"/nowhere/at/all", "enter")
        await pilot.pause()
        await until(lambda: "There is no such folder: /nowhere/at/all" in everything(chat))
        await pilot.press("ctrl+u", *str(home), "enter")
        await until(lambda: isinstance(chat.app.screen, ModelsScreen))
        await until(lambda: load_settings(home)[0].models.directories == (str(home),))


async def test_a_terminal_too_small_gets_one_line_and_loses_nothing(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("hi")
        service.ready()
        await pilot.press(*"draft")
        await pilot.resize_terminal(52, 14)
        await chat.settle()
        assert isinstance(chat.app.screen, TooSmall)
        assert "exl2-tui needs 60x16 cells; this is 52x14" in everything(chat)
        service.say("meanwhile")
        await pilot.resize_terminal(40, 10)
        await chat.settle()
        assert "this is 40x10" in everything(chat)
        await pilot.resize_terminal(80, 24)
        await chat.settle()
        assert chat.app.screen is chat.chat_screen and chat.composer.text == "draft"
        assert "meanwhile" in chat.everything


async def test_a_start_in_a_small_terminal(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(50, 10)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        assert isinstance(chat.app.screen, TooSmall)
        await pilot.resize_terminal(60, 16)
        await chat.settle()
        assert chat.app.screen is chat.chat_screen


async def test_download_leads_to_the_hub(make_app: MakeApp) -> None:
    async with make_app(first_run=True).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("3")
        await until(lambda: isinstance(chat.app.screen, HubScreen))
        await pilot.press("escape", "escape")
        await until(lambda: chat.app.screen is chat.chat_screen)
