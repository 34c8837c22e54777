"""The chat screen as a person uses it, with a service that only pretends."""

from __future__ import annotations

from textual.widgets import TextArea

from exl2_tui.screens.dialogs import TextDialog
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until

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


async def test_a_message_for_which_there_is_no_model_says_where_models_are(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await until(lambda: chat.app.service is not None)
        chat.service.fail_load("config.json: hidden_size is missing", "Is this a model directory?")
        await chat.settle()
        await pilot.press(*"hi", "enter")
        await pilot.pause()
        assert "when a model is loaded: f3" in chat.queue


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
        await chat.answer("Therefore.", tokens=100)
        assert "120 / 2,048" in chat.status
        assert "Therefore." in chat.everything and "Because." not in chat.everything
        assert "‹ 2 of 2 ›" in chat.everything
        await pilot.press("alt+up", "left")
        await chat.settle()
        assert "Because." in chat.everything and "‹ 1 of 2 ›" in chat.everything
        await pilot.press("escape")
        assert "62 / 2,048" in chat.status
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
