"""Every key that a screen names is the key that works: all actions are remapped, then all screens are searched."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from exl2_tui.app import Exl2App
from exl2_tui.job_state import JobState, Status
from exl2_tui.keymap import EDITING, KEYS, parts, problems, spell
from exl2_tui.models_state import Download, DownloadStatus
from exl2_tui.settings import Settings
from exl2_tui.widgets.hub_rows import MARKS as DOWNLOAD_MARKS
from exl2_tui.widgets.hub_rows import download_details
from exl2_tui.widgets.job_facts import notices
from exl2_tui.widgets.job_list import MARKS as JOB_MARKS
from exl2_tui.widgets.job_list import job_facts, nothing_yet
from tests.tui import test_convert_snapshots, test_models_snapshots, test_snapshots
from tests.tui.conftest import MakeApp
from tests.tui.convert_driver import ConvertDriver
from tests.tui.convert_fakes import FakeConvert
from tests.tui.driver import ChatDriver, until
from tests.tui.models_driver import ModelsDriver

SCENES: list[tuple[type, Callable[[Any], Awaitable[None]]]] = [
    # Not those that show what a key was by default, or one that was pressed in vain.
    *((ChatDriver, scene) for scene in test_snapshots.SCENES if scene.__name__ not in ("keys", "key_capture")),
    *((ModelsDriver, scene) for scene in test_models_snapshots.SCENES),
    *((ConvertDriver, scene) for scene in test_convert_snapshots.SCENES),
]
# What lists and text fields do whatever the keymap says, so that a hint may name it.
FIXED = {"⏎", "↑", "↓", "←", "→", "PgUp", "PgDn", "tab"}
LETTERS = {key.keys for key in KEYS if len(key.keys) == 1} | {"/"}


def other_keys() -> dict[str, str]:
    """Another key for every action, such as no text would name by chance."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    unusual = [
        f"{modifier}+{letter}" for modifier in ("alt", "alt+shift", "ctrl+alt", "ctrl+shift") for letter in letters
    ]
    unusual += [f"{modifier}+f{number}" for modifier in ("alt", "ctrl") for number in range(1, 13)]
    free = (key for key in unusual if key not in EDITING)
    return {key.id: next(free) for key in KEYS}


REMAPPED = other_keys()


class Remapped:
    """A Pilot for scenes that press the default keys: it presses what stands for them now."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self._pilot = pilot

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pilot, name)

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self._pilot.press(self._now(key))

    def _now(self, key: str) -> str:
        app = cast(Exl2App, self._pilot.app)
        typed = len(key) == 1 and isinstance(app.focused, Input | TextArea)
        chat = ChatDriver(self._pilot).chat_screen
        marked = app.screen is chat and chat.query_one("Transcript").marked is not None  # type: ignore[attr-defined]
        here = {active.binding.id for active in app.screen.active_bindings.values()} if not typed else set()
        here |= {name.id for name in KEYS if name.place == "turn"} if marked else set()
        return next((REMAPPED[name.id] for name in KEYS if name.id in here and key in parts(name.keys)), key)


def shown(app: Exl2App) -> str:
    """All text on the screen; for a dialog without what it covers a part of."""
    screens = app.screen.query(".dialog, #--container") or [app.screen]
    regions = [part.region for part in screens]
    lines = app.screen._compositor.render_strips()
    return "\n".join(lines[y].text[part.x : part.right] for part in regions for y in range(part.y, part.bottom))


def named(text: str, keys: Iterable[str]) -> set[str]:
    """Lines of the text that name one of these keys. A letter behind a number is a unit."""
    patterns = [re.compile(rf"(?<![\w^+/.'-])(?<!\d ){re.escape(key)}(?![\w+/.-]| \d)") for key in keys]
    return {line.strip() for line in text.splitlines() if any(pattern.search(line) for pattern in patterns)}


@pytest.mark.parametrize(
    "driver, scene", SCENES, ids=[f"{scene.__module__[14:]}-{scene.__name__}" for _, scene in SCENES]
)
async def test_no_screen_names_a_key_that_was_given_away(
    driver: type, scene: Callable[[Any], Awaitable[None]], make_app: MakeApp
) -> None:
    assert problems(REMAPPED) == []
    async with make_app(Settings(keys=REMAPPED), convert_factory=FakeConvert).run_test(size=(120, 40)) as plain:
        pilot = cast(Pilot[None], Remapped(plain))
        chat = ChatDriver(pilot)
        if driver is ModelsDriver:
            await chat.start()
            await pilot.press("f3")
            await until(lambda: chat.app.models.state.listed is not None)
            await chat.settle()
        await scene({ChatDriver: chat, ConvertDriver: ConvertDriver(pilot)}.get(driver) or ModelsDriver(chat))
        old = {spell(part) for key in KEYS for part in parts(key.keys)} - FIXED
        searched = {key for key in old if len(key) > 1}
        if driver is not ChatDriver:  # a chat may say anything; "a" is a word
            searched |= LETTERS - {"a"}
        await chat.settle()
        wide = shown(chat.app)
        await plain.resize_terminal(80, 24)
        await chat.settle()
        assert not named(wide, searched) | named(shown(chat.app), searched)


@pytest.mark.parametrize("status", DOWNLOAD_MARKS)
def test_no_state_of_a_download_names_a_key_that_was_given_away(status: str) -> None:
    one = Download("one", "ann/one", "main", 5, 10, cast(DownloadStatus, status), message="the disk is full", path="/x")
    assert not named(download_details(one, REMAPPED).plain, LETTERS - {"a"})


@pytest.mark.parametrize("status", JOB_MARKS)
def test_no_state_of_a_conversion_names_a_key_that_was_given_away(status: str) -> None:
    job = JobState("/jobs/one")
    job.status, job.error = cast(Status, status), "the disk is full"
    for text in (job_facts(job, 0.0, REMAPPED), notices(job, 4, REMAPPED), nothing_yet(True, REMAPPED)):
        assert not named(text.plain, LETTERS - {"a"})


async def test_hints_follow_a_key_while_the_screen_is_open(make_app: MakeApp) -> None:
    """The chat below the settings is not made anew when one goes back to it."""
    async with make_app().run_test(size=(120, 40)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await chat.ask("tell me a long story")
        await chat.answer("Once upon a time", reason="length")
        assert "^l continue  ^r retry" in shown(chat.app) and "Chats                 ^g" in shown(chat.app)
        chat.app.preferences.use(Settings(keys={"chat.continue": "alt+l", "chat.open": "alt+g", "chat.new": "alt+n"}))
        await until(lambda: "alt+g" in shown(chat.app))
        await chat.settle()
        text = shown(chat.app)
        assert "alt+l continue  ^r retry" in text and " alt+n New  ^r Retry" in text and "^g" not in text
