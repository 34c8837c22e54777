"""Conversions through the service and the screens with the real core: a tiny model, no pretending."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.widgets import Input

from exl2_tui.app import Exl2App
from exl2_tui.convert_check import check
from exl2_tui.convert_draft import ConvertDraft, make_request
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import (
    ConvertChecked,
    JobEnded,
    JobFinished,
    JobOpened,
    JobProgress,
    JobsListed,
    LayerQuantized,
)
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.job_state import JobState
from exl2_tui.jobs_service import JobService
from exl2_tui.screens.convert import ConvertScreen
from exl2_tui.screens.convert_progress import ProgressScreen
from exl2_tui.screens.convert_wizard import WizardScreen
from tests.quant.tiny import LAYERS, make_tiny
from tests.tui.conftest import MakeApp
from tests.tui.driver import until


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def draft(tiny: Path, tmp_path: Path) -> ConvertDraft:
    """A conversion of seconds: its own text, few rows."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"Line {n} of a text about nothing much." for n in range(400)))
    return ConvertDraft(
        str(tiny), "4.0", "6", "refined", str(text), "6", "64", "", str(tmp_path / "work"), str(tmp_path / "out")
    )


def notes(answer: ConvertChecked, level: str) -> dict[str, str]:
    return {note.field: note.text for note in answer.notes if note.level == level}


# Checks


def test_a_good_draft_can_start(draft: ConvertDraft) -> None:
    answer = check(draft, 7)
    assert answer.token == 7 and answer.can_start and "2 layers" in answer.facts
    assert notes(answer, "ok").keys() == {"calibration", "work", "output"}
    assert answer.estimate is not None and answer.estimate.peak_memory > 0 and answer.estimate.seconds > 0
    sizes = dict(answer.sizes)
    assert sizes[2.5] < sizes[4.0] < sizes[8.0] < answer.source_size
    assert answer.loads is not None and answer.loads[0] <= 8192 and answer.loads[1] > sizes[4.0]
    more = check(dataclasses.replace(draft, bits="4, 8"), 8).loads
    assert more is not None and more[1] > answer.loads[1]  # of the largest of them


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"source": "/nowhere/at/all"}, "source", "no such folder"),
        ({"bits": "9"}, "bits", "between 2 and 8"),
        ({"calibration": "/nowhere.txt"}, "calibration", "no such file"),
        ({"measurement": "/nowhere.json"}, "measurement", "cannot be read"),
        ({"work": __file__ + "/below"}, "work", "is a file"),
    ],
)
def test_what_cannot_work_is_said_at_its_field(
    draft: ConvertDraft, change: dict[str, str], field: str, said: str
) -> None:
    answer = check(dataclasses.replace(draft, **change), 1)
    assert said in notes(answer, "error")[field] and not answer.can_start


def test_head_bits_that_are_chosen_with_the_rest(draft: ConvertDraft, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = dataclasses.replace(draft, head_bits="auto")
    answer = check(auto, 1)
    assert answer.can_start and answer.sizes == check(draft, 2).sizes
    assert "as large as with 6" in notes(answer, "info")["head_bits"]
    monkeypatch.setattr("exl2_tui.core.quant.preflight.ROUNDED_HEAD", 1000)
    assert "too large" in notes(check(auto, 3), "error")["head_bits"] and check(draft, 4).can_start


def test_a_measurement_without_the_head_cannot_choose_its_bits(draft: ConvertDraft, tmp_path: Path) -> None:
    file = tmp_path / "measurement.json"
    given = dataclasses.replace(draft, measurement=str(file))
    job = ConvertJob.open(dataclasses.replace(make_request(draft), measure_to=str(file), output=None))
    list(job.run())
    job.close()
    assert check(dataclasses.replace(given, head_bits="auto", work=draft.work + "2"), 1).can_start
    measured = json.loads(file.read_text())
    del measured["linears"]["lm_head"]
    file.write_text(json.dumps(measured))
    assert check(dataclasses.replace(given, work=draft.work + "2"), 2).can_start
    answer = check(dataclasses.replace(given, head_bits="auto", work=draft.work + "2"), 3)
    assert "head bits" in notes(answer, "error")["measurement"] and not answer.can_start


def test_too_little_memory_is_said_before_anything_starts(draft: ConvertDraft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exl2_tui.core.quant.forecast.available_memory", lambda: 100_000_000)
    answer = check(draft, 1)
    assert "100 MB free" in notes(answer, "error")["rows"] and not answer.can_start


def test_a_quantized_model_is_refused_with_the_remedy(draft: ConvertDraft, nano_chat_exl2: Path) -> None:
    answer = check(dataclasses.replace(draft, source=str(nano_chat_exl2)), 1)
    assert "already quantized" in notes(answer, "error")["source"]
    assert "original" in notes(answer, "error")["source"]


def test_folders_in_use_are_refused(draft: ConvertDraft, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "something").touch()
    (tmp_path / "work").touch()
    answer = check(draft, 1)
    assert [note.field for note in answer.notes if note.taken] == ["output"]  # beside a file nothing is to be done
    found = notes(answer, "error")
    assert "not empty" in found["output"] and "not a folder" in found["work"]


# The service


class Bench:
    """The real service and what it said."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.service = JobService(self.events.append)
        self._waited_for = 0  # of the events

    def wait(self, kind: type[Event], seconds: float = 300.0) -> Event:
        """The next event of this kind behind the one that was waited for before."""
        end = time.monotonic() + seconds
        while True:
            for event in self.events[self._waited_for :]:
                self._waited_for += 1
                if isinstance(event, kind):
                    return event
                assert not (isinstance(event, JobEnded) and kind is not JobEnded), event
            assert time.monotonic() < end, self.events[-3:]
            time.sleep(0.005)


def test_paused_listed_resumed_finished_and_deleted(draft: ConvertDraft) -> None:
    bench = Bench()
    job = bench.service.start(make_request(draft))
    bench.wait(JobProgress)
    bench.service.pause(job)
    ended = bench.wait(JobEnded)
    assert ended == JobEnded(job, "paused")

    bench.service.list_jobs()
    listed = bench.wait(JobsListed)
    assert isinstance(listed, JobsListed)
    (info,) = listed.jobs
    assert (info.job, info.status, info.bits) == (job, "stopped", (4.0,)) and info.total > 0

    resumed = check(draft, 1)
    assert "Goes on with the conversion" in notes(resumed, "warning").get("work", "")

    bench.service.resume(job)
    finished = bench.wait(JobFinished)
    assert isinstance(finished, JobFinished) and finished.paths == (draft.output,) and finished.broken == 0
    opened = [event for event in bench.events if isinstance(event, JobOpened)]
    assert [event.info.status for event in opened] == ["running", "running"]

    bench.service.look(job)
    seen = bench.wait(JobOpened)
    assert isinstance(seen, JobOpened) and seen.info.status == "finished"
    state = JobState.opened(seen, 0.0)
    assert len(state.rows) == 7 * LAYERS + 1 and state.models == [draft.output]
    live = [event for event in bench.events if isinstance(event, LayerQuantized)]
    assert {row.key: row.bpw for row in state.rows} == pytest.approx({row.key: row.bpw for row in live})

    another = dataclasses.replace(draft, work=draft.work + "-2", output=draft.output + "-2")
    offered = check(another, 2)
    assert offered.measurement == str(Path(job) / "measurement.json")
    assert notes(offered, "info")["measurement"].endswith(" is in work")
    assert not check(dataclasses.replace(another, recipe="classic"), 3).measurement
    used = check(dataclasses.replace(another, measurement=offered.measurement), 4)
    assert "measurement" in notes(used, "ok") and not used.measurement

    bench.service.delete(job)
    gone = bench.wait(JobsListed)
    assert isinstance(gone, JobsListed) and gone.jobs == ()
    assert not (Path(job) / "job.json").exists() and (Path(draft.output) / "config.json").exists()
    bench.service.close(60.0)


def test_a_damaged_job_is_listed_as_such_and_can_be_deleted(draft: ConvertDraft) -> None:
    bench = Bench()
    job = bench.service.start(make_request(draft))
    bench.wait(JobProgress)
    bench.service.pause(job)
    bench.wait(JobEnded)
    (Path(job) / "job.json").write_text("{ not json")
    bench.service.list_jobs()
    listed = bench.wait(JobsListed)
    assert isinstance(listed, JobsListed) and listed.jobs[0].status == "damaged" and listed.jobs[0].problem
    bench.service.delete(job)
    gone = bench.wait(JobsListed)
    assert isinstance(gone, JobsListed) and gone.jobs == ()
    bench.service.close(60.0)


# The whole way


@pytest.mark.slow
async def test_from_the_wizard_to_the_report(
    make_app: MakeApp, draft: ConvertDraft, tiny: Path, tmp_path: Path
) -> None:
    app: Exl2App = make_app(convert_factory=JobService, clock=time.monotonic, wall_clock=time.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(lambda: app.service is not None)
        await pilot.press("f4")
        await until(lambda: isinstance(app.screen, ConvertScreen))
        await pilot.pause()
        await pilot.press("n")
        await until(lambda: isinstance(app.screen, WizardScreen))
        await pilot.pause()
        app.screen.query_one("#source-path", Input).value = str(tiny)
        await pilot.pause()
        step: Callable[[], int] = lambda: app.screen._step  # type: ignore[attr-defined]  # noqa: E731
        await pilot.press("enter")
        await until(lambda: step() == 1)
        for name in ("calibration", "rows", "length", "work", "output"):
            app.screen.query_one(f"#{name}", Input).value = getattr(draft, name)
        await pilot.press("enter")
        await until(lambda: step() == 2)
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, ProgressScreen))
        job = app.screen.job  # type: ignore[attr-defined]
        await until(lambda: app.screen.job.status == "finished", 300)  # type: ignore[attr-defined]
        await pilot.pause()
        assert "KL divergence" in str(app.screen.query_one("#report").render())
        assert job.job == draft.work and (tmp_path / "out" / "report.json").is_file()
        app.close(2.0)
