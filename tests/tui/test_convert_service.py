"""JobService: what is posted, in which order, whatever the core does. A source that pretends; no torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from exl2_tui.convert_draft import ConvertDraft
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import JobError
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import ConvertChecked, JobEnded, JobFinished, JobInfo, JobOpened, JobsListed, StageStarted
from exl2_tui.core.requests import ConvertRequest
from exl2_tui.jobs_service import JobService
from tests.tui import convert_fakes as fake


def request(work: str) -> ConvertRequest:
    return ConvertRequest(source="/models/x", work=work)


LIMIT = 60.0  # seconds; reached only by what never comes


class Source:
    """Runs until it may go on; raises what it is told to. hold_end: cleared, a run that is over still puts away."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.error: BaseException | None = None
        self.deleted: list[str] = []
        self.checks: list[int] = []
        self.hold_check = threading.Event()
        self.hold_check.set()
        self.putting_away = threading.Event()
        self.hold_end = threading.Event()
        self.hold_end.set()

    def run(self, asked: ConvertRequest, fresh: bool, cancel: CancelToken) -> Iterator[Event]:
        try:
            yield fake.opened(asked.work)
            yield StageStarted(asked.work, "measure")
            while not self.go.wait(0.005):
                cancel.check()
            if self.error is not None:
                raise self.error
            yield from fake.judged(asked.work)
        finally:
            self.putting_away.set()
            self.hold_end.wait(LIMIT)

    def request(self, job: str) -> ConvertRequest:
        return request(job)

    def list(self) -> tuple[JobInfo, ...]:
        return (fake.info("/w/a", status="elsewhere"), fake.info("/w/b"))

    def look(self, job: str) -> tuple[JobOpened, int]:
        if job == "/gone":
            raise JobError("there is no job in this directory", file=job)
        return fake.opened(job, status="elsewhere"), 0

    def delete(self, job: str) -> None:
        self.deleted.append(job)

    def check(self, draft: ConvertDraft, token: int) -> ConvertChecked:
        self.hold_check.wait(LIMIT)
        self.checks.append(token)
        if draft.source == "bug":
            raise ZeroDivisionError("oops")
        return ConvertChecked(token, (), "fine")


class Bench:
    """A service, its source, and what it said."""

    def __init__(self) -> None:
        self.source = Source()
        self.events: list[Event] = []
        self.service = JobService(self.events.append, lambda: self.source)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, f"the condition was never met: {self.events}"
            time.sleep(0.003)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.service.close(2.0)


def test_a_job_runs_to_its_end(bench: Bench) -> None:
    bench.source.go.set()
    assert bench.service.start(request("/w/a")) == "/w/a"
    bench.until(lambda: type(bench.events[-1]).__name__ == "JobFinished" if bench.events else False)
    assert isinstance(bench.events[0], JobOpened)
    assert not bench.of(JobEnded)


def test_a_pause_ends_the_run_and_a_resume_starts_another(bench: Bench) -> None:
    bench.service.start(request("/w/a"))
    bench.until(lambda: bench.of(StageStarted))
    bench.service.pause("/w/a")
    bench.until(lambda: bench.of(JobEnded))
    assert bench.events[-1] == JobEnded("/w/a", "paused")
    bench.service.resume("/w/a")
    bench.until(lambda: len(bench.of(JobOpened)) == 2)


def test_jobs_wait_for_each_other_and_a_waiting_one_can_be_paused(bench: Bench) -> None:
    for work in ("/w/a", "/w/b", "/w/c"):
        bench.service.start(request(work))
    bench.service.start(request("/w/b"))  # waits already
    bench.until(lambda: bench.of(StageStarted))
    bench.service.pause("/w/b")
    bench.until(lambda: bench.of(JobEnded))
    bench.source.go.set()
    bench.until(lambda: len(bench.of(JobOpened)) == 2 and type(bench.events[-1]).__name__ == "JobFinished")
    assert [event.job for event in bench.of(JobOpened)] == ["/w/a", "/w/c"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (JobError("the disk is full", file="/w/a/x", hint="Free some."), "the disk is full (x)", "Free some."),
        (MemoryError(), "There is not enough memory", "Close other programs, then resume."),
        (ValueError("odd"), "Internal error: ValueError: odd", "This is a bug in exl2-tui; please report it."),
    ],
)
def test_every_error_becomes_a_message(bench: Bench, error: Exception, message: str, hint: str) -> None:
    bench.source.error = error
    bench.source.go.set()
    bench.service.start(request("/w/a"))
    bench.until(lambda: bench.of(JobEnded))
    assert bench.events[-1] == JobEnded("/w/a", "failed", message, hint)
    bench.source.error = None
    bench.service.resume("/w/a")  # the thread lives
    bench.until(lambda: type(bench.events[-1]).__name__ == "JobFinished")


def test_deleting_a_running_job_stops_it_first(bench: Bench) -> None:
    bench.service.start(request("/w/a"))
    bench.until(lambda: bench.of(StageStarted))
    bench.service.delete("/w/a")
    bench.until(lambda: bench.of(JobsListed))
    kinds = [type(event).__name__ for event in bench.events]
    assert kinds.index("JobEnded") < kinds.index("JobsListed")
    assert bench.source.deleted == ["/w/a"]


def test_the_list_tells_own_jobs_from_foreign_ones(bench: Bench) -> None:
    bench.service.start(request("/w/a"))
    bench.until(lambda: bench.of(StageStarted))
    bench.service.list_jobs()
    bench.until(lambda: bench.of(JobsListed))
    (listed,) = bench.of(JobsListed)
    assert [info.status for info in listed.jobs] == ["running", "stopped"]  # type: ignore[attr-defined]


def test_a_job_that_has_finished_is_not_told_to_run(bench: Bench) -> None:
    """Whoever asks when it is finished must not hear "running": no event would ever correct that."""
    bench.source.hold_end.clear()
    bench.source.go.set()
    bench.service.start(request("/w/a"))
    assert bench.source.putting_away.wait(LIMIT)
    bench.service.list_jobs()
    bench.until(lambda: bench.of(JobsListed))
    assert bench.of(JobsListed)[0].jobs[0].status == "running"  # type: ignore[attr-defined]
    assert not bench.of(JobFinished)
    bench.service.look("/w/a")
    bench.source.hold_end.set()
    bench.until(lambda: bench.of(JobFinished))
    bench.service.list_jobs()
    bench.until(lambda: len(bench.of(JobsListed)) == 2)
    assert bench.of(JobsListed)[1].jobs[0].status != "running"  # type: ignore[attr-defined]
    assert [event.info.status for event in bench.of(JobOpened)].count("running") == 1  # type: ignore[attr-defined]


def test_looking_at_a_job_that_is_gone(bench: Bench) -> None:
    bench.service.look("/gone")
    bench.until(lambda: bench.of(JobEnded))
    assert "no job" in bench.events[-1].message  # type: ignore[attr-defined]


def test_only_the_newest_draft_is_checked(bench: Bench) -> None:
    bench.source.hold_check.clear()
    for token in range(1, 8):
        bench.service.check(ConvertDraft(source="x"), token)
    bench.source.hold_check.set()
    bench.until(lambda: bench.of(ConvertChecked) and bench.events[-1].token == 7)  # type: ignore[attr-defined]
    assert len(bench.source.checks) <= 2


def test_a_bug_while_checking_is_shown_on_the_form(bench: Bench) -> None:
    bench.service.check(ConvertDraft(source="bug"), 1)
    bench.until(lambda: bench.of(ConvertChecked))
    (answer,) = bench.of(ConvertChecked)
    assert not answer.can_start and "ZeroDivisionError" in answer.notes[0].text  # type: ignore[attr-defined]


def test_closing_stops_the_job_and_silences_the_service(bench: Bench) -> None:
    bench.service.start(request("/w/a"))
    bench.until(lambda: bench.of(StageStarted))
    heard = len(bench.events)
    bench.service.close(LIMIT)
    assert bench.source.putting_away.is_set() and bench.service._running is None  # stopped, not waited for
    bench.service.resume("/w/a")
    assert not bench.service._jobs._calls and len(bench.events) == heard
