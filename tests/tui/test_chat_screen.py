"""What the chat screen draws: when, at which sizes, in which themes, with which keys; and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import OptionList, Static

from exl2_tui.screens.dialogs import HelpScreen
from exl2_tui.settings import Settings, load_settings
from exl2_tui.state import Changes
from exl2_tui.widgets.chat_sidebar import ChatSidebar
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until
from tests.tui.fakes import FakeClock, FakeService

SIZE = (80, 24)


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


async def test_the_meters_are_there_at_every_width_and_the_sampler_gives_way(make_app: MakeApp) -> None:
    for width, right in ((64, "temp 0.8"), (80, "temp 0.8  top-p 0.8"), (120, "temp 0.8  top-p 0.8  top-k 50")):
        async with make_app().run_test(size=(width, 24)) as pilot:
            chat = ChatDriver(pilot)
            await chat.start()
            await chat.ask("why?")
            await chat.answer("Because.")
            assert "62 / 2,048   58.6 tok/s   mem 13.3 MB" in chat.status
            assert chat.status.endswith(f" {right} ") and len(chat.status) <= width


async def test_why_an_answer_ended_is_read_at_every_width(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(60, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("tell me")
        await chat.answer("A long story", reason="context")
        assert "context is full · 58.6" in chat.everything and "^l continue  ^r retry" in chat.everything


async def test_questions_of_a_chat_are_recalled_when_it_is_opened_again(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        for text in ("one", "two"):
            await chat.ask(text)
            await chat.answer("yes")
        old = chat.app.session.chat.id
        await pilot.press("ctrl+n")
        await chat.ask("three")
        await chat.answer("yes")
        chat.composer._history.clear()  # as after a new start
        chat.app.open_chat(old)
        await until(lambda: chat.app.session.chat.id == old)
        await chat.settle()
        await pilot.press("up")
        assert chat.composer.text == "two"
        await pilot.press("up")
        assert chat.composer.text == "one"


async def test_a_marked_turn_offers_what_it_has(make_app: MakeApp) -> None:
    async with make_app().run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("why?")
        await chat.answer("Because.")
        await pilot.press("alt+up")
        assert chat.status.strip() == "y copy · r retry · esc done"
        await pilot.press("alt+up")
        assert chat.status.strip() == "y copy · e edit · esc done"
        await pilot.press("escape", "ctrl+r")
        await until(lambda: len(chat.service.requests) == 2)
        await chat.answer("<think>Well.</think>\n```\ncode\n```", reason="length")
        await pilot.press("alt+up")
        await chat.settle()
        offered = "y copy · c code · o reasoning · r retry · g continue · ← → versions · esc done"
        assert chat.status.strip() == offered


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


async def test_a_warning_stands_on_the_screen_once(make_app: MakeApp) -> None:
    """A full disk says the same with every message."""
    async with make_app().run_test(size=SIZE, notifications=True) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        for text in ("disk is full", "disk is full", "something else"):
            chat.app.report(text)
        await until(lambda: len(chat.app._notifications) == 2)
        await pilot.pause()
        assert [toast.message for toast in chat.app._notifications] == ["disk is full", "something else"]


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


async def test_remapped_keys_of_a_marked_turn_and_in_what_is_said(make_app: MakeApp) -> None:
    keys = {"turn.copy": "w", "chat.mode": "f11", "turn.previous": "alt+p"}
    async with make_app(Settings(keys=keys)).run_test(size=SIZE) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        assert "f11    prompt mode" in chat.everything
        await chat.ask("x")
        await chat.answer("an answer")
        await pilot.press("alt+p")
        await chat.settle()
        assert "w copy · r retry" in chat.status
        await pilot.press("w")
        await until(lambda: chat.app.clipboard == "an answer")
        await pilot.press("f1")
        await until(lambda: isinstance(chat.app.screen, HelpScreen))
        assert "alt+p marks a turn" in str(chat.app.screen.query_one("VerticalScroll Static", Static).render())


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
