"""Going on with an answer that was cut off, and taking a waiting message back to change it."""

from __future__ import annotations

from exl2_tui.core.requests import Message
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until


async def test_a_stopped_answer_goes_on_in_place(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await pilot.press("ctrl+l")
        assert "Only an answer that was cut off" in chat.status
        await chat.ask("tell me")
        service.ready()
        service.say("Once **upo", 2)
        await chat.settle()
        await pilot.press("escape")
        service.finish("cancelled", 2)
        await until(lambda: chat.app.session.writing is None)
        await chat.settle()
        assert "stopped by you" in chat.everything and "^l continue" in chat.everything
        await pilot.press("ctrl+l")
        await until(lambda: len(service.requests) == 2)
        assert service.requests[1].messages == (
            Message("user", "tell me"),
            Message("assistant", "Once **upo", (0, 1)),
        )
        service.ready()
        service.say("n** a time.", 3)
        await chat.settle()
        assert "Once upon a time." in chat.everything and "writing" in chat.everything
        service.finish(tokens=3)
        await until(lambda: chat.app.session.writing is None)
        await chat.settle()
        turn = chat.app.session.chat.path()[-1]
        assert (turn.text, turn.state, turn.token_ids) == ("Once **upon** a time.", "done", (0, 1, 0, 1, 2))
        assert turn.stats is not None and turn.stats.generated_tokens == 5 and "5 tokens" in chat.everything
        assert len(chat.turns) == 2 and "^l continue" not in chat.everything and "of 2 ›" not in chat.everything
        await chat.ask("more")
        assert [message.role for message in service.requests[-1].messages] == ["user", "assistant", "user"]


async def test_an_answer_that_reached_its_limit_goes_on_by_the_turn_cursor(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("a")
        await chat.answer("long", reason="length")
        await chat.ask("b")
        await chat.answer("short")
        await pilot.press("alt+up", "g")
        await chat.settle()
        assert "Only an answer that was cut off" in chat.status and len(chat.service.requests) == 2
        await pilot.press("alt+up", "alt+up", "alt+up", "g")
        await until(lambda: len(chat.service.requests) == 3)
        assert [m.content for m in chat.service.requests[-1].messages] == ["a", "long"]
        chat.service.fail("The model failed", "Try again")
        await until(lambda: chat.app.session.writing is None)
        first = chat.app.session.chat.path()[1]
        assert (first.text, first.state, first.note) == ("long", "error", "The model failed")


async def test_up_takes_a_waiting_message_back_and_the_answer_goes_on(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("one")
        await pilot.press(*"two", "enter", *"three", "enter", "up")
        await chat.settle()
        assert chat.composer.text == "three" and "two" in chat.queue and not service.cancelled
        await pilot.press("!", "enter")
        await chat.answer("first")
        await until(lambda: len(service.requests) == 2)
        await chat.answer("second")
        await until(lambda: len(service.requests) == 3)
        assert service.requests[2].messages[-1].content == "three!"
        await chat.settle()
        assert chat.queue == ""
        await pilot.press("up")
        await chat.settle()
        assert chat.composer.text == "three!"  # nothing waits: up walks through the history
