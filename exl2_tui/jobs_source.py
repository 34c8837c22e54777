"""CoreJobs: conversions as the core keeps them on disk, told as events. Used on the threads of jobs_service.py only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from exl2_tui import job_journal
from exl2_tui.convert_draft import ConvertDraft
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import Exl2Error, JobError
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import (
    Allocated,
    ConvertChecked,
    ConvertStage,
    Evaluated,
    JobEnded,
    JobFinished,
    JobFollowed,
    JobInfo,
    JobOpened,
    JobProgress,
    JobStatus,
    LayerQuantized,
    ModelWritten,
    QualityWarning,
    StageStarted,
)
from exl2_tui.core.requests import ConvertRequest
from exl2_tui.eta import PRIOR
from exl2_tui.job_state import JobState
from exl2_tui.settings import data_dir


class CoreJobs:
    """The conversions this person has started, wherever their work directories are."""

    def run(self, request: ConvertRequest, fresh: bool, cancel: CancelToken) -> Iterator[Event]:
        from exl2_tui.core.quant.job import ConvertJob
        from exl2_tui.core.quant.registry import remember

        job = ConvertJob.open(request, fresh=fresh)
        try:
            work = Path(request.work)
            remember(data_dir(), work)
            history = job_journal.read(work)[0] if job.resumed else ()
            found = opened(job.state, request.work, "running", history=history)
            yield dataclasses.replace(found, prior=self._prior(request))
            yield from job_journal.recorded(work, job.run(cancel), cancel, resumed=job.resumed)
        finally:
            job.close()

    def request(self, job: str) -> ConvertRequest:
        from exl2_tui.core.quant.job import stored_request

        return stored_request(Path(job))

    def list(self) -> tuple[JobInfo, ...]:
        from exl2_tui.core.quant.registry import jobs

        return tuple(self._info(summary.path) for summary in jobs(data_dir()))

    def look(self, job: str) -> tuple[JobOpened, int]:
        from exl2_tui.core.quant.workdir import is_locked, read_state

        work = Path(job)
        locked = is_locked(work)
        history, offset = job_journal.read(work)
        state = read_state(work)
        if state is None:
            raise JobError("there is no job in this directory", file=job)
        end = job_journal.last_end(history)
        problem = ""
        status: JobStatus = "interrupted" if history and end is None else "stopped"
        if state["stage"] == "done":
            status = "finished"
        elif locked:
            status = "elsewhere"
        elif isinstance(end, JobEnded) and end.reason == "failed":
            status, problem = "failed", " ".join(filter(None, (end.message, end.hint)))
        return opened(state, job, status, history=history, problem=problem), offset

    def follow(self, job: str, offset: int) -> tuple[JobFollowed, int, bool]:
        from exl2_tui.core.quant.workdir import is_locked

        running = is_locked(Path(job))
        heard, offset = job_journal.read(Path(job), offset)
        return JobFollowed(job, tuple(heard)), offset, running

    def ask_to_pause(self, job: str) -> None:
        try:
            job_journal.ask_to_pause(Path(job))
        except OSError as error:
            raise JobError(f"the other process cannot be asked to pause ({error.strerror})", file=job) from None

    def leave(self, job: str) -> None:
        job_journal.leave(Path(job))

    def delete(self, job: str) -> None:
        from exl2_tui.core.quant.registry import delete, find

        delete(data_dir(), find(data_dir(), job))

    def check(self, draft: ConvertDraft, token: int) -> ConvertChecked:
        from exl2_tui.convert_check import check

        return check(draft, token)

    def _prior(self, request: ConvertRequest) -> tuple[tuple[str, float], ...]:
        """What steps of each kind took in the last finished conversion by the same recipe."""
        from exl2_tui.core.quant.registry import jobs

        for summary in reversed(jobs(data_dir())):
            if summary.stage == "done" and summary.recipe == request.recipe and summary.path != request.work:
                found, _ = self.look(summary.path)
                past = JobState.opened(found, 0.0)
                for when, event in found.history:
                    past.apply(event, when, when)
                return tuple((kind, median(taken)) for kind in PRIOR if (taken := past.eta.taken(kind)))
        return ()

    def _info(self, job: str) -> JobInfo:
        try:
            return self.look(job)[0].info
        except Exl2Error as error:
            return JobInfo(job, "", (), "", "", 0, 0, "damaged", (), 0.0, error.message)


def opened(
    state: Mapping[str, Any], job: str, status: JobStatus, *, history: Sequence[job_journal.Heard], problem: str = ""
) -> JobOpened:
    """The state file of a job as the events a viewer would have seen. Raises JobError if it is damaged."""
    try:
        found = _opened(state, job, status, problem)
        return dataclasses.replace(found, history=tuple(history))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise JobError(f"the job file is damaged ({error!r})", file=job, hint="Start anew with -nr.") from None


def _opened(state: Mapping[str, Any], job: str, status: JobStatus, problem: str) -> JobOpened:
    request, timing = state["request"], state["timing"]
    layers = _layers(request["source"])
    measured, quantized = tuple(timing.get("measure", ())), tuple(timing.get("quantize", ()))
    measure_steps = 0 if request["measurement"] else 2 * layers + 1 if request["recipe"] == "refined" else layers
    models = tuple(result["path"] for result in state["results"])
    info = JobInfo(
        job=job,
        source=request["source"],
        bits=tuple(request["bits"]),
        recipe=request["recipe"],
        stage=state["stage"],
        done=len(measured) + len(quantized),
        total=measure_steps + (0 if request["measure_to"] else layers * len(request["bits"])),
        status=status,
        models=models,
        seconds=state["seconds"],
        problem=problem,
    )
    return JobOpened(job, info, layers, measure_steps, tuple(_past(state, job, info)), measured, quantized)


def _past(state: Mapping[str, Any], job: str, info: JobInfo) -> Iterator[Event]:
    """What has happened so far, as far as it is still known, oldest first."""
    yield from (QualityWarning(job, warning) for warning in state["warnings"])
    for strategy in state["strategies"]:
        yield Allocated(job, strategy["bits"], strategy["reached_bpw"], (), (), strategy["predicted_error"])
    for bits, path in zip(info.bits, info.models, strict=False):
        yield from _finished_model(job, bits, Path(path))
    stage = state["stage"]
    if stage == "done":
        yield JobFinished(job, info.models, sum(bool(result["broken"]) for result in state["results"]), info.seconds)
        return
    current: ConvertStage = stage
    target = state["target"]
    bits = info.bits[target] if stage in ("quantize", "compile") and target < len(info.bits) else 0.0
    yield StageStarted(job, current, bits, resumed=info.done > 0)
    yield from (_row(job, row) for row in state["rows"])
    yield JobProgress(job, current, info.done, info.total, f"step {state['step']}")


def _finished_model(job: str, bits: float, path: Path) -> Iterator[Event]:
    """A model's report.json; nothing if it was deleted or is not readable."""
    try:
        report = json.loads((path / "report.json").read_bytes())
        judged = report["evaluation"]
        events = [
            StageStarted(job, "quantize", bits, resumed=True),
            *(_row(job, row) for row in report["layers"]),
            Evaluated(
                job,
                bits,
                judged["kl_divergence"],
                judged["top1_agreement"],
                judged["perplexity"],
                judged["original_perplexity"],
                judged["tokens"],
                judged["status"] != "ok",
            ),
            ModelWritten(job, bits, report["reached_bpw"], str(path), report["size_bytes"]),
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return
    yield from events


def _row(job: str, row: Mapping[str, Any]) -> LayerQuantized:
    return LayerQuantized(job, row["key"], row["recipe"], row["bpw"], row["error"], row["seconds"])


def _layers(source: str) -> int:
    """Blocks of the model to convert, 0 if it is no longer there."""
    from exl2_tui.core.config import ModelConfig

    try:
        return ModelConfig.from_dir(Path(source)).num_hidden_layers
    except Exl2Error:
        return 0
