"""Running a conversion for the command line: on a thread of its own, shown as a progress bar or as JSON lines."""

from __future__ import annotations

import importlib
import os
import queue
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from exl2_tui.cli import options as opt
from exl2_tui.cli.output import note, print_json, print_text
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, Exl2Error, QuantizationError
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import (
    Allocated,
    CalibrationReady,
    Evaluated,
    JobEnded,
    JobEstimate,
    JobFinished,
    JobProgress,
    LayerMeasured,
    LayerQuantized,
    ModelWritten,
    QualityWarning,
    StageStarted,
    Tuned,
)
from exl2_tui.core.requests import ConvertRequest
from exl2_tui.core.sizes import size_of
from exl2_tui.job_journal import JOURNAL, leave, recorded
from exl2_tui.settings import data_dir

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE = 0.5
"""Seconds between Ctrl-C and leaving a computation behind that has not noticed it: one factorisation of a wide layer
takes longer, and the system may need a second to free gigabytes. Nothing is lost by that, since the job on the disk
survives the end of the process at any moment."""


def run_job(request: ConvertRequest, *, fresh: bool, json: bool) -> None:
    """Runs or resumes a job, showing what happens; raises QuantizationError if a finished model is broken."""
    _load_torch()
    with opt.interruptible() as cancel:
        worker = _Worker(request, fresh, cancel)
        try:
            broken = _show_json(worker) if json else _show(worker)
        except CancelledError:
            if json:
                print_json(JobEnded(request.work, "paused").to_json())
            note(f"Stopped. Run the same command, or `exl2-tui jobs resume {request.work}`, to go on.")
            worker.abandon()
            raise
        except Exl2Error as error:
            if json:
                print_json(JobEnded(request.work, "failed", str(error), error.hint or "").to_json())
            raise
    if broken:
        raise QuantizationError(
            f"{broken} of {len(request.bits)} models failed the evaluation", hint="See report.md beside each of them."
        )


def _load_torch() -> None:
    """Loads what a conversion needs. Ctrl-C ends the process at once meanwhile: Python could not hear it while the
    system loads torch's libraries, and nothing has been begun yet."""
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        importlib.import_module("exl2_tui.core.quant.job")
    finally:
        signal.signal(signal.SIGINT, previous)


class _Worker:
    """The job on its thread, so that this one hears Ctrl-C at once, whatever the job is computing."""

    def __init__(self, request: ConvertRequest, fresh: bool, cancel: CancelToken) -> None:
        self.request = request
        self.fresh = fresh
        self.cancel = cancel
        self._events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="convert", daemon=True)

    def events(self) -> Iterator[Event]:
        """Everything the job tells. Raises what it raises, and CancelledError soon after it was cancelled."""
        self._thread.start()
        deadline: float | None = None
        while True:
            if self.cancel.cancelled:
                deadline = deadline or time.monotonic() + PATIENCE
                if time.monotonic() > deadline:
                    raise CancelledError
            try:
                found = self._events.get(timeout=0.1)
            except queue.Empty:
                continue
            if found is None:
                self._thread.join()  # it still frees its tensors; the end of Python in the middle of that is an abort
                return
            if isinstance(found, BaseException):
                self._thread.join()
                raise found
            yield found

    def abandon(self) -> None:
        """Ends this process if the job has not noticed that it was cancelled."""
        if self._thread.is_alive():
            work = Path(self.request.work)
            if (work / JOURNAL).exists():
                leave(work)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)

    def _work(self) -> None:
        from exl2_tui.core.quant.job import ConvertJob
        from exl2_tui.core.quant.registry import remember

        try:
            job = ConvertJob.open(self.request, fresh=self.fresh)
            try:
                remember(data_dir(), Path(self.request.work))
                steps = recorded(job.work.path, job.run(self.cancel), self.cancel, resumed=job.resumed)
                for event in steps:
                    self._events.put(event)
            finally:
                job.close()
        except BaseException as error:  # noqa: BLE001 - raised again on the other thread
            self._events.put(error)
        else:
            self._events.put(None)


def _show_json(worker: _Worker) -> int:
    broken = 0
    for event in worker.events():
        print_json(event.to_json())
        if isinstance(event, JobFinished):
            broken = event.broken
    return broken


def _show(worker: _Worker) -> int:
    """A progress bar on stderr with a line per finished thing above it; returns the number of broken models."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(file=sys.stderr, highlight=False, markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    finished: JobFinished | None = None
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=console, transient=True) as progress:
        task = progress.add_task("Starting", total=None, left="")
        for event in worker.events():
            _update(progress, task, event)
            line = describe(event)
            if line:
                progress.console.print(line, soft_wrap=True)
            if isinstance(event, JobFinished):
                finished = event
    if finished is None:
        return 0
    for path in finished.paths:
        print_text(path)
        note(f"Chat with it: exl2-tui chat -m {shlex.quote(path)}")
    return finished.broken


def _update(progress: Progress, task: TaskID, event: Event) -> None:
    if isinstance(event, StageStarted):
        progress.update(task, description=event.stage.capitalize())
    elif isinstance(event, JobProgress):
        left = "" if event.seconds_left is None else f"{duration(event.seconds_left)} left"
        label = f"{event.stage.capitalize()}: {event.detail}"
        done = min(event.done, 0.99 * event.total)  # what comes after the layers is no step
        progress.update(task, description=label, completed=done, total=event.total or None, left=left)


def describe(event: Event) -> str:
    """One line about an event for people, "" for those that only move the bar."""
    if isinstance(event, JobEstimate):
        return (
            f"Needs about {size_of(event.peak_memory)} of memory ({size_of(event.available_memory)} free), "
            f"{size_of(event.disk)} of disk ({size_of(event.free_disk)} free), and about "
            f"{duration(event.seconds)}"
        )
    if isinstance(event, StageStarted):
        what = f" at {event.bits:g} bits per weight" if event.bits else ""
        return f"{event.stage.capitalize()}{what}{' (resumed)' if event.resumed else ''}"
    if isinstance(event, CalibrationReady):
        source = "the built-in set" if event.description == "(default)" else event.description
        return (
            f"  {event.rows} rows of {event.length} tokens from {source}; "
            f"{event.measure_rows} measure, {event.held_out_rows} judge the result"
        )
    if isinstance(event, LayerMeasured):
        cheapest, best = event.errors[event.bpw.index(min(event.bpw))], min(event.errors)
        return f"  {event.key}: error {cheapest:.2g} at {min(event.bpw):.2f} bpw, {best:.2g} at best"
    if isinstance(event, Allocated):
        head = f", and {event.head_bpw:.3f} in the output head," if event.head_bpw else ""
        return f"  {event.reached_bpw:.3f} bits per weight{head} for a target of {event.bits:g}"
    if isinstance(event, LayerQuantized):
        return f"  {event.key}: {event.recipe}, {event.bpw:.2f} bpw, error {event.error:.4f}, {event.seconds:.1f} s"
    if isinstance(event, Tuned):
        verdict = "" if event.kept else ", so they stay as they were"
        return f"  norms and scales: KL divergence {event.kl_before:.4f} before, {event.kl_after:.4f} after{verdict}"
    if isinstance(event, QualityWarning):
        return f"Warning: {event.message}" + (f" ({event.key})" if event.key else "")
    if isinstance(event, Evaluated):
        verdict = "BROKEN" if event.broken else "ok"
        return (
            f"  {verdict}: KL divergence {event.kl:.4f}, same top token {100 * event.top1:.1f} %, perplexity "
            f"{event.perplexity:.2f} (original {event.original_perplexity:.2f}) on {event.tokens} held-out tokens"
        )
    if isinstance(event, ModelWritten):
        return f"  {event.path}: {size_of(event.size)}"
    return ""


def duration(seconds: float) -> str:
    """ "1 h 05 min", "3 min 20 s" or "12 s"."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
