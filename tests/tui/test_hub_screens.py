"""The Hub and Downloads on screen: from words to a finished model, and what is refused on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from textual.widgets import Static

from exl2_tui.core.model_events import (
    HubPlanned,
    HubRevision,
    HubRevisions,
    HubSearched,
    ModelRemoved,
    PartialDownload,
)
from exl2_tui.screens.dialogs import ChoiceDialog
from exl2_tui.screens.downloads import DownloadsScreen
from exl2_tui.screens.hub import HubScreen
from exl2_tui.screens.model_dialogs import PlanDialog
from exl2_tui.screens.models import ModelsScreen
from exl2_tui.widgets.bars import Row
from exl2_tui.widgets.key_row import KeyRow
from exl2_tui.widgets.keyed_list import KeyedList
from tests.tui.conftest import MakeApp
from tests.tui.driver import until
from tests.tui.model_fakes import NAME, PLAN, FakeModels
from tests.tui.models_driver import models


async def test_from_words_to_a_finished_model(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.press("h")
        await seen.screen(HubScreen)
        await seen.press(*"llama exl2", "enter")
        assert seen.calls("search") == [("llama exl2",)]
        assert len(seen.rows) == 3 and "51,234" in seen.rows[0] and seen.rows[1].startswith("!")
        assert "evil/[red]name[/red][2J" in seen.rows[2]
        assert "3 of other kinds left out" in seen.text("#details")
        await seen.press("enter")
        assert seen.calls("revisions") == [("turboderp/Llama-3.1-8B-Instruct-exl2",)]
        assert [row.split()[-1] for row in seen.rows] == ["config.json", "fits", "tight", "large"]
        assert "its files and what it needs" in seen.text("#details")  # the cursor is on one that can be used
        await seen.press("enter")
        assert seen.calls("plan") == [("turboderp/Llama-3.1-8B-Instruct-exl2", "4.0bpw")]
        await seen.screen(PlanDialog)
        said = seen.text(".text")
        assert "13.7 GB" not in said and "4.7 GB" in said and "in 4 files" in said and "61.0 GB free" in said
        assert "Needs about 6.1 GB of memory at 8k context, 24.0 GB free: fits" in said
        await seen.press("enter")
        await seen.screen(DownloadsScreen)
        assert seen.calls("download") == [(NAME,)]
        seen.fake.progress(0.5)
        await seen.chat.settle()
        assert "50%" in seen.rows[0] and "42.0 MB/s" in seen.rows[0]
        assert "output-00001-of-00002.safetensors" in seen.text("#details") and "3 of 4 files" in seen.text("#details")
        assert "Models 50%" in seen.app.screen.query_one("#header", Row).plain
        await seen.press("f2")
        assert "Models 50%" in seen.chat.header
        seen.fake.finish()
        await until(lambda: any("is here" in str(toast.message) for toast in seen.app._notifications))
        assert "Models 50%" not in seen.chat.header
        await seen.press("f3", "d")
        await seen.press("c")
        await until(lambda: seen.chat.service.loads[-1][0] == PLAN.folder)


async def test_a_download_is_paused_gone_on_with_and_discarded(make_app: MakeApp) -> None:
    def begun(post: Callable[..., None]) -> FakeModels:
        fake = FakeModels(post)
        fake.partial = (PartialDownload("old-one", "o/old", "main", 10**9, 4 * 10**9),)
        return fake

    async with models(make_app, models_factory=begun) as seen:
        await seen.press("d")
        await seen.screen(DownloadsScreen)
        assert "old-one" in seen.rows[0] and "25%" in seen.rows[0] and "stopped" in seen.rows[0]
        await seen.press("r")
        assert seen.calls("resume") == [("old-one",)] and "waiting" in seen.rows[0]
        seen.fake.progress(0.3, "old-one")
        await seen.chat.settle()
        await seen.press("x")
        assert "Pause it first" in seen.status
        await seen.press("p")
        assert seen.calls("stop_download") == [("old-one",)] and "stopped" in seen.rows[0]
        seen.fake.fail("the disk is full", "Free some space", "old-one")
        await seen.chat.settle()
        assert "✗" in seen.rows[0] and "the disk is full" in seen.text("#details")
        await seen.press("x")
        await seen.screen(ChoiceDialog)
        await seen.press("down", "enter")
        assert seen.calls("discard") == [("old-one",)]
        await until(lambda: seen.rows == [])
        assert "Nothing is being downloaded" in seen.text("#details")


async def test_a_finished_download_leaves_the_list_and_its_model_stays(make_app: MakeApp) -> None:
    """One key, one meaning at a time: what is unfinished is discarded, what is finished only leaves the list."""
    async with models(make_app) as seen:
        await seen.press("d")
        await seen.screen(DownloadsScreen)
        seen.fake.progress(0.5)
        await seen.chat.settle()
        keys = seen.app.screen.query_one(KeyRow)
        assert "x Discard" in keys.plain and "Off the list" not in keys.plain
        seen.fake.finish()
        await seen.chat.settle()
        assert "x Off the list" in keys.plain and "Discard" not in keys.plain
        assert "x takes it off the list" in seen.text("#details")
        await seen.press("x")
        assert seen.rows == [] and seen.calls("discard") == []


async def test_a_model_that_is_removed_is_no_finished_download(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.press("d")
        await seen.screen(DownloadsScreen)
        seen.fake.finish()
        await seen.chat.settle()
        assert len(seen.rows) == 1
        seen.app.push_event(ModelRemoved(PLAN.folder, NAME, 5))
        await seen.chat.settle()
        assert seen.rows == []


async def test_quitting_during_a_download_asks(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        seen.chat.app.models.download(PLAN)
        await seen.screen(DownloadsScreen)
        seen.fake.progress(0.4)
        await seen.chat.settle()
        await seen.press("ctrl+q")
        await seen.screen(ChoiceDialog)
        assert "is at 40%. What is here is kept" in str(seen.chat.app.screen.query(Static).first().render())
        await seen.press("enter")  # stay
        await seen.screen(DownloadsScreen)
        assert seen.chat.app.is_running
        await seen.press("ctrl+q", "down", "enter")
        await until(lambda: seen.chat.app._exit)


async def test_what_the_hub_refuses_is_told_and_escape_goes_back(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.press("h")
        await seen.screen(HubScreen)
        seen.fake.answering = False
        await seen.press(*"x", "enter")
        assert "searching for x" in seen.status and "esc gives up" in seen.status
        await seen.press("escape")
        assert "searching" not in seen.status
        seen.app.push_event(HubSearched(1, "x", (), 0, "too late", ""))
        await seen.chat.settle()
        assert "too late" not in seen.text("#details")
        await seen.press("slash", "enter")
        seen.app.push_event(
            HubSearched(seen.app.models._token, "x", (), 0, "The Hub cannot be reached", "Check the network")
        )
        await seen.chat.settle()
        assert "The Hub cannot be reached" in seen.text("#details") and "Check the network" in seen.text("#details")
        seen.fake.answering = True
        await seen.press("enter")
        await seen.press("enter")
        seen.app.push_event(HubRevisions(seen.app.models._token, "o/m", (), True, "o/m is gated", "Accept the terms"))
        await seen.chat.settle()
        assert "Accept the terms" in seen.text("#details")
        await seen.press("escape")
        assert len(seen.rows) == 3
        await seen.press("escape")
        await seen.screen(ModelsScreen)


async def test_the_cursor_begins_on_the_first_revision_that_can_be_used(make_app: MakeApp) -> None:
    """Answers come one by one; where the person has moved the cursor it stays."""
    async with models(make_app) as seen:
        await seen.press("h")
        await seen.screen(HubScreen)
        await seen.press(*"llama", "enter")
        seen.fake.answering = False

        async def answer(*problems: str) -> str | None:
            names = ("main", "4.0bpw", "6.0bpw")
            rows = [HubRevision(name, 5, 0.0, "unknown", why) for name, why in zip(names, problems, strict=True)]
            seen.app.push_event(HubRevisions(seen.app.models._token, "o/m", tuple(rows), False))
            await seen.chat.settle()
            return seen.app.screen.query_one(KeyedList).at_cursor

        await seen.press("down", "enter")
        assert await answer("", "", "") == "main"
        assert await answer("no weights", "", "") == "4.0bpw"
        assert await answer("no weights", "no weights", "") == "6.0bpw"
        await seen.press("up")
        assert await answer("no weights", "no weights", "no weights") == "4.0bpw"
        assert "✗ No weights" in seen.text("#details")
        await seen.press("escape")  # back on the result it came from
        assert seen.app.screen.query_one(KeyedList).highlighted == 1
        await seen.press("enter")
        assert await answer("no weights", "", "") == "4.0bpw"


async def test_a_plan_with_a_problem_offers_no_download(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.press("h")
        await seen.screen(HubScreen)
        await seen.press(*"x", "enter", "enter")
        seen.fake.answering = False
        await seen.press("enter")
        plan = replace(PLAN, problem="the disk has 1.0 GB free", hint="Free 4 GB")
        seen.app.push_event(HubPlanned(seen.app.models._token, PLAN.repo, "main", plan))
        await seen.screen(PlanDialog)
        assert "the disk has 1.0 GB free" in seen.text(".text") and "Free 4 GB" in seen.text(".text")
        await seen.press("enter")
        await seen.screen(HubScreen)
        assert seen.calls("download") == []
