"""What was written and not sent: every chat keeps its own, over other chats and over the end of the program."""

from __future__ import annotations

import asyncio
from pathlib import Path

from exl2_tui.store.db import ChatDatabase
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until


def saved(app_home: Path) -> dict[str, object]:
    """Options of an app that keeps its chats on disk."""
    return {"store_factory": lambda done, report: ChatDatabase(app_home / "chats.db", done, report)}


async def test_each_chat_has_its_own(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        session = chat.app.session
        await chat.ask("first")
        await chat.answer("one")
        first = session.chat.id
        await pilot.press("ctrl+n")
        await chat.ask("second")
        await chat.answer("two")
        second = session.chat.id
        await pilot.press(*"for 2")
        chat.app.open_chat(first)
        await until(lambda: session.chat.id == first)
        await chat.settle()
        assert chat.composer.text == ""
        await pilot.press(*"for 1")
        chat.app.open_chat(second)
        await until(lambda: chat.composer.text == "for 2")
        await pilot.press("ctrl+n")
        await chat.settle()
        assert chat.composer.text == "for 2"  # a new chat takes along what is being typed
        chat.app.open_chat(second)
        await until(lambda: session.chat.id == second)
        await chat.settle()
        assert chat.composer.text == ""
        await pilot.press(*"more", "ctrl+n")
        await chat.settle()
        assert chat.composer.text == "for 2\nmore"
        chat.app.open_chat(first)
        await until(lambda: chat.composer.text == "for 1")


async def test_what_waits_and_what_was_typed_is_there_after_the_end(make_app: MakeApp, home: Path) -> None:
    async with make_app(**saved(home)).run_test(size=(120, 40)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("tell me")
        await pilot.press(*"first", "enter", *"next", "enter", *"typed")
        await chat.settle()
        assert "first and 1 more" in chat.queue
        chat.app.close(5)  # as `run` does at the end
    async with make_app(**saved(home)).run_test(size=(120, 40)) as pilot:
        chat = ChatDriver(pilot)
        await until(lambda: "Not sent yet, in “tell me”: ^g opens it" in chat.status)
        assert "not sent" in str(chat.chat_screen.query_one("ChatSidebar OptionList").options[1].prompt)
        await chat.start()
        await pilot.press("ctrl+g")
        await until(lambda: "1 chat" in str(chat.app.screen.query_one(".dialog").border_subtitle))
        await pilot.press("enter")
        await until(lambda: chat.composer.text == "first\nnext\ntyped")
        await pilot.press("enter")
        await until(lambda: chat.service.requests)
        assert chat.service.requests[-1].messages[-1].content.endswith("first\nnext\ntyped")
        rows = await asyncio.wrap_future(chat.app._store.list_chats())
        assert not rows[0].draft
        chat.app.close(5)


async def test_a_message_for_a_model_that_never_came(make_app: MakeApp, home: Path) -> None:
    async with make_app(**saved(home)).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await until(lambda: chat.app.service is not None)
        await pilot.press(*"hello", "enter", "ctrl+n", *"typed")
        await chat.settle()
        chat.app.close(5)
    async with make_app(**saved(home)).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await until(lambda: chat.composer.text == "hello\ntyped")
        await chat.start()
        await chat.pilot.press("enter")
        await until(lambda: chat.service.requests)
        assert await asyncio.wrap_future(chat.app._store.load_draft("")) == ""
        chat.app.close(5)


async def test_waiting_messages_are_sent_once(make_app: MakeApp, home: Path) -> None:
    """What was asked is no draft any more, also if the chat is opened again."""
    async with make_app(**saved(home)).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("one")
        await pilot.press(*"two", "enter")
        await chat.settle()
        asked = chat.app.session.chat
        assert (await asyncio.wrap_future(chat.app._store.load_chat(asked.id))).draft == "two"
        chat.app.open_chat(asked.id)
        await chat.answer("1")
        await until(lambda: len(chat.service.requests) == 2)
        assert (await asyncio.wrap_future(chat.app._store.load_chat(asked.id))).draft == ""
        assert chat.composer.text == ""
        chat.app.close(5)
