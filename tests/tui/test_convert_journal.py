"""The journal of a conversion: what is written comes back, whatever cut it short, and a file asks for a pause."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exl2_tui import job_journal
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, JobError
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import JobEnded, JobFinished
from tests.tui import convert_fakes as fake


def run(work: Path, events: Iterator[Event], *, resumed: bool = False) -> list[Event]:
    return list(job_journal.recorded(work, events, CancelToken(), resumed=resumed))


def test_what_was_reported_is_read_again(tmp_path: Path) -> None:
    job = str(tmp_path)
    told = run(tmp_path, fake.measured(job)) + run(tmp_path, fake.judged(job), resumed=True)
    heard, offset = job_journal.read(tmp_path)
    assert [event for _, event in heard] == told
    assert isinstance(job_journal.last_end(heard), JobFinished)
    assert job_journal.read(tmp_path, offset) == ([], offset)
    run(tmp_path, fake.calibrated(job))  # started anew
    assert len(job_journal.read(tmp_path, offset)[0]) == 3


def test_a_line_cut_short_waits_and_spoils_no_other(tmp_path: Path) -> None:
    job = str(tmp_path)
    told = run(tmp_path, fake.calibrated(job))
    journal = tmp_path / job_journal.JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"time": 1.0, "event": "Sta')
    assert job_journal.read(tmp_path)[1] == len(whole)
    more = run(tmp_path, fake.judged(job), resumed=True)
    assert [event for _, event in job_journal.read(tmp_path)[0]] == told + more


@pytest.mark.parametrize(
    ("error", "end"),
    [(CancelledError(), JobEnded("", "paused")), (JobError("it is full", file="/a/b"), JobEnded("", "failed"))],
)
def test_every_end_but_death_is_written(tmp_path: Path, error: Exception, end: JobEnded) -> None:
    def broken() -> Iterator[Event]:
        yield from fake.calibrated(str(tmp_path))
        raise error

    with pytest.raises(type(error)):
        run(tmp_path, broken())
    last = job_journal.last_end(job_journal.read(tmp_path)[0])
    assert isinstance(last, JobEnded) and last.reason == end.reason


def test_a_file_asks_for_a_pause(tmp_path: Path) -> None:
    cancel = CancelToken()
    job_journal.ask_to_pause(tmp_path)  # left over: asks nobody

    def working() -> Iterator[Event]:
        yield from fake.calibrated(str(tmp_path))
        assert not cancel.cancelled
        job_journal.ask_to_pause(tmp_path)
        while True:
            cancel.check()

    with pytest.raises(CancelledError):
        list(job_journal.recorded(tmp_path, working(), cancel, resumed=False))
    assert not (tmp_path / job_journal.PAUSE).exists()
