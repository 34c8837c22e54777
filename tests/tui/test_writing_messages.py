"""Writing a message: the composer, an editor, the prompt mode, the system prompt."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from textual import events
from textual.widgets import Input, OptionList, TextArea

from exl2_tui.screens.dialogs import TextDialog
from exl2_tui.screens.mode_picker import ModePicker
from exl2_tui.settings import ChatSettings, Settings, load_settings
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until

SIZE = (80, 24)


async def test_text_in_one_go_with_a_key_that_takes_it_is_taken_whole(make_app: MakeApp) -> None:
    """As a terminal delivers a macro, or a fast typist on a slow line: the key must not overtake the text."""
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("f8")
        await until(lambda: isinstance(chat.app.screen, TextDialog))
        await chat.settle()
        for key in (*"Be brief", "ctrl+s", *"hello", "ctrl+n"):
            chat.app.post_message(events.Key("space" if key == " " else key, key if len(key) == 1 else None))
        await until(lambda: chat.app.screen is chat.chat_screen and chat.composer.text == "hello")
        assert chat.app.session.chat.system == "Be brief"


async def test_mode_picker_shows_the_exact_prompt_and_sets_the_mode(make_app: MakeApp, home: Path) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        chat.composer.set_message("hi [b]x[/b]")
        await pilot.press("ctrl+t")
        await until(lambda: chat.service.previews)
        await chat.settle()
        picker = chat.app.screen
        assert isinstance(picker, ModePicker)
        assert picker.query_one(OptionList).option_count == 5
        shown = str(picker.query_one("#preview Static").render())
        assert shown == "<s><|im_start|>user⏎\nhi [b]x[/b]<|im_end|>"
        assert "18 tokens · stops on <|im_end|>" in str(picker.query_one("#preview-head").render())
        await pilot.press(*"log")
        await until(lambda: chat.service.previews[-1][1] == "raw")
        await pilot.press("enter")
        await chat.settle()
        assert "· raw" in chat.header
        await until(lambda: load_settings(home)[0].chat.mode == "raw")
        await pilot.press("enter")
        await until(lambda: chat.service.requests)
        assert chat.service.requests[-1].mode == "raw"


async def test_mode_picker_escape_keeps_the_mode_and_shows_errors(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("ctrl+t")
        await until(lambda: chat.service.previews)
        await chat.settle()
        await pilot.press("down", "down", "escape")
        await chat.settle()
        assert chat.app.session.chat.mode == "auto"
        assert chat.composer.has_focus


async def test_typing_in_the_picker_filters(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("ctrl+t")
        await chat.settle()
        await pilot.press(*"nothing")
        await chat.settle()
        assert chat.app.screen.query_one(OptionList).option_count == 0
        await pilot.press("enter")
        assert isinstance(chat.app.screen, ModePicker)
        assert chat.app.screen.query_one(Input).value == "nothing"


async def test_system_prompt(make_app: MakeApp) -> None:
    async with make_app(Settings(chat=ChatSettings(system="Be kind."))).run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("f8")
        await until(lambda: isinstance(chat.app.screen, TextDialog))
        await pilot.pause()
        assert chat.app.screen.query_one(TextArea).text == "Be kind."
        await pilot.press("enter", *"Rhyme", "ctrl+s")
        await chat.settle()
        await chat.ask("hi")
        assert [m.content for m in chat.service.requests[-1].messages] == ["Be kind.\nRhyme", "hi"]


async def test_composer_lines_history_and_pastes(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("a", "ctrl+j", "b", "enter")
        await until(lambda: chat.service.requests)
        assert chat.service.requests[-1].messages[-1].content == "a\nb"
        await chat.answer("ok")
        await chat.ask("second")
        await chat.answer("ok")
        await pilot.press("up")
        assert chat.composer.text == "second"
        await pilot.press("up", "up", "up")
        assert chat.composer.text == "a\nb"
        await pilot.press("down")
        assert chat.composer.text == "second"
        await pilot.press("down")
        assert chat.composer.text == ""
        chat.composer.insert_pasted("x\r\ny\x1b[31m\n")
        assert chat.composer.text == "x\ny[31m\n" and len(chat.service.requests) == 2
        chat.composer.clear()
        big = "line\n" * 200_000
        chat.composer.insert_pasted(big)
        assert chat.composer.text == "[paste 1: 1,000,000 characters]"
        await pilot.press("!", "enter")
        await until(lambda: len(chat.service.requests) == 3)
        assert chat.service.requests[-1].messages[-1].content == big + "!"
        await chat.settle()
        assert "more characters" in chat.everything


async def test_ctrl_c_copies_else_stops_else_explains(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await pilot.press("ctrl+c")
        assert "^q quits" in chat.status
        await pilot.press(*"word", "shift+left", "shift+left", "ctrl+c")
        await until(lambda: "Copied the selection" in chat.status)
        assert chat.app.clipboard == "rd" and chat.composer.text == "word"
        await pilot.press("enter")
        await until(lambda: service.requests)
        await pilot.press("ctrl+c")
        assert service.cancelled == [service.request_id]


async def test_enter_can_add_lines_instead(make_app: MakeApp) -> None:
    settings = Settings(chat=replace(ChatSettings(), enter_sends=False))
    async with make_app(settings).run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("a", "enter", "b", "ctrl+j")
        await until(lambda: chat.service.requests)
        assert chat.service.requests[-1].messages[-1].content == "a\nb"


async def test_message_written_in_an_editor(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "editor.sh"
    script.write_text('#!/bin/sh\nprintf "%s, edited\\n\\033[2Jend\\n" "$(cat "$1")" > "$1"\n')
    script.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(script))
    app = make_app()
    monkeypatch.setattr(app, "suspend", contextlib.nullcontext)
    async with app.run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press(*"draft", "f10")
        await pilot.pause()
        assert chat.composer.text == "draft, edited\n[2Jend"
        monkeypatch.setenv("EDITOR", "false")
        await pilot.press("f10")
        await pilot.pause()
        assert "ended with code 1" in chat.status and chat.composer.text == "draft, edited\n[2Jend"
        monkeypatch.setenv("EDITOR", "/does/not/exist --wait")
        await pilot.press("f10")
        await pilot.pause()
        assert "could not be started" in chat.status
