"""The Settings place: sections, search, wrong values, keys and their conflicts, resets; help for what has focus."""

from __future__ import annotations

from pathlib import Path

from textual.command import CommandPalette
from textual.widgets import Input, OptionList, Select, Static

from exl2_tui.core.events import LoadFinished
from exl2_tui.screens.dialogs import HelpScreen
from exl2_tui.screens.form import FieldRow
from exl2_tui.screens.key_capture import KeyCapture
from exl2_tui.screens.settings import SECTIONS, SettingsScreen
from exl2_tui.settings import AppearanceSettings, ChatSettings, ModelSettings, Settings, load_settings
from exl2_tui.widgets.bars import StatusRow
from exl2_tui.widgets.key_row import KeyRow
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until
from tests.tui.fakes import MODELS


async def open_settings(chat: ChatDriver) -> SettingsScreen:
    await chat.start()
    await chat.pilot.press("f5")
    await until(lambda: isinstance(chat.app.screen, SettingsScreen))
    await chat.settle()
    screen = chat.app.screen
    assert isinstance(screen, SettingsScreen)
    return screen


def row(screen: SettingsScreen, key: str) -> FieldRow:
    return next(row for row in screen.query(FieldRow) if row.field.key == key)


def shown(screen: SettingsScreen) -> list[str]:
    return [row.field.key for row in screen.query(FieldRow) if row.display]


def about(screen: SettingsScreen) -> str:
    return str(screen.query_one("#about", Static).render())


async def test_sections_search_and_the_way_back(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        screen = await open_settings(chat)
        assert shown(screen) == ["appearance.theme", "appearance.turns"]
        await pilot.press("down", "enter")
        await chat.settle()
        assert shown(screen)[0] == "chat.enter_sends" and isinstance(screen.focused, Select)
        await pilot.press("down")
        await chat.settle()
        assert "tokens after which an answer is ended · default 1024 · [chat.max_new_tokens]" in about(screen)
        await pilot.press("ctrl+f", *"top p")
        await chat.settle()
        assert "sampler.top_p" in shown(screen) and "chat.max_new_tokens" not in shown(screen)
        await pilot.press("escape")
        await chat.settle()
        assert shown(screen)[0] == "chat.enter_sends"
        await pilot.press("ctrl+f", *"zebra")
        await chat.settle()
        assert not shown(screen) and about(screen) == "No setting has these words."
        for label in ("Clear", "Sections", "Chat"):  # the key row says what escape does now
            assert screen.query_one(KeyRow).plain.split()[1] == label
            await pilot.press("escape")
            await chat.settle()
        await until(lambda: chat.app.screen is chat.chat_screen)
        assert len(SECTIONS) == 5


async def test_what_is_changed_elsewhere_is_shown_and_not_taken_back(make_app: MakeApp) -> None:
    """By a key, by the palette, or because a model was loaded: the form holds a copy of the settings."""
    async with make_app(Settings(appearance=AppearanceSettings(theme="dark"))).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        screen = await open_settings(chat)
        await pilot.press("f12")
        await chat.settle()
        assert row(screen, "appearance.theme").query_one(Select).value == "light"
        assert "Theme light" in screen.query_one(StatusRow).plain
        chat.app.preferences.remember_model(
            "elsewhere", LoadFinished("elsewhere", "Llama", "fp16", 8, 1, 1, 2, 0.1, "cpu", "plain", "elsewhere")
        )
        row(screen, "appearance.turns").query_one(Input).value = "12"
        await chat.settle()
        settings = chat.app.settings
        assert settings.appearance == AppearanceSettings(theme="light", turns=12)
        assert settings.models.last == "elsewhere" and chat.app.theme == "exl2-light"


async def test_a_wrong_value_is_explained_at_its_field_and_changes_nothing(make_app: MakeApp, home: Path) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        screen = await open_settings(chat)
        turns = row(screen, "appearance.turns")
        turns.query_one(Input).focus()
        await pilot.press("end", *"5")
        await chat.settle()
        assert "must lie between 4 and 30" in str(turns.query_one(".meaning", Static).render())
        assert str(turns.query_one(".mark", Static).render()) == "✗" and chat.app.settings.appearance.turns == 10
        await pilot.press("backspace", "backspace", "backspace", *"12")
        await chat.settle()
        assert str(turns.query_one(".mark", Static).render()) == "•" and chat.app.settings.appearance.turns == 12
        assert "1 changed" in screen.query_one("#changed").plain  # type: ignore[attr-defined]
        await pilot.press("ctrl+r")
        await chat.settle()
        assert chat.app.settings.appearance.turns == 10
        await until(lambda: load_settings(home)[0].appearance.turns == 10)


async def test_a_system_prompt_of_several_lines_is_edited_whole(make_app: MakeApp) -> None:
    settings = Settings(chat=ChatSettings(system="one\ntwo"))
    async with make_app(settings).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        screen = await open_settings(chat)
        await pilot.press("ctrl+f", *"system prompt", "enter")
        await chat.settle()
        system = row(screen, "chat.system")
        system.query_one(Input).focus()
        await pilot.press("x")
        await chat.settle()
        assert "several lines" in str(system.query_one(".meaning", Static).render())
        assert chat.app.settings.chat.system == "one\ntwo"
        await pilot.press("enter")
        await chat.settle()
        await pilot.press("enter", *"three", "ctrl+s")
        await chat.settle()
        assert chat.app.settings.chat.system == "one\ntwo\nthree"


async def test_a_key_is_taken_by_pressing_it_unless_it_is_in_use(make_app: MakeApp, home: Path) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        screen = await open_settings(chat)
        keys = screen.query_one("#keys", OptionList)
        await pilot.press("end", "enter")
        await chat.settle()
        assert keys.has_focus
        keys.highlighted = next(i for i in range(keys.option_count) if keys.get_option_at_index(i).id == "chat.new")
        await pilot.press("enter")
        await until(lambda: isinstance(chat.app.screen, KeyCapture))
        await chat.settle()

        async def pressed(key: str) -> str:
            await pilot.press(key)
            await chat.settle()
            return str(chat.app.screen.query_one("#pressed", Static).render())

        assert "^g is taken: all chats" in await pressed("ctrl+g")
        assert "^q is taken: quit" in await pressed("ctrl+q")
        assert "is a letter of messages" in await pressed("n")
        await pilot.press("enter")
        await chat.settle()
        assert isinstance(chat.app.screen, KeyCapture)  # a key that is taken is not used
        assert "^y is taken: text fields need it" in await pressed("ctrl+y")
        assert "✗" not in await pressed("alt+n")
        await pilot.press("enter")
        await until(lambda: chat.app.screen is screen)
        await chat.settle()
        assert chat.app.settings.keys == {"chat.new": "alt+n"}
        await until(lambda: load_settings(home)[0].keys == {"chat.new": "alt+n"})
        await pilot.press("f2")
        await until(lambda: chat.app.screen is chat.chat_screen)
        await chat.ask("x")
        await chat.answer("y")
        await pilot.press("ctrl+n")
        assert chat.app.session.chat.turns
        await pilot.press("alt+n")
        assert not chat.app.session.chat.turns
        await pilot.press("f5", "end", "enter")
        await chat.settle()
        keys = chat.app.screen.query_one("#keys", OptionList)
        keys.highlighted = next(i for i in range(keys.option_count) if keys.get_option_at_index(i).id == "chat.new")
        assert str(keys.get_option("chat.new").prompt).startswith("• new chat")
        await pilot.press("ctrl+r")
        await chat.settle()
        assert chat.app.settings.keys == {}


async def test_all_settings_are_reset_after_a_question(make_app: MakeApp, home: Path) -> None:
    settings = Settings(
        appearance=AppearanceSettings("light", 12),
        models=ModelSettings("last", ("/models",)),
        keys={"chat.new": "ctrl+y"},
    )
    async with make_app(settings, theme="exl2-light").run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        screen = await open_settings(chat)
        await pilot.press("f9")
        await chat.settle()
        await pilot.press("enter")  # leave them
        await chat.settle()
        assert chat.app.settings.appearance.turns == 12
        await pilot.press("f9")
        await chat.settle()
        await pilot.press("down", "enter")
        await chat.settle()
        now = chat.app.settings
        assert now.keys == {} and now.appearance == AppearanceSettings() and now.models.directories == ("/models",)
        assert row(screen, "appearance.turns").query_one(Input).value == "10"


async def test_help_is_about_what_has_the_focus(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()

        async def help_of(*keys: str) -> str:
            await pilot.press(*keys, "f1")
            await until(lambda: isinstance(chat.app.screen, HelpScreen))
            await chat.settle()
            box = chat.app.screen.query_one(".dialog")
            text = f"{box.border_title} | " + str(chat.app.screen.query("VerticalScroll Static").first().render())
            await pilot.press("f1")
            await until(lambda: not isinstance(chat.app.screen, HelpScreen))
            return text

        composer = await help_of()
        assert composer.startswith("Help: Chat | Write here") and composer.index("new chat") < composer.index(
            "Everywhere"
        )
        assert (await help_of("ctrl+f")).startswith("Help: Finding in this chat | Finds words")
        assert "what each step leaves" in await help_of("escape", "ctrl+s")
        assert "A prompt mode is how" in await help_of("escape", "ctrl+t")
        settings = await help_of("escape", "f5")
        assert settings.startswith("Help: Settings | Every change is used and saved at once")
        assert settings.index("search settings and keys") < settings.index("new chat")
        field = await help_of("down", "enter")
        assert field.startswith("Help: Settings | Enter sends: off: enter adds a line, ^j sends. Its default is on")
        assert "[chat] enter_sends" in field and "Every change is used and saved at once" in field


async def test_the_palette_has_themes_presets_and_the_welcome(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        for words, done in (
            ("theme light", lambda: chat.app.theme == "exl2-light"),
            ("sampler greedy", lambda: chat.app.settings.sampler.temperature == 0),
            ("welcome", lambda: type(chat.app.screen).__name__ == "FirstRun"),
        ):
            await pilot.press("ctrl+p")
            await until(lambda: isinstance(chat.app.screen, CommandPalette))
            await pilot.press(*words)
            found = chat.app.screen.query_one(OptionList)
            await until(lambda found=found: found.option_count and not chat.app.screen._show_busy)  # type: ignore[misc]
            await pilot.press("enter")
            await until(done)


async def test_the_palette_puts_what_is_called_so_before_what_mentions_it(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("ctrl+p", *"export")
        await until(lambda: isinstance(chat.app.screen, CommandPalette))
        found = chat.app.screen.query_one(OptionList)
        await until(lambda: found.option_count == 2 and not chat.app.screen._show_busy)  # type: ignore[attr-defined]
        assert [str(found.get_option_at_index(at).prompt).split(":")[0] for at in (0, 1)] == ["Export", "Chats"]


async def test_the_palette_finds_chats_models_and_modes(make_app: MakeApp) -> None:
    """By names that look like markup, too."""
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("[i]poems[/i] please")
        await chat.answer("no")
        await pilot.press("ctrl+n")
        session = chat.app.session
        for words, shown, done in (
            ("mode llama", "Prompt mode: llama", lambda: session.chat.mode == "llama"),
            ("[i]poems", "Chat: [i]poems[/i] please", lambda: session.chat.title.startswith("[i]poems")),
            (f"model {MODELS[1].name}", f"Model: {MODELS[1].name}", lambda: session.model.name == MODELS[1].path),
        ):
            await pilot.press("f5", "ctrl+p")
            await until(lambda: isinstance(chat.app.screen, CommandPalette))
            chat.app.screen.query_one(Input).value = words
            found = chat.app.screen.query_one(OptionList)

            def first(found: OptionList = found) -> str:
                return str(found.get_option_at_index(0).prompt) if found.option_count else ""

            await until(lambda first=first, shown=shown: shown in first())  # type: ignore[misc]
            await pilot.press("enter")
            await until(done)
            assert chat.app.screen is chat.chat_screen


async def test_the_screens_of_models_and_convert_have_help(make_app: MakeApp) -> None:
    from exl2_tui.screens import convert, convert_progress, convert_wizard, downloads, hub, models

    for screen in (
        models.ModelsScreen,
        hub.HubScreen,
        downloads.DownloadsScreen,
        convert.ConvertScreen,
        convert_wizard.WizardScreen,
        convert_progress.ProgressScreen,
    ):
        assert len(screen.HELP or "") > 100, screen
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("f3", "f1")
        await until(lambda: isinstance(chat.app.screen, HelpScreen))
        await chat.settle()
        text = str(chat.app.screen.query("VerticalScroll Static").first().render())
        assert text.startswith("The models of this machine") and "\n  /  " in text
