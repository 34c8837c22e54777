"""Settings, sampler and the command palette."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.command import CommandList, CommandPalette
from textual.widgets import Select, Static

from exl2_tui.core.errors import ConfigError
from exl2_tui.core.requests import SamplerSettings
from exl2_tui.screens.form import FieldRow
from exl2_tui.screens.sampler import SamplerPanel
from exl2_tui.screens.settings import SettingsScreen
from exl2_tui.settings import Settings, load_settings
from exl2_tui.settings_form import GROUPS, PRESETS, is_default, text_of, with_text
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, gathered, until

FIELDS = {field.key: field for group in GROUPS for field in group.fields}


def test_every_field_reads_back_what_it_shows() -> None:
    settings = Settings()
    for field in FIELDS.values():
        assert with_text(settings, field, text_of(settings, field)) == settings
        assert is_default(settings, field)
    for sampler in PRESETS.values():
        settings = Settings(sampler=sampler)
        for field in FIELDS.values():
            assert with_text(settings, field, text_of(settings, field)) == settings


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("sampler.temperature", "0.25", 0.25),
        ("sampler.seed", "", None),
        ("sampler.seed", "7", 7),
        ("chat.max_new_tokens", "70,000", 70_000),
        ("chat.enter_sends", "off", False),
        ("load.context", "", None),
        ("load.cache", "q8", "q8"),
        ("models.directories", " /a ; /b c;", ("/a", "/b c")),
    ],
)
def test_text_becomes_a_value(key: str, text: str, value: object) -> None:
    field = FIELDS[key]
    settings = with_text(Settings(), field, text)
    assert getattr(getattr(settings, field.section), field.name) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("sampler.temperature", "warm"),
        ("sampler.temperature", "nan"),
        ("sampler.temperature", "-1"),
        ("sampler.top_k", "1.5"),
        ("chat.max_new_tokens", "0"),
        ("chat.max_new_tokens", ""),
        ("chat.max_new_tokens", "9" * 5000),
        ("appearance.turns", "31"),
        ("load.context", "many"),
    ],
)
def test_wrong_text_is_explained(key: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_text(Settings(), FIELDS[key], text)
    assert len(caught.value.message) < 200


async def test_sampler_is_used_by_the_next_answer_and_saved(make_app: MakeApp, home: Path) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("ctrl+s")
        await until(lambda: isinstance(pilot.app.screen, SamplerPanel) and pilot.app.screen.focused)
        await pilot.press("end", *["backspace"] * 5, *"1.5")
        await pilot.pause()
        assert chat.app.settings.sampler.temperature == 1.5
        row = pilot.app.screen.query(FieldRow).first()
        assert "•" in str(row.query_one(".mark", Static).render())
        await pilot.press("x")
        await pilot.pause()
        assert "is not a number" in str(row.query_one(".meaning", Static).render())
        assert chat.app.settings.sampler.temperature == 1.5
        await pilot.press("ctrl+r")
        await pilot.pause()
        assert chat.app.settings.sampler.temperature == 0.8
        pilot.app.screen.query_one("#preset", Select).value = "greedy"
        await pilot.pause()
        await pilot.press("escape")
        await pilot.pause()
        assert "greedy" in chat.status
        await chat.ask("hi")
        assert chat.service.requests[-1].sampler == SamplerSettings.greedy()
        await until(lambda: load_settings(home)[0].sampler == SamplerSettings.greedy())


async def test_settings_change_the_theme_at_once(make_app: MakeApp, home: Path) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("f5")
        await until(lambda: isinstance(pilot.app.screen, SettingsScreen))
        await pilot.pause()
        theme = next(row for row in pilot.app.screen.query(FieldRow) if row.field.key == "appearance.theme")
        theme.query_one(Select).value = "light"
        await until(lambda: chat.app.theme == "exl2-light")
        assert len(list(pilot.app.screen.walk_children())) <= 600
        await pilot.press("escape")
        await until(lambda: load_settings(home)[0].appearance.theme == "light")


async def test_palette_runs_actions(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("ctrl+p")
        await until(lambda: isinstance(pilot.app.screen, CommandPalette))
        await pilot.press(*"sampler")
        await until(lambda: pilot.app.screen.query_one(CommandList).option_count)
        await gathered(pilot.app)
        await pilot.pause()
        await pilot.press("enter")
        await until(lambda: isinstance(pilot.app.screen, SamplerPanel))
