"""How every screen looks: both sizes, dark, light, without colour. Update with --snapshot-update, then look at them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.command import CommandPalette
from textual.widgets import OptionList

from exl2_tui.screens.dialogs import LineDialog
from exl2_tui.screens.key_capture import KeyCapture
from exl2_tui.screens.too_small import TooSmall
from exl2_tui.settings import ChatSettings, Settings
from tests.tui.conftest import MakeApp
from tests.tui.demo import ANSWERS
from tests.tui.driver import ChatDriver, gathered, rested, until
from tests.tui.looks import compare, every_size, one_python

pytestmark = one_python

Scene = Callable[[ChatDriver], Awaitable[None]]


async def welcome(chat: ChatDriver) -> None:
    await chat.start()


async def loading(chat: ChatDriver) -> None:
    await until(lambda: chat.app.service is not None)
    chat.service.progress(10_000_000)
    await chat.settle()
    await chat.pilot.press(*"hello", "enter")


async def failed(chat: ChatDriver) -> None:
    await until(lambda: chat.app.service is not None)
    chat.service.fail_load("config.json: hidden_size is missing", "Is this a model directory?")
    await chat.settle()


async def answer(chat: ChatDriver) -> None:
    await chat.start()
    await chat.ask("explain quicksort in three bullets, then show the python")
    await chat.answer(ANSWERS[0])
    await chat.ask("compare it")
    await chat.answer(ANSWERS[1])
    await chat.pilot.press("alt+up")


async def writing(chat: ChatDriver) -> None:
    await chat.start()
    await chat.ask("a question")
    chat.service.ready(dropped=2)
    chat.service.say(ANSWERS[0][:420])
    await chat.settle()
    await chat.pilot.press(*"next", "enter")


async def error(chat: ChatDriver) -> None:
    await chat.start()
    await chat.ask("a question")
    chat.service.ready()
    chat.service.say("The answer beg")
    chat.service.fail("The chat template of this model failed", "Pick another mode")
    await until(lambda: chat.app.session.writing is None)


async def mode_picker(chat: ChatDriver) -> None:
    await chat.start()
    await chat.ask("hello")
    await chat.answer("Hi, how are you?")
    await chat.pilot.press("ctrl+t")
    await until(lambda: chat.service.previews)


async def help_page(chat: ChatDriver) -> None:
    await chat.start()
    await chat.pilot.press("f1")


async def system_prompt(chat: ChatDriver) -> None:
    await chat.start()
    await chat.pilot.press("f8")


async def models(chat: ChatDriver) -> None:
    await chat.start()
    await chat.pilot.press("f3")
    await until(lambda: chat.app.models.state.listed is not None)
    await chat.settle()
    await chat.pilot.press("down")


async def settings_form(chat: ChatDriver) -> None:
    await chat.start()
    await chat.pilot.press("f5")


async def sampler(chat: ChatDriver) -> None:
    await chat.start()
    await chat.ask("hello")
    await chat.answer("Hi, how are you?")
    await chat.pilot.press("ctrl+s")
    await until(lambda: chat.service.sampler_previews)


async def sampler_first(chat: ChatDriver) -> None:
    """Nothing has been asked yet, so there is nothing to choose from."""
    await chat.start()
    await chat.pilot.press("ctrl+s")
    await until(lambda: chat.service.sampler_previews)


async def sampler_wrong(chat: ChatDriver) -> None:
    """A value that cannot be used, beside one that differs from its default."""
    await sampler(chat)
    await chat.pilot.press("backspace", "9", "down", "down", "home", *"1", "end", *"x")


async def first_run(chat: ChatDriver) -> None:
    await chat.start()
    chat.app.welcome()


async def find(chat: ChatDriver) -> None:
    await chat.start()
    await chat.ask("explain quicksort in three bullets, then show the python")
    await chat.answer(ANSWERS[0])
    await chat.pilot.press("ctrl+f", *"pivot")


async def stopped(chat: ChatDriver) -> None:
    await chat.start()
    await chat.ask("tell me a long story")
    await chat.answer("Once upon a time there", reason="cancelled")


async def keys(chat: ChatDriver) -> None:
    await chat.start()
    await chat.pilot.press("f5")
    await until(lambda: chat.app.screen.id == "settings")
    await chat.settle()
    await chat.pilot.press("end")
    await chat.settle()
    await chat.pilot.press("enter")


async def chats(chat: ChatDriver) -> None:
    await chat.start()
    for question in (
        "about apples",
        "and [pears]",
        "a question that goes on and on until it has to be cut off somewhere",
    ):
        await chat.ask(question)
        await chat.answer("Red or green, mostly.")
        await chat.pilot.press("ctrl+n")
    await chat.pilot.press("ctrl+g")
    await until(lambda: "3 chats" in str(chat.app.screen.query_one(".dialog").border_subtitle))


async def rename(chat: ChatDriver) -> None:
    await chats(chat)
    await chat.pilot.press("f2")
    await until(lambda: isinstance(chat.app.screen, LineDialog))


async def key_capture(chat: ChatDriver) -> None:
    """A key is pressed that is taken."""
    await keys(chat)
    await chat.pilot.press("down", "enter")
    await until(lambda: isinstance(chat.app.screen, KeyCapture))
    await chat.pilot.press("ctrl+t")


async def settings_search(chat: ChatDriver) -> None:
    await settings_form(chat)
    await chat.pilot.press("ctrl+f", *"tok")


async def settings_wrong(chat: ChatDriver) -> None:
    """A value that cannot be used."""
    await settings_search(chat)
    await chat.pilot.press("enter", "home", *"many")


async def reasoning(chat: ChatDriver) -> None:
    """One answer with its thoughts folded, one with them open, and a marked turn with two versions."""
    await chat.start()
    await chat.ask("which is larger, 9.9 or 9.11?")
    await chat.answer("<think>Compare the tenths: 9 and 1.</think>\n\n**9.9** is larger.")
    await chat.pilot.press("ctrl+r")
    await until(lambda: len(chat.service.requests) > 1)
    await chat.answer("<think>9.90 and 9.11.\nSo the first.</think>\n\n**9.9**, because 0.90 > 0.11.")
    await chat.pilot.press("alt+up", "o")


async def palette(chat: ChatDriver) -> None:
    await chat.start()
    await chat.pilot.press("ctrl+p")
    await until(lambda: isinstance(chat.app.screen, CommandPalette))
    await until(lambda: chat.app.screen.query_one(OptionList).option_count > 0)


async def palette_search(chat: ChatDriver) -> None:
    await palette(chat)
    await chat.pilot.press(*"theme")
    options = chat.app.screen.query_one(OptionList)
    await until(lambda: 0 < options.option_count < 8)
    await gathered(chat.app)


async def problem(chat: ChatDriver) -> None:
    """Something that needs no answer went wrong."""
    await chat.start()
    await chat.ask("hello")
    await chat.answer("Hi, how are you?")
    chat.app.report("The chats cannot be saved: database or disk is full. What you write now is kept until you quit.")


SCENES = [
    *(welcome, chats, loading, failed, writing, answer, error, stopped, find),
    *(palette, palette_search, problem),
    *(reasoning, rename, mode_picker, sampler, sampler_first, sampler_wrong, system_prompt, help_page, models),
    *(settings_form, settings_search, settings_wrong, keys, key_capture, first_run),
]


@every_size
@pytest.mark.parametrize("scene", SCENES, ids=[scene.__name__ for scene in SCENES])
async def test_look(
    scene: Scene,
    size: tuple[int, int],
    make_app: MakeApp,
    snapshot: SnapshotAssertion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("exl2_tui.screens.settings.config_dir", lambda: Path("~/.config/exl2-tui"))
    app = make_app(Settings(chat=ChatSettings(system="You are a concise assistant.")))
    async with app.run_test(size=size, notifications=True) as pilot:
        chat = ChatDriver(pilot)
        await scene(chat)
        await chat.settle()
        await rested(chat.app)
        await chat.settle()
        await compare(pilot, snapshot)


async def test_too_small_for_anything_else(make_app: MakeApp, snapshot: SnapshotAssertion) -> None:
    async with make_app().run_test(size=(52, 14)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await until(lambda: isinstance(chat.app.screen, TooSmall))
        await compare(pilot, snapshot)
