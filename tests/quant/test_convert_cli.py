"""`exl2-tui convert` and `exl2-tui jobs`, in this process and, for signals, in one of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from exl2_tui import job_journal
from exl2_tui.cli import app, conversion
from exl2_tui.cli.conversion import describe, duration
from exl2_tui.cli.convert import parse_bits, parse_head_bits
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, ConfigError, JobError, NotFoundError
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import JobEnded, JobEstimate, JobProgress
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.core.requests import ConvertRequest


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("EXL2_TUI_HOME", str(tmp_path / "home"))
    return CliRunner()


SMALL = ("-r", "4", "-l", "64", "-mr", "2", "-ml", "48")


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_convert_prints_events_and_jobs_lists_resumes_and_deletes(run: CliRunner, tiny: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    done = run.invoke(app, ["convert", "-i", str(tiny), "-o", str(work), "-b", "4.5,6", *SMALL, "--json"])
    assert done.exit_code == 0, done.output
    events = read(done.stdout)
    assert [events[0]["event"], events[-1]["event"]] == ["JobEstimate", "JobFinished"]
    assert [Path(path).name for path in events[-1]["paths"]] == ["tiny-4.5bpw", "tiny-6bpw"]
    assert all((Path(path) / "report.md").is_file() for path in events[-1]["paths"])
    kinds = {event["event"] for event in events}
    assert kinds >= {
        "StageStarted", "CalibrationReady", "LayerMeasured", "Allocated", "LayerQuantized", "Checkpointed", "Evaluated",
        "JobProgress", "ModelWritten",
    }  # fmt: skip
    steps = [event["done"] for event in events if event["event"] == "JobProgress"]
    assert steps == sorted(steps) and steps[-1] == 9 and {event.get("total", 9) for event in events} == {9}

    listed = json.loads(run.invoke(app, ["jobs", "--json"]).stdout)
    assert [(job["stage"], job["running"], len(job["models"])) for job in listed] == [("done", False, 2)]
    assert "finished" in run.invoke(app, ["jobs"]).stdout
    again = run.invoke(app, ["jobs", "resume", "work"])
    assert again.exit_code == 0 and "tiny-4.5bpw" in again.stdout
    assert isinstance(run.invoke(app, ["jobs", "delete", str(work), "--json"]).exception, ConfigError)
    asked = run.invoke(app, ["jobs", "delete", str(work)], input="n\n")
    assert "with 2 finished models" in asked.stdout and work.exists()
    deleted = run.invoke(app, ["jobs", "delete", str(work), "-y", "--json"])
    assert deleted.exit_code == 0 and json.loads(deleted.stdout) == {"deleted": str(work)}
    assert not work.exists() and json.loads(run.invoke(app, ["jobs", "list", "--json"]).stdout) == []
    assert isinstance(run.invoke(app, ["jobs", "resume", str(work)]).exception, NotFoundError)


def test_the_other_options_reach_the_job(run: CliRunner, tiny: Path, tmp_path: Path) -> None:
    measured = tmp_path / "measured.json"
    first = ["convert", "-i", str(tiny), "-o", str(tmp_path / "a"), "--recipe", "classic", *SMALL]
    assert run.invoke(app, [*first, "-om", str(measured)]).exit_code == 0
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"body": f"Sentence {n} of some text."}) for n in range(90)))
    command = [
        "convert", "-i", str(tiny), "-o", str(tmp_path / "b"), "-c", str(text), "--column", "body", "-b", "5",
        "-m", str(measured), "-cf", str(tmp_path / "out"), "-hb", "8", "-ss", "0", "--recipe", "classic",
        "--allocation", "largest", "--device", "cpu", *SMALL,
    ]  # fmt: skip
    done = run.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "Measure" not in done.stderr and "text.jsonl" in done.stderr and done.stdout.strip() == str(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["head_bits"] == 8 and config["recipe"] == "classic" and config["bits"] == 5.0
    fresh = run.invoke(app, [*command, "-nr", "--json"])  # the directory is this job's own
    assert fresh.exit_code == 0 and read(fresh.stdout)[0]["event"] == "JobEstimate"


def test_an_interrupted_job_is_resumed_by_name(run: CliRunner, tiny: Path, tmp_path: Path) -> None:
    work = tmp_path / "cut"
    request = ConvertRequest(source=str(tiny), work=str(work), bits=(4.0,), rows=4, length=64, measure_rows=2)
    job = ConvertJob.open(request)
    for event in job.run():
        if type(event).__name__ == "Checkpointed":
            break
    job.close()
    resumed = run.invoke(app, ["jobs", "resume", str(work)])
    assert resumed.exit_code == 0, resumed.output
    assert "KL divergence" in resumed.stderr and "tiny-4bpw" in resumed.stdout
    other = run.invoke(app, ["convert", "-i", str(tiny), "-o", str(work), "-b", "5", *SMALL, "--json"])
    assert isinstance(other.exception, JobError) and "bits" in str(other.exception)
    ended = read(other.stdout)[-1]
    assert ended["event"] == "JobEnded" and ended["reason"] == "failed" and "-nr" in ended["hint"]


def test_a_job_that_does_not_fit_says_what_it_needs_and_leaves_nothing(
    run: CliRunner, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exl2_tui.core.quant.forecast.available_memory", lambda: 100 << 20)
    work = tmp_path / "new" / "work"
    refused = run.invoke(app, ["convert", "-i", str(tiny), "-o", str(work), *SMALL, "--json"])
    told = read(refused.stdout)
    assert [event["event"] for event in told] == ["JobEstimate", "JobEnded"]
    assert told[0]["available_memory"] == 100 << 20 and "-r" in told[1]["hint"]
    assert not work.parent.exists()


@pytest.mark.parametrize(
    ("number", "when", "status"),
    [(signal.SIGINT, "StageStarted", 130), (signal.SIGTERM, "LayerMeasured", 143), (signal.SIGINT, "Evaluated", 130)],
)
def test_signals_stop_a_job_that_goes_on(
    run: CliRunner, tiny: Path, tmp_path: Path, number: signal.Signals, when: str, status: int
) -> None:
    command = ["convert", "-i", str(tiny), "-o", str(tmp_path / "work"), *SMALL, "--json"]
    started = [sys.executable, "-m", "exl2_tui", *command]
    single = {**os.environ, "OMP_NUM_THREADS": "1"}  # tiny matrices gain nothing from threads
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=single) as process:
        assert process.stdout is not None and process.stderr is not None
        last = {}
        for line in process.stdout:
            last = json.loads(line)
            if last["event"] == when:
                process.send_signal(number)
        assert process.wait() == status
        assert last["event"] == "JobEnded" and last["reason"] == "paused"
        assert "jobs resume" in process.stderr.read()
    assert run.invoke(app, command).exit_code == 0


def test_a_computation_that_cannot_be_interrupted_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One factorisation of a very wide layer does not look at the token for seconds."""
    forever = threading.Event()
    inside = threading.Event()

    class Stuck:
        work = SimpleNamespace(path=tmp_path)
        resumed = False

        @classmethod
        def open(cls, request: ConvertRequest, *, fresh: bool) -> Stuck:
            return cls()

        def run(self, cancel: CancelToken) -> Iterator[Event]:
            inside.set()
            forever.wait()
            yield from ()

        def close(self) -> None: ...

    monkeypatch.setattr("exl2_tui.core.quant.job.ConvertJob", Stuck)
    monkeypatch.setattr("exl2_tui.core.quant.registry.remember", lambda *_: None)
    monkeypatch.setattr(conversion, "PATIENCE", 0.0)
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)

    def interrupt() -> None:
        inside.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(CancelledError):
        conversion.run_job(ConvertRequest(source="a", work=str(tmp_path)), fresh=False, json=False)
    assert left == [130]
    ended = job_journal.last_end(job_journal.read(tmp_path)[0])
    assert isinstance(ended, JobEnded) and ended.reason == "paused"
    forever.set()


def test_a_model_is_named_by_its_directory_or_its_name(
    run: CliRunner, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ConvertRequest] = []
    monkeypatch.setattr("exl2_tui.cli.convert.run_job", lambda request, **_: asked.append(request))
    assert run.invoke(app, ["models", "add", str(tiny.parent)]).exit_code == 0
    for source in (str(tiny), tiny.name):
        assert run.invoke(app, ["convert", "-i", source, "-o", str(tmp_path / "work")]).exit_code == 0
    assert [request.source for request in asked] == [str(tiny)] * 2
    refused = run.invoke(app, ["convert", "-i", "nobody", "-o", str(tmp_path / "work")])
    assert isinstance(refused.exception, NotFoundError) and len(asked) == 2


def test_small_things() -> None:
    assert parse_bits("3.0,4") == (3.0, 4.0)
    with pytest.raises(ConfigError):
        parse_bits("four")
    assert parse_head_bits("6") == 6 and parse_head_bits("auto") is None
    with pytest.raises(ConfigError, match="or auto"):
        parse_head_bits("best")
    with pytest.raises(ConfigError, match="only the refined recipe"):
        ConvertRequest(source="a", work="b", head_bits=None, recipe="classic")
    with pytest.raises(ConfigError, match="are 9, 10, but must lie between 2 and 8"):
        ConvertRequest(source="a", work="b", bits=(9.0, 10.0))
    assert [duration(value) for value in (12.4, 200, 3900)] == ["12 s", "3 min 20 s", "1 h 05 min"]
    estimate = describe(JobEstimate("job", 1 << 30, 8 << 30, 1 << 20, 1 << 40, 200.0))
    assert "1.1 GB of memory" in estimate and "3 min 20 s" in estimate
    assert describe(JobProgress("job", "measure", 1, 2, "step 1")) == ""
