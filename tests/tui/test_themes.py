"""Contrast of every text colour on every background, and reading the terminal's answer."""

from __future__ import annotations

import pytest
from textual.color import Color
from textual.theme import Theme
from textual.widgets import Input, OptionList, TextArea

from exl2_tui.keymap import EDITING, KEYS, problem_of, problems, spell
from exl2_tui.settings import AppearanceSettings, Settings
from exl2_tui.themes import DARK, LIGHT, background_is_light, luminance, theme_name
from exl2_tui.widgets.code_lines import CodeTheme
from tests.tui.conftest import MakeApp
from tests.tui.convert_fakes import FakeConvert
from tests.tui.demo import ANSWERS
from tests.tui.driver import ChatDriver, until
from tests.tui.looks import coloured
from tests.tui.model_fakes import FakeModels

# Everything that text of any colour may stand on, rows under a cursor and selections included.
GROUNDS = (
    *("background", "surface", "panel", "block-cursor-background", "block-cursor-blurred-background"),
    *("screen-selection-background", "input-selection-background", "field", "found"),
)


def ratio(one: str, other: str) -> float:
    def light(color: Color) -> float:
        parts = [value / 255 for value in (color.r, color.g, color.b)]
        linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((light(Color.parse(one)), light(Color.parse(other))), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("theme", [DARK, LIGHT], ids=lambda theme: theme.name)
def test_text_has_contrast(theme: Theme) -> None:
    colors = {**theme.to_color_system().generate(), **theme.variables}
    used = {"foreground", "primary", "secondary", "accent", "success", "warning", "error"}
    for name in used:
        for ground in GROUNDS:
            assert ratio(colors[name], colors[ground]) >= 4.5, (name, ground)
    for cursor in ("block-cursor", "block-cursor-blurred", "input-selection"):
        assert ratio(colors[f"{cursor}-foreground"], colors[f"{cursor}-background"]) >= 4.5
    styles = {word for style in CodeTheme.STYLES.values() for word in style.split() if word.startswith("$")}
    assert {style[1:] for style in styles} <= used


@pytest.mark.parametrize("key", ["f3", "f4", "f5", "ctrl+t", "ctrl+g", "ctrl+p"])
async def test_the_terminal_theme_leaves_colours_and_contrast_to_the_terminal(key: str, make_app: MakeApp) -> None:
    """Which colours a terminal has is not known: they are named by number, from the first frame on, and a row under a
    cursor has the contrast of all others because text and background change places."""
    options = {"theme": "exl2-terminal", "models_factory": FakeModels, "convert_factory": FakeConvert}
    async with make_app(**options).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("x")
        await chat.answer("y")
        await pilot.press(key)
        await until(lambda: chat.app.screen is not chat.chat_screen)
        await chat.settle()
        if key == "ctrl+p":
            await until(lambda: chat.app.screen.query_one(OptionList).option_count > 0)
        styles = [
            style
            for strip in chat.app.screen._compositor.render_strips()
            for segment in strip
            if (style := segment.style) is not None
        ]
        colours = {colour for style in styles for colour in (style.color, style.bgcolor) if colour is not None}
        assert colours and all(colour.is_default or colour.number is not None for colour in colours)
        if key != "f4":  # its list is empty
            assert any(style.reverse for style in styles)


@pytest.mark.parametrize("theme", ["exl2-dark", "exl2-light"])
async def test_every_text_on_screen_has_contrast(theme: str, make_app: MakeApp) -> None:
    """As it is drawn: rows under a cursor, placeholders, what a focus changes."""
    async with make_app(theme=theme, models_factory=FakeModels).run_test(size=(120, 40)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("a question")
        await chat.answer(ANSWERS[0])
        for keys in (("alt+up",), ("f3", "down"), ("i",), ("escape", "f5", "down"), ("ctrl+f",)):
            await pilot.press(*keys)
            await chat.settle()
            weak = [
                (segment.text, segment.style.color.name, segment.style.bgcolor.name)
                for strip in chat.app.screen._compositor.render_strips()
                for segment in strip
                if segment.style is not None and segment.style.color is not None and segment.style.bgcolor is not None
                if any(letter.isalnum() for letter in segment.text)
                if ratio(segment.style.color.name, segment.style.bgcolor.name) < 4.5
            ]
            assert not weak, (keys, weak)


def test_replies_of_terminals() -> None:
    assert luminance(b"\x1b]11;rgb:ffff/ffff/ffff\x07\x1b[?62c") == pytest.approx(1.0)
    assert luminance(b"\x1b]11;rgb:14/17/1b\x1b\\") == pytest.approx(0.09, abs=0.01)
    assert luminance(b"\x1b[?62c") is None
    assert luminance(b"") is None


def test_auto_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    monkeypatch.setenv("COLORFGBG", "0;15")
    assert background_is_light() and theme_name("auto") == "exl2-light"
    monkeypatch.setenv("COLORFGBG", "15;0")
    assert theme_name("auto") == "exl2-dark"
    assert theme_name("terminal") == "exl2-terminal"


async def test_no_color_goes_before_every_choice_of_a_theme(monkeypatch: pytest.MonkeyPatch, make_app: MakeApp) -> None:
    monkeypatch.setenv("NO_COLOR", "")  # an empty value does not count
    assert theme_name("light") == "exl2-light"
    monkeypatch.setenv("NO_COLOR", "0")
    assert {theme_name(theme) for theme in ("auto", "dark", "light", "terminal", "mono")} == {"exl2-mono"}
    async with make_app(theme=theme_name("light")).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("f12")
        assert "NO_COLOR is set" in chat.status
        chat.app.preferences.use(Settings(appearance=AppearanceSettings(theme="dark")))
        await chat.settle()
        assert chat.app.theme == "exl2-mono" and not coloured(chat.app)


def test_default_keys_have_no_problem() -> None:
    assert problems({}) == []
    assert [key.id for key in KEYS if problem_of(key.id, key.keys, {})] == []
    assert len({key.id for key in KEYS}) == len(KEYS)
    assert problems({"chat.new": "ctrl+g"}) == [
        "chat.new: ^g is taken: all chats: open, search, rename, export, delete"
    ]
    assert problems({"chats.rename": "f1"}) == ["chats.rename: f1 is taken: help for what has the focus"]
    assert problems({"chats.rename": "f3", "dialog.close": "alt+x"}) == []  # the places are not reached from a dialog
    assert problems({"dialog.close": "f8", "wizard.copy": "c"}) == [
        "dialog.close: f8 is taken: delete the chat, after a question",
        "wizard.copy: c is a letter of messages",
    ]
    assert spell("ctrl+n") == "^n" and spell("alt+up,k") == "alt+↑" and spell("pageup") == "PgUp"


def test_the_keys_that_text_fields_need_are_known() -> None:
    bound = {key for field in (TextArea, Input) for binding in field.BINDINGS for key in binding.key.split(",")}
    assert bound <= EDITING
    assert problems({"chat.new": "ctrl+y"}) == ["chat.new: ^y is taken: text fields need it"]
    assert problems({"chat.find": "ctrl+w"}) == []  # has priority over them
