"""`exl2-tui convert` and `exl2-tui jobs`, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exl2_tui.cli import app
from exl2_tui.cli.convert import duration, parse_bits, parse_head_bits
from exl2_tui.core.errors import ConfigError, JobError
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.core.requests import ConvertRequest


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("EXL2_TUI_HOME", str(tmp_path / "home"))
    return CliRunner()


SMALL = ("-r", "4", "-l", "64", "-mr", "2")


def test_convert_prints_events_and_jobs_lists_resumes_and_deletes(run: CliRunner, tiny: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    done = run.invoke(app, ["convert", "-i", str(tiny), "-o", str(work), "-b", "4.5", *SMALL, "--json"])
    assert done.exit_code == 0, done.output
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["JobEstimate", "JobFinished"]
    assert (Path(events[-1]["paths"][0]) / "report.md").is_file()
    kinds = {event["event"] for event in events}
    assert {"CalibrationReady", "LayerMeasured", "Allocated", "LayerQuantized", "Checkpointed", "Evaluated"} <= kinds

    listed = json.loads(run.invoke(app, ["jobs", "--json"]).stdout)
    assert [job["stage"] for job in listed] == ["done"]
    again = run.invoke(app, ["jobs", "resume", "work"])
    assert again.exit_code == 0 and "model-4.5bpw" in again.stdout
    assert run.invoke(app, ["jobs", "delete", str(work), "-y"]).exit_code == 0
    assert not work.exists() and json.loads(run.invoke(app, ["jobs", "list", "--json"]).stdout) == []


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
    assert "KL divergence" in resumed.stderr and "model-4bpw" in resumed.stdout
    other = run.invoke(app, ["convert", "-i", str(tiny), "-o", str(work), "-b", "5", *SMALL])
    assert isinstance(other.exception, JobError) and "bits" in str(other.exception)


def test_small_things() -> None:
    assert parse_bits("3.0,4") == (3.0, 4.0)
    with pytest.raises(ConfigError):
        parse_bits("four")
    assert parse_head_bits("6") == 6 and parse_head_bits("auto") is None
    with pytest.raises(ConfigError, match="or auto"):
        parse_head_bits("best")
    with pytest.raises(ConfigError, match="only the refined recipe"):
        ConvertRequest(source="a", work="b", head_bits=None, recipe="classic")
    with pytest.raises(ConfigError, match="between 2 and 8"):
        ConvertRequest(source="a", work="b", bits=(9.0,))
    assert [duration(value) for value in (12.4, 200, 3900)] == ["12 s", "3 min 20 s", "1 h 05 min"]
