"""ProgressScreen: one conversion from its start to its report. A viewer: it may leave and come back at any time."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from exl2_tui.convert_place import ConvertPlace
from exl2_tui.hints import keys_of
from exl2_tui.job_points import KINDS_NEEDED, OUTLIER, median_error, placed
from exl2_tui.job_state import JobState
from exl2_tui.keymap import bindings
from exl2_tui.state import Changes
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.header import Header
from exl2_tui.widgets.job_facts import bar, chart_title, notices, report, side, title
from exl2_tui.widgets.key_row import KeyRow
from exl2_tui.widgets.layer_chart import LayerChart
from exl2_tui.widgets.layer_table import LayerTable
from exl2_tui.widgets.log_pane import LogPane
from exl2_tui.widgets.stage_list import stages

TICK_SECONDS = 1.0
SPACIOUS = 36  # rows from which the chart is larger
CHART_ROWS = (8, 11)  # three decades of two or three rows, and two rows below
ROOMY = 30  # rows from which warnings may take more than one


class ProgressScreen(Screen[None]):
    """Top to bottom: how far, what is wrong or what came out, how good each layer is, the log."""

    HELP = (
        "How far the conversion is, and the error of each layer on a log axis: lower is better. The arrow keys move "
        "the cursor of the chart. Leaving this screen stops nothing."
    )
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("job")]
    AUTO_FOCUS = "LayerChart"

    def __init__(self, place: ConvertPlace, job_name: str) -> None:
        super().__init__(id="job")
        self._place = place
        self._drawn = False  # events may come before there is anything to draw on
        self.job_name = job_name
        self._worst_first = False
        self._measuring: bool | None = None  # which chart the person chose; None: the one of the current stage

    def compose(self) -> ComposeResult:
        yield Header("Convert")
        yield Row(id="title")
        yield Row(id="bar")
        yield Row(id="stages")
        yield Static("", id="notices", markup=False)
        yield Static("", id="report", markup=False)
        with Horizontal(id="main"):
            with Vertical(id="left"):
                yield Row(id="chart-title")
                yield LayerChart(id="chart")
                yield LayerTable(id="table")
            yield Static("", id="side", markup=False)
        yield LogPane(id="log")
        yield StatusRow(id="status")
        yield KeyRow()

    def on_mount(self) -> None:
        self._drawn = True
        self.on_resize()
        self.set_interval(TICK_SECONDS, self._tick)
        self.repaint(Changes(model=True))
        self.jobs_changed()

    def on_screen_resume(self) -> None:
        if self._drawn:
            self.repaint(Changes(model=True))
            self.jobs_changed()

    def on_resize(self) -> None:
        if self._drawn:
            self.query_one(LayerChart).styles.height = CHART_ROWS[self.size.height >= SPACIOUS]
            self.repaint(Changes(model=True))
        self.call_after_refresh(self.jobs_changed)

    @property
    def job(self) -> JobState | None:
        return self._place.jobs.jobs.get(self.job_name)

    def repaint(self, changes: Changes) -> None:
        if not self._drawn:
            return
        if changes.model:
            self.query_one(Header).show(self._place.app.session)
        if changes.flash:
            self._say(changes.flash)

    def jobs_changed(self) -> None:
        """Draws everything that may have changed; nothing while another screen covers this one."""
        job = self.job
        if job is None or not self._drawn or not self.is_current:
            return
        self._draw_times(job)
        self.query_one("#stages", Row).put(Content.assemble("  ", stages(job, self.size.width - 2)))
        rows = 4 if self.size.height >= ROOMY else 1 if job.results else 2
        self._put("#notices", notices(job, rows, keys_of(self)))
        self._put("#report", report(job, self.size.width, keys_of(self)))
        self._draw_chart(job)
        flagged = frozenset(point.key for point in job.points.values() if point.outlier)
        running = job.working
        layers = job.rows or job.measured_rows()
        self.query_one(LayerTable).show(layers, flagged, worst_first=self._worst_first, running=running)
        self.query_one(LogPane).feed(job)
        self.refresh_bindings()

    def _draw_times(self, job: JobState) -> None:
        now = self._place.app.clock()
        self.query_one("#title", Row).put(*title(job, now))
        self.query_one("#bar", Row).put(bar(job, now, self.size.width))
        self.query_one("#side", Static).update(side(job, now, list(self._place.jobs.jobs.values())), layout=False)

    def _draw_chart(self, job: JobState) -> None:
        measuring = self._shows_measuring(job)
        points = job.measured if measuring else job.points
        limit = 0.0 if measuring or len(points) < KINDS_NEEDED else OUTLIER * median_error(points)
        chart = self.query_one(LayerChart)
        chart.show(placed(points, job.layers), limit)
        name = self.query_one("#chart-title", Row)
        name.put(*chart_title(job, chart.selected, measuring=measuring, width=name.content_size.width))

    def _shows_measuring(self, job: JobState) -> bool:
        if self._measuring is not None:
            return self._measuring
        return not job.points and job.stage not in ("quantize", "compile", "evaluate", "done")

    def _put(self, query: str, content: Content) -> None:
        part = self.query_one(query, Static)
        part.display = bool(content)
        part.update(content)

    def on_layer_chart_moved(self) -> None:
        if self.job is not None:
            self._draw_chart(self.job)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        job = self.job
        if job is None:
            return action == "leave"
        if action in ("chat", "copy_path"):
            return bool(job.models)
        if action in ("pause", "resume"):
            return job.allows(action)
        if action == "cancel":
            return job.allows("delete")
        if action == "source":
            return bool(job.measured and job.points)
        return True

    # Actions

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_pause(self) -> None:
        if self.job is not None:
            self._say(self._place.jobs.pause(self.job))
            self.jobs_changed()

    def action_resume(self) -> None:
        if self.job is not None:
            self._say(self._place.jobs.resume(self.job))
            self.jobs_changed()

    def action_cancel(self) -> None:
        if self.job is not None:
            self._place.ask_delete(self.job, self._after_cancel)

    def _after_cancel(self) -> None:
        if self.job is None:
            self.dismiss(None)
        else:
            self.jobs_changed()

    def action_log(self) -> None:
        self.toggle_class("-logged")

    def action_order(self) -> None:
        self._worst_first = not self._worst_first
        self.query_one(LayerTable).scroll_home(animate=False)
        self.jobs_changed()
        self._say("Largest error first" if self._worst_first else "Newest first")

    def action_source(self) -> None:
        if self.job is not None:
            self._measuring = not self._shows_measuring(self.job)
            self._draw_chart(self.job)

    def action_chat(self) -> None:
        if self.job is not None and self.job.models:
            self._place.chat_with(self.job.models[-1])

    def action_copy_path(self) -> None:
        if self.job is not None and self.job.models:
            self._place.app.copy(self.job.models[-1], "the folder")

    def _say(self, text: str) -> None:
        self.query_one(StatusRow).say(text)

    def _tick(self) -> None:
        """Clocks go on; a conversion of another process is looked at again."""
        job = self.job
        if job is None or not self.is_current:
            return
        self._place.jobs.follow()
        if job.working:
            self._draw_times(job)
