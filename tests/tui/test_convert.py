"""The Convert place as a person uses it, with conversions that only pretend."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
from textual import events
from textual.keys import _character_to_key as character_to_key
from textual.pilot import Pilot
from textual.widgets import Button, Input, OptionList, Static

from exl2_tui.app import Exl2App
from exl2_tui.core.events import ModelInfo, ModelsListed
from exl2_tui.core.job_events import FieldNote, JobFollowed
from exl2_tui.job_state import JobState
from exl2_tui.screens.chat import ChatScreen
from exl2_tui.screens.convert import ConvertScreen
from exl2_tui.screens.convert_progress import ProgressScreen
from exl2_tui.screens.convert_wizard import WizardScreen
from exl2_tui.screens.dialogs import ChoiceDialog
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.field import Choice
from exl2_tui.widgets.job_list import JobList
from exl2_tui.widgets.layer_chart import LayerChart
from exl2_tui.widgets.layer_table import LayerTable
from tests.tui import convert_fakes as fake
from tests.tui.conftest import MakeApp
from tests.tui.convert_fakes import FakeConvert
from tests.tui.driver import until
from tests.tui.fakes import FakeClock, FakeService

SIZE = (80, 24)
MODELS = (
    ModelInfo("nano-chat", "/models/nano-chat", "directory", "Llama", "fp16", 16.0, 24_400_432, 1024),
    ModelInfo("nano-exl2", "/models/nano-exl2", "directory", "Llama", "EXL2 4.00 bpw", 4.0, 13_000_000, 1024),
)


class ConvertDriver:
    """What a person sees and does in the Convert place."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot
        self.app = cast(Exl2App, pilot.app)

    @property
    def service(self) -> FakeConvert:
        return cast(FakeConvert, self.app.convert._service)

    @property
    def clock(self) -> FakeClock:
        return cast(FakeClock, self.app.clock)

    @property
    def job(self) -> JobState:
        return next(iter(reversed(self.app.convert.jobs.jobs.values())))

    def row(self, name: str) -> str:
        row = self.app.screen.query_one(f"#{name}", Row)
        return row.plain

    def text(self, name: str) -> str:
        part = self.app.screen.query_one(f"#{name}", Static)
        return str(part.render()) if part.display else ""

    @property
    def said(self) -> str:
        return self.app.screen.query_one(StatusRow).plain

    @property
    def notes(self) -> str:
        """What stands under the fields."""
        return "\n".join(str(note.render()) for note in self.app.screen.query(".note").results(Static))

    @property
    def table(self) -> list[str]:
        table = self.app.screen.query_one(LayerTable)
        return [table.render_line(y).text.rstrip() for y in range(table.size.height)]

    @property
    def chart(self) -> list[str]:
        chart = self.app.screen.query_one(LayerChart)
        return [chart.render_line(y).text.rstrip() for y in range(chart.size.height)]

    def burst(self, *keys: str) -> None:
        """All keys at once, as after one read of the terminal."""
        for key in keys:
            character = key if len(key) == 1 else None
            self.app.post_message(events.Key(character_to_key(key) if character else key, character))

    async def open(self) -> None:
        await until(lambda: self.app.service is not None)
        cast(FakeService, self.app.service).loaded()
        await self.pilot.press("f4")
        await until(lambda: isinstance(self.app.screen, ConvertScreen))
        await self.settle()

    async def settle(self) -> None:
        await until(lambda: not self.app._bridge._events)
        await self.pilot.pause()

    async def checked(self) -> None:
        """Waits until the newest draft has been answered for."""
        screen = cast(WizardScreen, self.app.screen)
        await self.pilot.pause()
        await until(lambda: screen._timer is None and (screen._found is not None or not self.service.answering))
        await self.pilot.pause()

    async def wizard(self, source: str = "/models/nano-chat") -> WizardScreen:
        await self.open()
        await self.pilot.press("n")
        await until(lambda: isinstance(self.app.screen, WizardScreen))
        await self.pilot.pause()
        self.app.screen.query_one("#source-path", Input).value = source
        await self.pilot.pause()
        await self.checked()
        return cast(WizardScreen, self.app.screen)

    async def started(self) -> str:
        """A conversion started through the wizard; returns its name."""
        await self.wizard()
        for _ in range(3):
            await self.pilot.press("enter")
            await self.settle()
        await until(lambda: self.service.started)
        job = self.service.started[-1].work
        self.service.post(fake.opened(job))
        await self.settle()
        return job

    async def quantized(self, layers: int = 7) -> str:
        job = await self.started()
        self.service.play(fake.calibrated(job))
        self.service.play(fake.measured(job))
        self.service.play(fake.quantized(job, layers))
        await self.settle()
        return job


@pytest.fixture
def app(make_app: MakeApp) -> Callable[[], Exl2App]:
    return lambda: make_app(convert_factory=FakeConvert)


# The wizard


async def test_enter_enter_enter_converts_the_first_model(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
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


async def test_every_field_is_checked_while_typing(app: Callable[[], Exl2App], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exl2_tui.screens.convert_wizard.CHECK_DELAY", 1.5)  # a busy machine takes its time over keys
    async with app().run_test(size=SIZE) as pilot:
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


async def test_next_waits_for_the_check(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        place.service.answering = False
        await pilot.press("x", "enter")
        await until(lambda: place.service.drafts[-1][0].source.endswith("x") and screen._timer is None)
        await pilot.pause()
        assert screen._step == 0 and "Checking" in place.said
        place.service.answer()
        await until(lambda: screen._step == 1)


async def test_a_burst_of_keys_reaches_the_fields_it_is_meant_for(app: Callable[[], Exl2App]) -> None:
    """As a terminal delivers what is sent in one go: tab and enter have not done their work when the rest arrives."""
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        place.burst("enter", "tab", "tab", "tab", *"/c.txt", "tab", *"6", "tab", *"64", "tab", "tab", "end", *"-x")
        await until(lambda: screen.draft.work.endswith("-x"))
        draft = screen.draft
        assert screen._step == 1 and (draft.calibration, draft.rows, draft.length) == ("/c.txt", "6", "64")
        assert draft.work.endswith("jobs/nano-chat-4bpw-x") and draft.bits == "4.0"
        await place.checked()


async def test_enter_enter_enter_in_one_go(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        place.burst("n", *"/models/nano-chat", "enter", "enter", "enter")
        await until(lambda: place.service.started)
        assert place.service.started[0].source == "/models/nano-chat"
        await until(lambda: isinstance(place.app.screen, ProgressScreen) and place.app.screen._drawn)


async def test_keys_behind_an_enter_wait_for_the_check_and_escape_drops_them(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
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


async def test_an_earlier_measurement_is_taken_with_one_key(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        screen = await place.wizard()
        await pilot.press("f8")
        assert not screen.draft.measurement  # nothing was found
        place.service.measurement = "/jobs/nano-4/measurement.json"
        await pilot.press("enter", "tab", "right")
        await until(lambda: screen._found is not None and screen._found.measurement)
        assert "Loads in 60.0 MB with 1,024 tokens" in place.text("estimate")
        await pilot.press("f8")
        assert screen.draft.measurement == "/jobs/nano-4/measurement.json"


async def test_an_old_answer_does_not_count(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
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


async def test_other_bits_and_folders_of_ones_own(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
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


async def test_escape_goes_back_and_leaves(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
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


async def test_file_names_are_shown_and_not_obeyed(app: Callable[[], Exl2App]) -> None:
    hostile = "/models/[bold]x[/bold]\x1b[31m\u202e"
    async with app().run_test(size=SIZE) as pilot:
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


# Progress


async def test_progress_from_start_to_report_and_chat(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=(120, 40)) as pilot:
        place = ConvertDriver(pilot)
        job = await place.started()
        place.service.play(fake.calibrated(job))
        place.service.play(fake.measured(job, 13))
        await place.settle()
        assert "● measure 13/17" in place.row("stages") and "✓ calibrate" in place.row("stages")
        assert "Convert 52%" in place.row("header")
        assert "Predicted loss" in place.row("chart-title")
        place.service.play(fake.measured(job))
        place.service.play(fake.quantized(job))
        await place.settle()
        assert "● quantize 8/8" in place.row("stages")
        assert "layer 6 mlp: error .3100" in place.text("notices")
        assert place.table[1].startswith("7 mlp.down_proj")
        place.service.play(fake.judged(job))
        await place.settle()
        report = place.text("report")
        assert "Very close to the original" in report and ".0213" in report and "93.1%" in report
        assert "14.31, was 14.02" in report and "finished" in place.row("title")
        assert "Convert %" not in place.row("header") and "100%" in place.row("bar")
        await pilot.press("c")
        await until(lambda: isinstance(place.app.screen, ChatScreen))
        assert cast(FakeService, place.app.service).loads[-1][0] == f"{job}/nano-chat-4bpw"


async def test_the_cursor_walks_over_the_layers(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.quantized()
        assert "worst .3100 in layer 6 mlp" in place.row("chart-title")
        assert "!" in place.chart[-2]
        await pilot.press("right", "right", "right", "right")
        assert "layer 1 mlp .0288" in place.row("chart-title")
        assert "▲" in place.chart[-2]
        await pilot.press("end")
        assert place.app.screen.query_one(LayerChart).cursor == 15


async def test_worst_first_and_the_log(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.quantized()
        await pilot.press("e")
        assert place.table[1].startswith("6 mlp.") and "!" in place.table[1]
        await pilot.press("l")
        await pilot.pause()
        log = place.app.screen.query_one("#log")
        assert log.display and log.size.height > 5 and not place.app.screen.query_one("#main").display
        await pilot.press("l")
        assert place.app.screen.query_one("#main").display


async def test_pause_and_resume(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        job = await place.quantized(3)
        await pilot.press("p")
        assert ("pause", job) in place.service.calls and place.job.status == "pausing"
        place.service.post(fake.ended(job))
        await place.settle()
        assert "paused" in place.row("title") and "‖ quantize" in place.row("stages")
        await pilot.press("p")
        assert place.service.calls.count(("pause", job)) == 1
        await pilot.press("r")
        assert ("resume", job) in place.service.calls


async def test_a_failure_says_what_to_do(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        job = await place.quantized(3)
        place.service.post(fake.ended(job, "the disk is full", "Free some space."))
        await place.settle()
        assert "✗ the disk is full" in place.text("notices") and "Free some space. r tries" in place.text("notices")
        await pilot.press("r")
        assert ("resume", job) in place.service.calls
        assert "disk" not in place.text("notices")


async def test_cancel_keeps_or_deletes_the_files(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        job = await place.quantized(3)
        await pilot.press("x")
        await until(lambda: isinstance(place.app.screen, ChoiceDialog))
        await pilot.press("enter")  # leave it alone
        assert ("pause", job) not in place.service.calls and place.job.status == "running"
        await pilot.press("x", "down", "enter")
        await pilot.pause()
        assert ("pause", job) in place.service.calls
        place.service.post(fake.ended(job))
        await place.settle()
        await pilot.press("x", "down", "enter")
        await pilot.pause()
        assert ("delete", job) in place.service.calls
        await until(lambda: isinstance(place.app.screen, ConvertScreen))
        assert not place.app.convert.jobs.jobs


async def test_it_goes_on_behind_the_chat(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE, notifications=True) as pilot:
        place = ConvertDriver(pilot)
        job = await place.quantized(3)
        await pilot.press("f2")
        await until(lambda: isinstance(place.app.screen, ChatScreen))
        assert "Convert 80%" in place.row("header")
        place.service.play(fake.quantized(job, 5))
        await place.settle()
        assert "Convert 88%" in place.row("header")
        place.service.play(fake.judged(job))
        await place.settle()
        assert "Convert Settings" in place.row("header").replace("  ", " ")
        assert any("is converted" in toast.message for toast in place.app._notifications)
        place.service.listed = (fake.info(job, status="finished", stage="done", done=25),)
        await pilot.press("f4")
        await until(lambda: isinstance(place.app.screen, ConvertScreen))
        await place.settle()
        await pilot.press("enter")
        await until(lambda: isinstance(place.app.screen, ProgressScreen))
        assert "Very close" in place.text("report")


# The list


async def test_the_list_resumes_after_a_crash(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        place.service.listed = (
            fake.info("/w/done", status="finished", stage="done", done=25, name="small"),
            fake.info("/w/crashed", name="crashed"),
        )
        await pilot.press("g")
        await place.settle()
        listing = place.app.screen.query_one(JobList)
        rows = [str(option.prompt) for option in listing.options]
        assert "crashed" in rows[0] and "paused" in rows[0] and "36%" in rows[0]
        assert "small" in rows[1] and "finished" in rows[1] and "100%" in rows[1]
        assert "Stopped at measure" in place.text("details")
        await pilot.press("r")
        assert ("resume", "/w/crashed") in place.service.calls
        place.service.post(fake.opened("/w/crashed", stage="measure", done=9, name="crashed"))
        await place.settle()
        assert "running" in str(listing.options[0].prompt)
        await pilot.press("j", "c")
        await until(lambda: isinstance(place.app.screen, ChatScreen))
        assert cast(FakeService, place.app.service).loads[-1][0] == "/w/done/model"


async def test_a_job_of_another_process_is_live_and_can_be_paused(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        place.service.listed = (fake.info("/w/other", status="elsewhere"),)
        await pilot.press("g")
        await place.settle()
        await pilot.press("x")  # its files are in use
        assert isinstance(place.app.screen, ConvertScreen)
        await pilot.press("enter")
        await until(lambda: isinstance(place.app.screen, ProgressScreen))
        assert ("look", "/w/other") in place.service.calls
        place.service.post(fake.opened("/w/other", status="elsewhere", stage="quantize", done=17))
        await until(lambda: ("follow", "/w/other") in place.service.calls)
        heard = list(fake.quantized("/w/other", 3))
        place.service.post(JobFollowed("/w/other", tuple((place.app.wall_clock(), event) for event in heard)))
        await place.settle()
        assert "elsewhere" in place.row("title") and "● quantize 3/8" in place.row("stages")
        assert place.table[1].startswith("2 mlp.down_proj")
        await pilot.press("p")
        assert ("pause", "/w/other") in place.service.calls
        place.service.post(fake.opened("/w/other", status="stopped", stage="quantize", done=20))
        await place.settle()
        assert "paused" in place.row("title")


async def test_a_deletion_that_fails_is_said(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE, notifications=True) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        place.service.post(fake.ended("/w/gone", "another process is working in this directory", "Wait for it."))
        await place.settle()
        assert any("another process" in toast.message for toast in place.app._notifications)


# Quitting


async def test_quitting_while_a_job_runs_asks(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.quantized(3)
        await pilot.press("ctrl+q")
        await until(lambda: isinstance(place.app.screen, ChoiceDialog))
        await pilot.press("enter")  # stay
        await until(lambda: isinstance(place.app.screen, ProgressScreen))
        assert place.app.is_running
        await pilot.press("ctrl+q", "down", "enter")
        await until(lambda: place.app._exit)
        place.app.close(0.5)
        assert place.service.closed


async def test_quitting_without_a_job_does_not_ask(app: Callable[[], Exl2App]) -> None:
    async with app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        await pilot.press("ctrl+q")
        await until(lambda: place.app._exit)


# Budgets


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 16), (200, 60)])
async def test_every_size_holds_and_no_screen_has_many_widgets(
    app: Callable[[], Exl2App], size: tuple[int, int]
) -> None:
    async with app().run_test(size=size) as pilot:
        place = ConvertDriver(pilot)
        await place.wizard()
        assert len(list(place.app.screen.walk_children())) < 120
        await pilot.press("enter")
        await pilot.press("enter")
        await pilot.press("enter")
        await until(lambda: place.service.started)
        job = place.service.started[-1].work
        place.service.post(fake.opened(job))
        place.service.play(fake.quantized(job))
        await place.settle()
        assert len(list(place.app.screen.walk_children())) < 40
        await pilot.resize_terminal(size[1] * 2, size[0] // 3)
        await place.settle()
