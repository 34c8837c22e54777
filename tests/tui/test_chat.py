"""The chat screen as a person uses it, with a service that only pretends."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList, TextArea

from exl2_tui.screens.dialogs import HelpScreen, TextDialog
from exl2_tui.screens.mode_picker import ModePicker
from exl2_tui.settings import ChatSettings, Settings, load_settings
from exl2_tui.state import Changes
from exl2_tui.widgets.chat_sidebar import ChatSidebar
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until
from tests.tui.fakes import FakeClock, FakeService

SIZE = (80, 24)


async def test_question_and_streamed_answer(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        assert "nano-chat EXL2 4.00 bpw" in chat.header
        await chat.ask("what is *this* [b]?")
        request = service.requests[-1]
        assert [message.content for message in request.messages] == ["what is *this* [b]?"]
        service.ready()
        service.say("It is **bo")
        await chat.settle()
        assert "It is **bo" in chat.everything
        service.say("ld** text.\n\n```python\nprint(1)\n")
        await chat.settle()
        assert "It is bold text." in chat.everything and "print(1)" in chat.everything
        assert "writing" in chat.everything and "esc" in str(chat.chat_screen.active_bindings.keys())
        service.say("```\n")
        service.finish()
        await until(lambda: chat.app.session.writing is None)
        await chat.settle()
        assert "58.6 tok/s · 42 tokens" in chat.everything
        assert "62 / 2,048" in chat.status and "58.6 tok/s" in chat.status
        assert "what is *this* [b]?" in chat.text(chat.turns[0])


async def test_the_first_frame_comes_before_the_service(make_app: MakeApp) -> None:
    app = make_app()
    made: list[bool] = []

    def factory(post: object) -> FakeService:
        made.append(app.screen.is_mounted and app._compositor_ready)
        return FakeService(post)  # type: ignore[arg-type]

    app._compositor_ready = False  # type: ignore[attr-defined]
    app._service_factory = factory
    original = app._display

    def display(*args: object) -> None:
        app._compositor_ready = True  # type: ignore[attr-defined]
        original(*args)  # type: ignore[arg-type]

    app._display = display  # type: ignore[method-assign,assignment]
    async with app.run_test(size=SIZE):
        await until(lambda: made)
    assert made == [True]


async def test_loading_shows_progress_and_can_be_cancelled(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await until(lambda: chat.app.service is not None)
        chat.service.progress(12_000_000)
        await chat.settle()
        assert "loading" in chat.status and "50%" in chat.status and "12.0 MB of 24.0 MB" in chat.status
        await pilot.press("escape")
        assert chat.service.cancelled == [chat.service.load_id]
        chat.service.fail_load("Loading was cancelled")
        await chat.settle()
        assert "could not be loaded" in chat.everything and "Loading was cancelled" in chat.everything


async def test_a_message_written_while_loading_waits_and_is_sent(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await until(lambda: chat.app.service is not None)
        await pilot.press(*"hi", "enter")
        await pilot.pause()
        assert "hi" in chat.queue and "when the model is ready" in chat.queue
        assert not chat.service.requests
        chat.service.loaded()
        await until(lambda: chat.service.requests)
        await chat.settle()
        assert chat.queue == ""
        assert chat.service.requests[0].messages[-1].content == "hi"


async def test_escape_stops_and_the_text_stays(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("tell me")
        service.ready()
        service.say("Once upon")
        await chat.settle()
        await pilot.press("escape")
        await chat.settle()
        assert service.cancelled == [service.request_id]
        assert "stopping" in chat.everything
        service.say(" a time")
        service.finish("cancelled", 4)
        await until(lambda: chat.app.session.writing is None)
        await chat.settle()
        assert "Once upon a time" in chat.everything and "stopped by you" in chat.everything
        service.say("never shown")
        await chat.settle()
        assert "never shown" not in chat.everything
        await chat.ask("go on")
        assert [message.content for message in service.requests[-1].messages] == [
            "tell me",
            "Once upon a time",
            "go on",
        ]


async def test_escape_while_the_prompt_is_read(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("tell me")
        await pilot.press("escape", "escape")
        assert service.cancelled == [service.request_id]
        service.finish("cancelled", 0)
        await until(lambda: chat.app.session.writing is None)
        await chat.ask("again")
        assert [message.content for message in service.requests[-1].messages] == ["tell me\n\nagain"]


async def test_a_second_enter_waits_and_is_asked_next(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("one")
        await pilot.press(*"two", "enter", *"three", "enter")
        await pilot.pause()
        assert "two and 1 more" in chat.queue and len(service.requests) == 1
        await chat.answer("first")
        await until(lambda: len(service.requests) == 2)
        assert service.requests[1].messages[-1].content == "two"
        await chat.settle()
        assert "three" in chat.queue and "more" not in chat.queue


async def test_escape_gives_waiting_messages_back(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("one")
        await pilot.press(*"two", "enter", *"draft", "escape")
        await pilot.pause()
        assert chat.composer.text == "two\ndraft" and chat.queue == ""
        service.finish("cancelled", 0)
        await until(lambda: chat.app.session.writing is None)
        assert len(service.requests) == 1


async def test_retry_keeps_the_old_answer_as_a_version(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("why?")
        await chat.answer("Because.")
        await pilot.press("ctrl+r")
        await until(lambda: len(chat.service.requests) == 2)
        assert chat.service.requests[0].messages == chat.service.requests[1].messages
        await chat.answer("Therefore.")
        assert "Therefore." in chat.everything and "Because." not in chat.everything
        assert "‹ 2 of 2 ›" in chat.everything
        await pilot.press("alt+up", "left")
        await chat.settle()
        assert "Because." in chat.everything and "‹ 1 of 2 ›" in chat.everything
        await chat.ask("and?")
        assert [message.content for message in chat.service.requests[-1].messages] == ["why?", "Because.", "and?"]


async def test_edit_makes_a_new_version_of_the_question(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("why?")
        await chat.answer("Because.")
        await pilot.press("alt+up", "alt+up", "e")
        await until(lambda: isinstance(chat.app.screen, TextDialog))
        await pilot.pause()
        area = chat.app.screen.query_one(TextArea)
        assert area.text == "why?"
        area.text = "how?"
        await pilot.press("ctrl+s")
        await until(lambda: len(chat.service.requests) == 2)
        assert [message.content for message in chat.service.requests[1].messages] == ["how?"]
        await chat.answer("So.")
        assert "how?" in chat.everything and "why?" not in chat.everything and "‹ 2 of 2 ›" in chat.everything


async def test_an_error_keeps_text_and_question(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("question")
        service.ready()
        service.say("Half an ans")
        service.fail("The template [failed]", "Pick another mode")
        await until(lambda: chat.app.session.writing is None)
        await chat.settle()
        shown = chat.everything
        assert "Half an ans" in shown and "✗ The template [failed]" in shown and "Pick another mode" in shown
        assert shown.index("Half an ans") < shown.index("The template")
        await pilot.press("ctrl+r")
        await until(lambda: len(service.requests) == 2)
        assert service.requests[1].messages[-1].content == "question"


async def test_dropped_turns_are_told(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("long")
        chat.service.ready(dropped=3)
        await chat.settle()
        assert "The 3 oldest messages were left out" in chat.everything


async def test_new_chat_leaves_the_answer_running_in_the_old_one(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("first chat")
        old = chat.app.session.chat
        service.ready()
        await pilot.press("ctrl+n")
        await chat.settle()
        assert "first chat" not in chat.everything
        service.say("late text")
        service.finish()
        await until(lambda: chat.app.session.writing is None)
        await chat.settle()
        assert "late text" not in chat.everything
        assert old.path()[-1].text == "late text" and old.path()[-1].state == "done"
        await chat.ask("second chat")
        assert [message.content for message in service.requests[-1].messages] == ["second chat"]


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


async def test_copy_a_turn_and_its_code_blocks(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("code")
        text = "A:\n\n```python\na = 1\n```\n\nB:\n\n```\nb\n  c\n```"
        await chat.answer(text)
        await pilot.press("alt+up", "y")
        await until(lambda: chat.app.clipboard == text)
        await pilot.press("c")
        await until(lambda: chat.app.clipboard == "a = 1")
        await pilot.press("c")
        await until(lambda: chat.app.clipboard == "b\n  c")
        await pilot.press("x")
        assert chat.composer.text == "x" and chat.transcript.marked is None


async def test_escape_is_called_what_it_does(make_app: MakeApp) -> None:
    """In the footer: nothing to begin with, "Done" on a marked turn, "Stop" while an answer is written."""
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()

        def escape() -> str:
            bound = chat.chat_screen.active_bindings.get("escape")
            return bound.binding.description if bound is not None else ""

        await chat.ask("one")
        assert escape() == "Stop"
        await chat.answer("1")
        assert escape() == ""
        await pilot.press("alt+up")
        assert escape() == "Done" and chat.transcript.marked is not None
        await pilot.press("escape")
        assert escape() == "" and chat.transcript.marked is None


async def test_help_lists_keys_and_closes(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("f1")
        await until(lambda: isinstance(chat.app.screen, HelpScreen))
        await pilot.press("escape")
        assert chat.app.screen is chat.chat_screen


async def test_quit_during_generation(make_app: MakeApp) -> None:
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("long")
        await pilot.press("ctrl+q")
        await pilot.pause()
        assert chat.service.cancelled == [None]
    assert app.return_code == 0


@pytest.mark.parametrize("ending", ["finish", "fail", "retry", "code", "find"])
async def test_what_is_drawn_after_quitting_does_no_harm(make_app: MakeApp, ending: str) -> None:
    """Between `exit` and the last message, events of the stopped answer are still taken in and drawn."""
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("first")
        await chat.answer("done")
        await chat.ask("long")
        chat.service.ready()
        chat.service.say("words ```py\nx = 1\n")
        await chat.settle()
        app._leave()
        if ending == "code":
            chat.service.say("".join(f"x = {number}\n" for number in range(500)))
        elif ending == "fail":
            chat.service.fail("out of memory", "use less")
        elif ending == "find":
            await chat.chat_screen.action_find()
        else:
            chat.service.finish("cancelled")
        app._drain_bridge()
        if ending == "retry":
            chat.chat_screen.action_retry()
            app.repaint(Changes(turns=True, live=True))
            app.session.new_chat()
            app.repaint(Changes(turns=True, live=True))
    assert app.return_code == 0
    assert app._exception is None


async def test_text_that_comes_before_a_turn_is_mounted_is_drawn_once(make_app: MakeApp) -> None:
    """A view that is made in the middle of an answer gets more of it, or its end, before it has its parts."""
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        for ending in (True, False):
            await chat.ask("long")
            chat.service.ready()
            chat.service.say("one ")
            await chat.settle()
            turn = chat.app.session.chat.last("assistant")
            assert turn is not None
            chat.transcript._views.pop(turn.id).remove()
            chat.app.repaint(Changes(turns=True))
            chat.service.say("two ")
            if ending:
                chat.service.finish("stop_token")
            chat.app._drain_bridge()
            await until(lambda: "two" in chat.text(chat.turns[-1]))
            await pilot.pause()
            shown = chat.text(chat.turns[-1])
            assert shown.count("one") == 1 and shown.count("two") == 1
            assert chat.turns[-1].finished is ending


async def test_theme_key_and_remembered_theme(make_app: MakeApp, home: Path) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("f12")
        assert chat.app.theme == "exl2-light"
        await until(lambda: load_settings(home)[0].appearance.theme == "light")


@pytest.mark.parametrize("theme", ["exl2-dark", "exl2-light", "exl2-terminal"])
async def test_every_screen_opens_in_every_theme(make_app: MakeApp, theme: str) -> None:
    async with make_app(theme=theme).run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("q")
        await chat.answer("**b** `c`\n\n```py\nx = 1  # y\n```\n\n|a|\n|-|\n|b|")
        for key in ("f1", "ctrl+t", "f8", "ctrl+s", "f5", "ctrl+g", "ctrl+p", "f3"):
            await pilot.press(key)
            await pilot.pause()
            assert chat.app.screen is not chat.chat_screen
            assert chat.app.export_screenshot()
            await pilot.press("escape")
            await until(lambda: chat.app.screen is chat.chat_screen)


async def test_remapped_keys(make_app: MakeApp) -> None:
    settings = Settings(keys={"chat.new": "f9", "nonsense": "x", "chat.retry": "ctrl+m"})
    app = make_app(settings)
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("x")
        await pilot.press("f9")
        assert not chat.app.session.chat.turns
        said = " ".join(note.message for note in app._notifications)
        assert "nonsense is no key binding" in said and "^m does not work" in said


async def test_reading_above_is_not_disturbed(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("poem")
        service.ready()
        service.say("line\n\n" * 60)
        await chat.settle()
        transcript = chat.transcript
        await until(lambda: transcript.max_scroll_y > 20 and transcript.following)
        await pilot.press("pageup", "pageup")
        await chat.settle()
        place = transcript.scroll_y
        assert place < transcript.max_scroll_y - 10
        service.say("new\n" * 7)
        await chat.settle()
        assert transcript.scroll_y == place
        pill = chat.chat_screen.query_one("#pill")
        assert pill.display and "7 new lines" in pill.plain  # type: ignore[attr-defined]
        assert "new" not in chat.text(chat.turns[-1]).replace("new lines", "")
        await pilot.press("ctrl+end")
        await chat.settle()
        await until(lambda: transcript.following)
        await chat.settle()
        assert "new\nnew" in chat.text(chat.turns[-1]) and not pill.display


async def test_resize_while_writing(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(120, 40)) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("resize")
        service.ready()
        for width in (60, 120, 80):
            service.say(f"A sentence that is long enough to be wrapped at {width} columns, one way or the other. ")
            await chat.settle()
            await pilot.resize_terminal(width, 24)
            await chat.settle()
        service.finish()
        await until(lambda: chat.app.session.writing is None)
        assert chat.text(chat.turns[-1]).count("A sentence") == 3
        assert max(view.region.right for view in chat.turns) <= 80


async def test_long_code_answer_stays_small(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("ten thousand lines")
        code = "\n".join(f"x{number} = {number}" for number in range(10_000))
        await chat.answer(f"```python\n{code}\n```")
        blocks = chat.turns[-1].live.blocks
        assert [block.text for block in blocks] == [code]
        assert len(list(chat.chat_screen.walk_children())) <= 600
        assert "x9999 = 9999" in chat.everything


async def test_hostile_text_and_names_stay_text(make_app: MakeApp) -> None:
    clock = FakeClock()
    async with make_app(clock=clock).run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await until(lambda: chat.app.service is not None)
        chat.service.loaded(name="evil\x1b[2J[bold]\u202emodel")
        await until(lambda: chat.app.session.ready)
        await chat.ask("[bold red]x[/] \x1b]52;c;aGk=\x07")
        await chat.answer(
            "\x1b[31m[INST] hi [/INST] &#27;[0m `\u202ecode` [x](javascript:&#27;)\n\n```\x1bpy\n\x9b31m\n```"
        )
        shown = chat.header + chat.everything + chat.status
        assert not [c for c in shown if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 or c == "\u202e"]
        assert "[INST] hi [/INST]" in shown and "[bold red]x[/]" in shown and "[bold]model" in shown


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (200, 60)])
async def test_every_size_draws(make_app: MakeApp, size: tuple[int, int]) -> None:
    async with make_app().run_test(size=size) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("q")
        await chat.answer(
            "| a | b |\n|---|---|\n| some longer text in a cell | more of it here |\n\n- item\n\n```py\nx=1\n```"
        )
        assert chat.composer.region.bottom <= size[1]
        assert chat.transcript.size.height >= 2


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


async def test_sidebar_lists_recent_chats_and_opens_one(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(120, 40)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        sidebar = chat.chat_screen.query_one(ChatSidebar)
        assert not sidebar.display
        await chat.ask("first [chat]")
        await chat.answer("one")
        await pilot.press("ctrl+n")
        await chat.ask("second")
        await chat.answer("two")
        options = sidebar.query_one(OptionList)
        await until(lambda: sidebar.display and options.option_count == 3)
        shown = [str(options.get_option_at_index(number).prompt) for number in range(3)]
        assert shown[0].strip() == "Today" and "▌ second" in shown and "  first [chat]" in shown
        await pilot.click(options, offset=(5, shown.index("  first [chat]")))
        await until(lambda: chat.app.session.chat.title == "first [chat]")
        await chat.settle()
        assert "one" in chat.everything and chat.composer.has_focus
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert not sidebar.display
