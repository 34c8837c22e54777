"""Conversions: all conversions the app knows, and what a person can do with them. No Textual."""

from __future__ import annotations

from typing import Protocol

from exl2_tui.convert_draft import ConvertDraft
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import JobEnded, JobFollowed, JobInfo, JobOpened, JobsListed
from exl2_tui.core.requests import ConvertRequest
from exl2_tui.job_state import JobState
from exl2_tui.state import Clock


class ConvertService(Protocol):
    """The part of `jobs_service.JobService` the app uses. Every answer arrives as an event; no call blocks."""

    def start(self, request: ConvertRequest, *, fresh: bool = False) -> str: ...
    def resume(self, job: str) -> None: ...
    def pause(self, job: str) -> None: ...
    def delete(self, job: str) -> None: ...
    def list_jobs(self) -> None: ...
    def look(self, job: str) -> None: ...
    def follow(self, job: str) -> None: ...
    def check(self, draft: ConvertDraft, token: int) -> None: ...
    def close(self, timeout: float) -> None: ...


class Conversions:
    """Actions and `apply` run on one thread. jobs: by work directory, newest last; listed: the disk was read."""

    def __init__(self, service: ConvertService, clock: Clock, wall_clock: Clock) -> None:
        self._service = service
        self._clock = clock
        self._wall_clock = wall_clock
        self.jobs: dict[str, JobState] = {}
        self.listed = False

    @property
    def running(self) -> JobState | None:
        """The conversion this process works on."""
        return next((job for job in self.jobs.values() if job.status in ("running", "pausing")), None)

    @property
    def badge(self) -> str:
        """What the header says beside Convert: "54%", or "" if nothing runs here."""
        job = self.running
        return f"{int(100 * job.share)}%" if job is not None else ""

    def start(self, request: ConvertRequest) -> JobState:
        """Queues a new conversion, or goes on with the one in its work directory."""
        job = self.jobs[request.work] = JobState(request.work)
        job.info = JobInfo(
            request.work, request.source, request.bits, request.recipe, "calibrate", 0, 0, "stopped", (), 0.0
        )
        job.status = "waiting"
        self._service.start(request)
        return job

    def pause(self, job: JobState) -> str:
        """Stops what runs or waits; returns a word for the person."""
        if job.status == "elsewhere":
            job.asked_to_pause = True
            self._service.pause(job.job)
            return "The other process is asked to pause"
        waited = job.status == "waiting"
        job.status = "stopped" if waited else "pausing"
        self._service.pause(job.job)
        return "It no longer waits" if waited else "Pausing: what is finished is kept"

    def resume(self, job: JobState) -> str:
        """Goes on with what was paused, interrupted or failed."""
        job.status, job.error, job.hint = "waiting", "", ""
        self._service.resume(job.job)
        return "Going on where it stopped"

    def delete(self, job: JobState) -> None:
        """Stops it and deletes its work files."""
        self.jobs.pop(job.job, None)
        self._service.delete(job.job)

    def refresh(self) -> None:
        self._service.list_jobs()

    def look(self, job: JobState) -> None:
        """Reads what is on disk about a conversion that does not run here."""
        if not job.active:
            self._service.look(job.job)

    def follow(self) -> bool:
        """Reads on about conversions that other processes run; False if there are none."""
        foreign = [job for job in self.jobs.values() if job.status == "elsewhere"]
        for job in foreign:
            self._service.follow(job.job)
        return bool(foreign)

    def check(self, draft: ConvertDraft, token: int) -> None:
        self._service.check(draft, token)

    def apply(self, event: Event) -> bool:
        """Takes an event; False if it is about no conversion."""
        if isinstance(event, JobsListed):
            self._listed(event)
            return True
        job_name = getattr(event, "job", None)
        if not isinstance(job_name, str):
            return False
        now = self._clock()
        known = self.jobs.get(job_name)
        if isinstance(event, JobOpened):
            if event.info.status == "running" or known is None or not known.active:
                self.jobs[job_name] = JobState.opened(event, now, known)
        elif isinstance(event, JobFollowed):
            if known is not None and known.status == "elsewhere":
                wall = self._wall_clock()
                for when, heard in event.heard:
                    known.apply(heard, now - max(0.0, wall - when), when)
        elif known is not None:
            known.apply(event, now, self._wall_clock())
        elif isinstance(event, JobEnded) and event.reason == "failed":
            return False
        return True

    def _listed(self, event: JobsListed) -> None:
        """Brings the list in step with the disk; what runs here is known better than the disk says."""
        self.listed = True
        listed = {info.job for info in event.jobs}
        for name in [name for name, job in self.jobs.items() if name not in listed and not job.active]:
            del self.jobs[name]
        for info in event.jobs:
            job = self.jobs.get(info.job)
            if job is None:
                job = self.jobs[info.job] = JobState(info.job)
            elif job.active or job.status == info.status:
                continue
            job.info, job.status, job.seconds, job.began = info, info.status, info.seconds, self._clock()
            job.done, job.total, job.stage = info.done, info.total, info.stage
            job.error = info.problem
