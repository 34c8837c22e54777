"""The wizard: every field is checked while typing, keys that come in a burst reach what they are meant for."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Button, Input, OptionList

from exl2_tui.core.events import ModelsListed
from exl2_tui.core.job_events import FieldNote
from exl2_tui.screens.convert import ConvertScreen
from exl2_tui.screens.convert_progress import ProgressScreen
from exl2_tui.screens.convert_wizard import WizardScreen
from exl2_tui.widgets.field import Choice
from exl2_tui.widgets.path_field import complete
from tests.tui import convert_fakes as fake
from tests.tui.conftest import MakeApp
from tests.tui.convert_driver import MODELS, ConvertDriver
from tests.tui.driver import until

SIZE = (80, 24)


async def test_enter_enter_enter_converts_the_first_model(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        assert "No conversions yet" in place.text("details")
        await pilot.press("n")
        await until(lambda: isinstance(place.app.screen, WizardScreen))
        place.app.push_event(ModelsListed(MODELS))
        await place.settle()
        assert place.app.screen.query_one("#models-found", OptionList).option_count == 1  # quantized ones are left out
        await pilot.press("enter")
        await place.checked()
        await until(lambda: place.app.screen.query_one("#target").display)
        assert "3 m 10 s" in place.text("estimate") and "24.4 MB → 12.3 MB" in place.text("estimate")
        await pilot.press("enter")
        await pilot.pause()
        assert "exl2-tui convert -i /models/nano-chat" in place.text("summary")
        await pilot.press("enter")
        await until(lambda: place.service.started)
        request = place.service.started[0]
        assert request.source == "/models/nano-chat" and request.bits == (4.0,)
        assert request.work.endswith("jobs/nano-chat-4bpw")
        assert request.output is not None and request.output.endswith("models/nano-chat-exl2-4bpw")
        assert isinstance(place.app.screen, ProgressScreen)


async def test_folders_that_are_taken_are_not_suggested(convert_app: MakeApp) -> None:
    """Converting the same model once more is enter, enter, enter, too; what the person wrote is not changed."""
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        place.service.taken = {"nano-chat-4bpw", "nano-chat-4bpw-2"}
        screen = await place.wizard()
        folders = [Path(screen.query_one(f"#{box}", Input).value).name for box in ("work", "output")]
        assert folders == ["nano-chat-4bpw-3", "nano-chat-exl2-4bpw-3"] and "finished" not in place.notes
        screen.query_one("#work", Input).value = "/mine/nano-chat-4bpw"
        await place.checked()
        await until(lambda: "Pick another folder" in place.notes)
        assert screen.query_one("#work", Input).value == "/mine/nano-chat-4bpw"


async def test_every_field_is_checked_while_typing(convert_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exl2_tui.screens.convert_wizard.CHECK_DELAY", 1.5)  # a busy machine takes its time over keys
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        await pilot.press("enter")
        await pilot.pause()
        before = len(place.service.drafts)
        screen.query_one("#rows", Input).focus()
        await pilot.press("6", "4")
        await until(lambda: len(place.service.drafts) > before)
        await place.checked()
        assert place.service.drafts[-1][0].rows == "64"
        assert len(place.service.drafts) == before + 1, "two quick keys are one check"
        place.service.notes = (FieldNote("work", "error", "Needs 88.0 GB here, 61.0 GB free. Pick another disk."),)
        await pilot.press("0")
        await until(lambda: len(place.service.drafts) > before + 1)
        await place.checked()
        assert "✗ Needs 88.0 GB here" in place.notes
        await pilot.press("enter")
        await pilot.pause()
        assert screen._step == 1 and "Pick another disk" in place.said
        assert place.app.focused is screen.query_one("#work")
        assert not place.service.started


async def test_next_waits_for_the_check(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        place.service.answering = False
        await pilot.press("x", "enter")
        await until(lambda: place.service.drafts[-1][0].source.endswith("x") and screen._timer is None)
        await pilot.pause()
        assert screen._step == 0 and "Checking" in place.said
        place.service.answer()
        await until(lambda: screen._step == 1)


async def test_what_was_set_up_is_there_when_one_comes_back_from_another_place(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        await pilot.press("enter", "right", "down", "down", "down", "down", *"64")
        await place.checked()
        assert screen.draft.rows == "64" and screen.draft.bits == "4.65"
        await pilot.press("f2")
        await until(lambda: place.app.screen.id == "chat")
        await pilot.press("f4")
        await until(lambda: isinstance(place.app.screen, ConvertScreen))
        checks = len(place.service.drafts)
        await pilot.press("n")
        await until(lambda: place.app.screen is screen and len(place.service.drafts) > checks)
        await place.checked()
        assert screen._step == 1 and screen.draft.rows == "64" and screen.draft.bits == "4.65"
        await pilot.press("enter", "enter")
        await until(lambda: place.service.started)
        await until(lambda: isinstance(place.app.screen, ProgressScreen))
        await pilot.press("escape")
        await until(lambda: isinstance(place.app.screen, ConvertScreen))
        await pilot.press("n")  # that one was started: a new one
        await until(lambda: isinstance(place.app.screen, WizardScreen) and place.app.screen is not screen)
        assert not screen.is_attached
        await place.checked()
        await pilot.press("escape")
        await until(lambda: isinstance(place.app.screen, ConvertScreen))


async def test_arrows_walk_through_the_fields_and_scroll_the_last_look(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        await pilot.press("enter")
        await place.settle()
        before = screen.focused
        await pilot.press("down", "down", "down")
        assert screen.focused is screen.query_one("#calibration")
        await pilot.press("up", "up", "up")
        assert screen.focused is before is screen.query_one("#bits")
        await pilot.press("enter")
        await place.settle()
        await pilot.press("down")
        assert screen.query_one("#check").scroll_y == 1 and screen.focused is screen.query_one("#next")


def test_a_folder_that_is_whole_is_not_completed_to_another(tmp_path: Path) -> None:
    """Grey text behind the name of the chosen model would read as the name of another one."""
    for name in ("nano-chat", "nano-chat-exl2"):
        (tmp_path / name).mkdir()
    assert complete(f"{tmp_path}/nano", folders_only=True) == f"{tmp_path}/nano-chat/"
    assert complete(f"{tmp_path}/nano-chat", folders_only=True) == f"{tmp_path}/nano-chat/"
    assert complete(f"{tmp_path}/nano-chat-", folders_only=True) == f"{tmp_path}/nano-chat-exl2/"


async def test_a_burst_of_keys_reaches_the_fields_it_is_meant_for(convert_app: MakeApp) -> None:
    """As a terminal delivers what is sent in one go: tab and enter have not done their work when the rest arrives."""
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        place.burst("enter", "tab", "tab", "tab", *"/c.txt", "tab", *"6", "tab", *"64", "tab", "tab", "end", *"-x")
        await until(lambda: screen.draft.work.endswith("-x"))
        draft = screen.draft
        assert screen._step == 1 and (draft.calibration, draft.rows, draft.length) == ("/c.txt", "6", "64")
        assert draft.work.endswith("jobs/nano-chat-4bpw-x") and draft.bits == "4.0"
        await place.checked()


async def test_enter_enter_enter_in_one_go(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        place.burst("n", *"/models/nano-chat", "enter", "enter", "enter")
        await until(lambda: place.service.started)
        assert place.service.started[0].source == "/models/nano-chat"
        await until(lambda: isinstance(place.app.screen, ProgressScreen) and place.app.screen._drawn)


async def test_keys_behind_an_enter_wait_for_the_check_and_escape_drops_them(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        place.service.answering = False
        place.burst("x", "enter", "tab", "tab", "tab", *"/c.txt")
        await until(lambda: screen._timer is None and place.service.drafts[-1][0].source.endswith("x"))
        await pilot.pause()
        assert screen.draft.source == "/models/nano-chatx" and not screen.draft.calibration
        place.service.answer()
        await until(lambda: screen.draft.calibration == "/c.txt")
        assert screen._step == 1
        place.service.answering = True
        await place.checked()
        place.service.answering = False
        await pilot.press("y", "enter", "z")
        assert "Checking" in place.said and screen.draft.calibration == "/c.txty"
        await pilot.press("escape")
        await until(lambda: screen._step == 0)
        await pilot.press("w")
        assert screen.draft.source == "/models/nano-chatxw" and screen.draft.calibration == "/c.txty"


async def test_an_earlier_measurement_is_taken_with_one_key(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        await pilot.press("f8")
        assert not screen.draft.measurement  # nothing was found
        place.service.measurement = "/jobs/nano-4/measurement.json"
        await pilot.press("enter", "tab", "right")
        await until(lambda: screen._found is not None and screen._found.measurement)
        assert "One of this model is in nano-4: f8 uses it" in place.notes
        assert "Loads in 60.0 MB with 1,024 tokens" in place.text("estimate")
        await pilot.press("f8")
        assert screen.draft.measurement == "/jobs/nano-4/measurement.json"


async def test_an_old_answer_does_not_count(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        place.service.answering = False
        old = place.service.drafts[-1]
        await pilot.press("y")
        await until(lambda: place.service.drafts[-1] != old)
        new = place.service.drafts[-1]
        place.service.drafts[-1] = old
        place.service.answer()
        await place.settle()
        assert screen._found is None
        place.service.drafts[-1] = new
        place.service.answer()
        await until(lambda: screen._found is not None)


async def test_other_bits_and_folders_of_ones_own(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        await pilot.press("enter")
        await pilot.pause()
        bits = screen.query_one("#bits", Choice)
        await pilot.press("left", "left", "left", "left")  # 4.0 -> 3.5 -> 3.0 -> 2.5 -> other…
        assert bits.value == "other…"
        box = screen.query_one("#bits-other", Input)
        assert box.display
        box.value = "3.0, 4.5"
        await pilot.pause()
        assert screen.draft.bits == "3.0, 4.5" and screen.draft.work.endswith("nano-chat-3-4.5bpw")
        screen.query_one("#output", Input).value = "/elsewhere/out"
        box.value = "5"
        await pilot.pause()
        assert screen.draft.output == "/elsewhere/out" and screen.draft.work.endswith("nano-chat-5bpw")


async def test_escape_goes_back_and_leaves(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        await pilot.press("enter")
        await pilot.press("enter")
        assert screen._step == 2
        await pilot.press("escape")
        assert screen._step == 1
        await pilot.click("#back")
        assert screen._step == 0 and str(screen.query_one("#back", Button).label) == "Leave"
        await pilot.press("escape")
        await until(lambda: isinstance(place.app.screen, ConvertScreen))


async def test_file_names_are_shown_and_not_obeyed(convert_app: MakeApp) -> None:
    hostile = "/models/[bold]x[/bold]\x1b[31m\u202e"
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        place.service.listed = (fake.info("/w/a", name=hostile.rpartition("/")[2]),)
        place.service.notes = (FieldNote("source", "error", f"nothing in {hostile}"),)
        place.service.list_jobs()
        await place.settle()
        shown = place.text("details")
        assert "\x1b" not in shown and "\u202e" not in shown
        await pilot.press("n")
        await until(lambda: isinstance(place.app.screen, WizardScreen))
        place.app.screen.query_one("#source-path", Input).value = "/x"
        await place.checked()
        assert "[bold]x[/bold][31m" in place.notes
        assert "\x1b" not in place.notes and "\u202e" not in place.notes
