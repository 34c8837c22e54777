"""The jobs this person has started: a small file naming their work directories, and what each one is at."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exl2_tui.core.errors import JobError, NotFoundError
from exl2_tui.core.quant.record import claimed_by
from exl2_tui.core.quant.workdir import LOCK, WorkDir, is_locked, read_state, write_durably

FILE = "jobs.json"


@dataclass(frozen=True, slots=True)
class JobSummary:
    """One job as a list shows it. stage "done" is finished; problem says why it cannot be resumed, "" if it can.

    running: a process works on it now.
    """

    path: str
    source: str
    bits: tuple[float, ...]
    recipe: str
    stage: str
    step: int
    models: tuple[str, ...]
    seconds: float
    problem: str = ""
    running: bool = False


def remember(home: Path, work: Path) -> None:
    """Adds a work directory to the list in `home`."""
    known = _paths(home)
    path = str(work.resolve())
    if path not in known:
        home.mkdir(parents=True, exist_ok=True)
        write_durably(home / FILE, json.dumps([*known, path], indent=1).encode())


def jobs(home: Path) -> list[JobSummary]:
    """Every remembered job whose directory still holds one."""
    return [summary for path in _paths(home) if (summary := summarize(Path(path))) is not None]


def find(home: Path, name: str) -> JobSummary:
    """The job with this path, or the one whose directory has this name. Raises NotFoundError."""
    if (summary := summarize(Path(name))) is not None:
        return summary
    matching = [job for job in jobs(home) if Path(job.path).name == name]
    if len(matching) != 1:
        how_many = f"{len(matching)} jobs are" if matching else "no job is"
        raise NotFoundError(f"{how_many} called {name!r}", hint="Name its directory; see `exl2-tui jobs`.")
    return matching[0]


def delete(home: Path, job: JobSummary) -> None:
    """Removes a job's own files, finished models inside the work directory included. Raises JobError if it runs."""
    path = Path(job.path)
    work = WorkDir(path)
    try:
        work.clear(claimed_by(path))
        (path / LOCK).unlink(missing_ok=True)
    finally:
        work.close()
    with suppress(OSError):  # it holds something else
        path.rmdir()
    known = _paths(home)
    if str(path.resolve()) in known:
        known.remove(str(path.resolve()))
        write_durably(home / FILE, json.dumps(known, indent=1).encode())


def summarize(work: Path) -> JobSummary | None:
    """What the state file in a work directory says; None if there is none."""
    try:
        state = read_state(work)
    except JobError as error:
        return JobSummary(str(work), "", (), "", "damaged", 0, (), 0.0, error.message)
    if state is None:
        return None
    request: dict[str, Any] = state["request"]
    return JobSummary(
        path=str(work.resolve()),
        source=request["source"],
        bits=tuple(request["bits"]),
        recipe=request["recipe"],
        stage=state["stage"],
        step=state["step"],
        models=tuple(result["path"] for result in state["results"]),
        seconds=state["seconds"],
        running=is_locked(work),
    )


def _paths(home: Path) -> list[str]:
    try:
        listed = json.loads((home / FILE).read_bytes())
    except (OSError, ValueError):
        return []  # the list is a convenience: without it jobs are found by naming their directory
    return [path for path in listed if isinstance(path, str)] if isinstance(listed, list) else []
