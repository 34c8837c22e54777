"""JobService: the bridge between a user interface and conversions. Imports nothing heavy until the first question.

Calls return at once; answers arrive as events at `post`. One thread converts, one job after another, beside the thread
of `service.py` that generates text; a second one looks things up meanwhile.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from exl2_tui.convert_draft import ConvertDraft
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, Exl2Error
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import (
    ConvertChecked,
    FieldNote,
    JobEnded,
    JobFinished,
    JobFollowed,
    JobInfo,
    JobOpened,
    JobsListed,
)
from exl2_tui.core.requests import ConvertRequest
from exl2_tui.job_journal import ended
from exl2_tui.work_queue import WorkQueue

# A conversion takes every core for hours; keys and answers come first. Not the lowest priority: while the conversion
# has the interpreter, the screen waits for it, and on a machine busy with other things that would be long.
CONVERT_NICE = 10


class JobSource(Protocol):
    """What the service needs of the core; tests give a fake."""

    def run(self, request: ConvertRequest, fresh: bool, cancel: CancelToken) -> Iterator[Event]:
        """Starts or resumes a job. The first event is JobOpened. Raises CancelledError when cancelled."""

    def request(self, job: str) -> ConvertRequest:
        """What a job was started with."""

    def list(self) -> tuple[JobInfo, ...]: ...

    def look(self, job: str) -> tuple[JobOpened, int]:
        """What is on disk about a job, without touching it, and the place in its journal to follow it from."""

    def follow(self, job: str, offset: int) -> tuple[JobFollowed, int, bool]:
        """What a job of another process reported from a place on, the next place, and whether it still runs."""

    def ask_to_pause(self, job: str) -> None:
        """Asks the process that works on a job to stop."""

    def leave(self, job: str) -> None:
        """Writes down that the run of a job is over, for one whose thread will not live to do it."""

    def delete(self, job: str) -> None: ...

    def check(self, draft: ConvertDraft, token: int) -> ConvertChecked: ...


class JobService:
    """Runs conversions on a thread of its own. A job is named by its work directory."""

    def __init__(self, post: Callable[[Event], None], make_source: Callable[[], JobSource] | None = None) -> None:
        self._receiver = post
        self._make_source = make_source or _real_source
        self._closed = False
        self._lock = threading.Lock()
        self._running: tuple[str, CancelToken] | None = None
        self._waiting: deque[str] = deque()
        self._doomed: set[str] = set()
        self._places: dict[str, int] = {}  # in the journals of jobs that are followed; the side thread's
        self._followed: set[str] = set()  # asked for and not yet answered
        self._newest_check = -1
        self._jobs = WorkQueue("exl2-convert", nice=CONVERT_NICE)
        self._side = WorkQueue("exl2-convert-side")

    def start(self, request: ConvertRequest, *, fresh: bool = False) -> str:
        """Queues a conversion (or resumes the one in its work directory) and returns its name.

        Answers: JobOpened, the events of the job, and JobFinished or JobEnded.
        """
        self._enqueue(request.work, lambda: request, fresh)
        return request.work

    def resume(self, job: str) -> None:
        """Goes on with a job that was paused or interrupted, otherwise as `start`."""
        self._enqueue(job, lambda: self._make_source().request(job), False)

    def pause(self, job: str) -> None:
        """Stops a job; what is finished is kept and `resume` goes on there. Answer: JobEnded.

        A job of another process is only asked to stop; `follow` shows when it has.
        """
        with self._lock:
            waiting = job in self._waiting
            ours = self._running is not None and self._running[0] == job
            if waiting:
                self._waiting.remove(job)
            elif ours and self._running is not None:
                self._running[1].cancel()
        if waiting:
            self._post(JobEnded(job, "paused"))
        elif not ours:
            self._side.put(lambda: self._ask_to_pause(job))

    def delete(self, job: str) -> None:
        """Stops a job if it runs and deletes its files. Answer: JobsListed."""
        with self._lock:
            running = self._running is not None and self._running[0] == job
            waiting = job in self._waiting
            if running:
                self._doomed.add(job)
        if running or waiting:
            self.pause(job)
        if not running:
            self._side.put(lambda: self._delete(job))

    def list_jobs(self) -> None:
        """Answers with JobsListed."""
        self._side.put(self._list)

    def look(self, job: str) -> None:
        """Answers with JobOpened; for jobs that another process runs, or that do not run."""
        self._side.put(lambda: self._look(job))

    def follow(self, job: str) -> None:
        """Answers with JobFollowed; the first time, and when the other process has stopped, with JobOpened."""
        with self._lock:
            if job in self._followed:
                return
            self._followed.add(job)
        self._side.put(lambda: self._follow(job))

    def check(self, draft: ConvertDraft, token: int) -> None:
        """Answers with ConvertChecked, unless a newer draft is given meanwhile. Tokens rise."""
        self._newest_check = token
        self._side.put(lambda: self._check(draft, token))

    def close(self, timeout: float) -> None:
        """Stops the running job and returns within `timeout` seconds; nothing is posted afterwards."""
        self._closed = True
        with self._lock:
            self._waiting.clear()
            if self._running is not None:
                self._running[1].cancel()
            running = self._running[0] if self._running is not None else None
        self._jobs.stop()
        self._side.stop()
        self._jobs.join(timeout)
        if running is not None and self._running is not None:
            self._make_source().leave(running)

    def _enqueue(self, job: str, request: Callable[[], ConvertRequest], fresh: bool) -> None:
        with self._lock:
            if job in self._waiting or (self._running is not None and self._running[0] == job):
                return
            self._waiting.append(job)
        self._jobs.put(lambda: self._run(job, request, fresh))

    def _run(self, job: str, request: Callable[[], ConvertRequest], fresh: bool) -> None:
        cancel = CancelToken()
        with self._lock:
            if job not in self._waiting:
                return  # paused before it began
            self._waiting.remove(job)
            self._running = job, cancel
        # Told once it no longer runs, nor its directory is locked: whoever looks then sees that.
        ended: list[Event] = []
        for event in _guarded(job, lambda: self._make_source().run(request(), fresh, cancel)):
            if isinstance(event, JobEnded | JobFinished):
                ended.append(event)
            else:
                self._post(event)
        with self._lock:
            self._running = None
            doomed = job in self._doomed
            self._doomed.discard(job)
        for event in ended:
            self._post(event)
        if doomed:
            self._delete(job)

    def _delete(self, job: str) -> None:
        for event in _guarded(job, lambda: self._deleted(job)):
            self._post(event)
        self._list()

    def _deleted(self, job: str) -> Iterable[Event]:
        self._make_source().delete(job)
        return ()

    def _list(self) -> None:
        for event in _guarded("", lambda: [JobsListed(self._make_source().list())]):
            if isinstance(event, JobsListed):
                self._post_listed(event)
            else:
                self._post(event)

    def _post_listed(self, event: JobsListed) -> None:
        """A job of this process is no job of another one, though its directory is locked.

        Under the lock: if the job ended meanwhile, "running" would be told after its end, and be believed for ever.
        """
        with self._lock:
            ours = self._running[0] if self._running is not None else ""
            jobs = (dataclasses.replace(info, status="running") if info.job == ours else info for info in event.jobs)
            self._post(JobsListed(tuple(jobs)))

    def _look(self, job: str) -> None:
        def found() -> Iterable[Event]:
            opened, self._places[job] = self._make_source().look(job)
            return [opened]

        for event in _guarded(job, found):
            with self._lock:
                if self._running is None or self._running[0] != job:  # one that runs here tells more itself
                    self._post(event)

    def _follow(self, job: str) -> None:
        with self._lock:
            self._followed.discard(job)
        if job not in self._places:
            self._look(job)
            return
        running = True

        def found() -> Iterable[Event]:
            nonlocal running
            followed, self._places[job], running = self._make_source().follow(job, self._places[job])
            return [followed] if followed.heard else []

        for event in _guarded(job, found):
            self._post(event)
        if not running:
            self._look(job)

    def _ask_to_pause(self, job: str) -> None:
        def asked() -> Iterable[Event]:
            self._make_source().ask_to_pause(job)
            return ()

        for event in _guarded("", asked):
            self._post(event)

    def _check(self, draft: ConvertDraft, token: int) -> None:
        if token != self._newest_check:
            return
        try:
            self._post(self._make_source().check(draft, token))
        except Exl2Error as error:
            self._post(ConvertChecked(token, (FieldNote("source", "error", str(error)),)))
        except Exception as error:  # noqa: BLE001  the form must say that something is wrong, whatever it is
            note = FieldNote("source", "error", f"Internal error: {type(error).__name__}: {error}")
            self._post(ConvertChecked(token, (note,)))

    def _post(self, event: Event) -> None:
        if not self._closed:
            self._receiver(event)


def _guarded(job: str, work: Callable[[], Iterable[Event]]) -> Iterator[Event]:
    """The events of `work`; whatever goes wrong becomes JobEnded."""
    try:
        yield from work()
    except CancelledError:
        yield JobEnded(job, "paused")
    except Exl2Error as error:
        yield ended(job, error)
    except MemoryError:
        yield JobEnded(job, "failed", "There is not enough memory", "Close other programs, then resume.")
    except Exception as error:  # noqa: BLE001  a bug in the core must neither end the thread nor stay unseen
        what = f"Internal error: {type(error).__name__}: {error}"
        yield JobEnded(job, "failed", what, "This is a bug in exl2-tui; please report it.")


def _real_source() -> JobSource:
    from exl2_tui.jobs_source import CoreJobs

    return CoreJobs()
