"""ConvertScreen: every conversion of this machine, and what can be done with the one under the cursor."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from exl2_tui.convert_place import ConvertPlace
from exl2_tui.hints import keys_of
from exl2_tui.job_state import JobState
from exl2_tui.keymap import bindings
from exl2_tui.state import Changes
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.header import Header
from exl2_tui.widgets.job_list import JobList, heading, job_facts, nothing_yet
from exl2_tui.widgets.key_row import KeyRow

TICK_SECONDS = 1.0
LOOK_TICKS = 5  # how often it is looked for conversions that were started elsewhere


class ConvertScreen(Screen[None]):
    """The Convert place."""

    HELP = (
        "Conversions make EXL2 models of float16 ones. They run in the background and keep what is finished: one that "
        "was paused, or whose program ended, goes on where it was. Enter shows how far one is and how good its layers "
        "are."
    )
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("convert")]

    def __init__(self, place: ConvertPlace) -> None:
        super().__init__(id="convert")
        self._place = place
        self._ticks = 0
        self._drawn = False  # events may come before there is anything to draw on

    def compose(self) -> ComposeResult:
        yield Header("Convert")
        yield Row(id="title")
        yield Row(id="columns")
        yield JobList(id="list")
        with Vertical(id="bottom"):
            yield Static("", id="details", markup=False)
            yield StatusRow(id="status")
        yield KeyRow()

    def on_mount(self) -> None:
        self._drawn = True
        self.query_one(JobList).focus()
        self.set_interval(TICK_SECONDS, self._tick)
        self.repaint(Changes(model=True))
        self.jobs_changed()

    def on_screen_resume(self) -> None:
        if self._drawn:
            self.repaint(Changes(model=True))
            self.jobs_changed()

    def on_resize(self) -> None:
        self.jobs_changed()

    def repaint(self, changes: Changes) -> None:
        if not self._drawn:
            return
        if changes.model:
            self.query_one(Header).show(self._place.app.session)
        if changes.flash:
            self.query_one(StatusRow).say(changes.flash)

    def jobs_changed(self) -> None:
        """Draws the list again, if it is in view."""
        if not self._drawn or not self.is_current:
            return
        jobs = list(self._place.jobs.jobs.values())
        listing = self.query_one(JobList)
        listing.show(jobs, self._place.app.clock())
        count = f"{len(jobs)} conversion" + ("" if len(jobs) == 1 else "s")
        self.query_one("#title", Row).put(
            Content.styled("  Conversions", "bold"), Content.styled(f"{count}  " if jobs else "", "$secondary")
        )
        self.query_one("#columns", Row).put(heading(listing.room) if jobs else Content(""))
        self._show_details()
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what makes sense for the conversion under the cursor is in the footer."""
        job = self._at_cursor()
        if action in ("pause", "resume", "delete"):
            return job is not None and job.allows(action)
        if action == "chat":
            return job is not None and bool(job.models)
        return True

    def on_option_list_option_highlighted(self) -> None:
        self._show_details()
        self.refresh_bindings()

    def on_option_list_option_selected(self) -> None:
        job = self._at_cursor()
        if job is not None and job.status != "damaged":
            self._place.show(job)

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_new(self) -> None:
        self._place.wizard()

    def action_refresh(self) -> None:
        self._say("Looking for conversions")
        self._place.jobs.refresh()

    def action_move(self, step: int) -> None:
        listing = self.query_one(JobList)
        if step > 0:
            listing.action_cursor_down()
        else:
            listing.action_cursor_up()

    def action_pause(self) -> None:
        job = self._at_cursor()
        if job is not None:
            self._say(self._place.jobs.pause(job))
            self.jobs_changed()

    def action_resume(self) -> None:
        job = self._at_cursor()
        if job is not None:
            self._say(self._place.jobs.resume(job))
            self.jobs_changed()

    def action_delete(self) -> None:
        job = self._at_cursor()
        if job is not None:
            self._place.ask_delete(job, self.jobs_changed)

    def action_chat(self) -> None:
        job = self._at_cursor()
        if job is not None and job.models:
            self._place.chat_with(job.models[-1])

    def _at_cursor(self) -> JobState | None:
        name = self.query_one(JobList).at_cursor
        return self._place.jobs.jobs.get(name) if name is not None else None

    def _show_details(self) -> None:
        job = self._at_cursor()
        details = self.query_one("#details", Static)
        if job is not None:
            details.update(job_facts(job, self._place.app.clock(), keys_of(self)))
        else:
            details.update(nothing_yet(self._place.jobs.listed, keys_of(self)))

    def _say(self, text: str) -> None:
        self.query_one(StatusRow).say(text)

    def _tick(self) -> None:
        """Times pass while something runs, and other processes start conversions."""
        if not self.is_current:
            return
        self._ticks += 1
        if self._ticks % LOOK_TICKS == 0:
            self._place.jobs.refresh()
        if self._place.jobs.follow() or self._place.running is not None:
            self.jobs_changed()
