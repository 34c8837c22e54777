"""The Convert place as a person uses it, with conversions that only pretend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from exl2_tui.core.events import Event
from exl2_tui.core.job_events import JobFollowed
from exl2_tui.core.quant.registry import FILE
from exl2_tui.screens.chat import ChatScreen
from exl2_tui.screens.convert import ConvertScreen
from exl2_tui.screens.convert_progress import ProgressScreen
from exl2_tui.screens.dialogs import ChoiceDialog
from exl2_tui.widgets.job_list import JobList
from exl2_tui.widgets.layer_chart import LayerChart
from exl2_tui.widgets.log_pane import LogPane
from tests.tui import convert_fakes as fake
from tests.tui.conftest import MakeApp
from tests.tui.convert_driver import ConvertDriver
from tests.tui.convert_fakes import FakeConvert
from tests.tui.driver import until
from tests.tui.fakes import FakeService

SIZE = (80, 24)


async def test_what_was_interrupted_is_told_at_the_start(convert_app: MakeApp, home: Path) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await until(lambda: place.app.service is not None)
        assert place.app.convert._service is None  # nobody ever started a conversion: nothing is read
    (home / FILE).write_text("[]")

    def factory(post: Callable[[Event], None]) -> FakeConvert:
        service = FakeConvert(post)
        service.listed = (fake.info("/jobs/one", status="interrupted"),)
        return service

    async with convert_app(convert_factory=factory).run_test(size=(120, 24)) as pilot:
        place = ConvertDriver(pilot)
        await until(lambda: "The conversion of nano-chat was interrupted: f4 and r go on with it" in place.said)


async def test_progress_from_start_to_report_and_chat(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=(120, 40)) as pilot:
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


async def test_the_cursor_walks_over_the_layers(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.quantized()
        assert "worst .3100 in layer 6 mlp" in place.row("chart-title")
        assert "!" in place.chart[-2]
        await pilot.press("right", "right", "right", "right")
        assert "layer 1 mlp .0288" in place.row("chart-title")
        assert "▲" in place.chart[-2]
        await pilot.press("end")
        assert place.app.screen.query_one(LayerChart).cursor == 15


async def test_worst_first_and_the_log(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.quantized()
        await pilot.press("e")
        assert place.table[1].startswith("6 mlp.") and "!" in place.table[1]
        await pilot.press("l")
        await pilot.pause()
        log = place.app.screen.query_one("#log", LogPane)
        assert log.display and log.size.height > 5 and not place.app.screen.query_one("#main").display
        assert any("6 mlp.down_proj" in line.text and "error .3100" in line.text for line in log.lines)  # not wrapped
        await pilot.resize_terminal(60, 24)
        await pilot.pause()
        assert max(line.cell_length for line in log.lines) <= 60
        await pilot.press("l")
        assert place.app.screen.query_one("#main").display


async def test_pause_and_resume(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
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


async def test_a_failure_says_what_to_do(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        job = await place.quantized(3)
        place.service.post(fake.ended(job, "the disk is full", "Free some space."))
        await place.settle()
        assert "✗ the disk is full" in place.text("notices") and "Free some space. r tries" in place.text("notices")
        await pilot.press("r")
        assert ("resume", job) in place.service.calls
        assert "disk" not in place.text("notices")


async def test_cancel_keeps_or_deletes_the_files(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
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


async def test_it_goes_on_behind_the_chat(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE, notifications=True) as pilot:
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


async def test_the_list_resumes_after_a_crash(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
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


async def test_a_job_of_another_process_is_live_and_can_be_paused(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
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


async def test_a_deletion_that_fails_is_said(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE, notifications=True) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        place.service.post(fake.ended("/w/gone", "another process is working in this directory", "Wait for it."))
        await place.settle()
        assert any("another process" in toast.message for toast in place.app._notifications)


async def test_quitting_while_a_job_runs_asks(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
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


async def test_quitting_without_a_job_does_not_ask(convert_app: MakeApp) -> None:
    async with convert_app().run_test(size=SIZE) as pilot:
        place = ConvertDriver(pilot)
        await place.open()
        await pilot.press("ctrl+q")
        await until(lambda: place.app._exit)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 16), (200, 60)])
async def test_every_size_holds_and_no_screen_has_many_widgets(convert_app: MakeApp, size: tuple[int, int]) -> None:
    async with convert_app().run_test(size=size) as pilot:
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
