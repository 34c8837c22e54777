"""JobState: everything a screen shows about one conversion, made from its events. No Textual, no threads, no disk."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from exl2_tui.core.events import Event
from exl2_tui.core.job_events import (
    Allocated,
    Checkpointed,
    Evaluated,
    JobEnded,
    JobEstimate,
    JobFinished,
    JobInfo,
    JobOpened,
    JobProgress,
    LayerMeasured,
    LayerQuantized,
    ModelWritten,
    QualityWarning,
    StageStarted,
)
from exl2_tui.eta import PRIOR, STAGE_KINDS, Eta, Promise, StepKind, exact
from exl2_tui.job_points import Point, Points, add_measured, add_quantized, mark_outliers
from exl2_tui.job_words import LogLevel, log_line, number, remedy_for

Status = Literal[
    "waiting", "running", "pausing", "stopped", "interrupted", "failed", "finished", "elsewhere", "damaged"
]
STAGES = ("calibrate", "measure", "allocate", "quantize", "compile", "evaluate")
WORKING: frozenset[Status] = frozenset(("running", "pausing", "elsewhere"))
LOG_LINES = 1000
LONGER_SECONDS = 20.0  # how long it is said that the time left has grown


@dataclass(slots=True)
class Doubt:
    """Something that may make the result worse, and what to do about it."""

    text: str
    remedy: str


@dataclass(slots=True)
class Result:
    """One bitrate's finished model."""

    bits: float
    reached: float = 0.0
    path: str = ""
    size: int = 0
    judged: Evaluated | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """time: seconds since the epoch, when the line was heard of; 0 for what an earlier run did."""

    time: float
    level: LogLevel
    text: str


class JobState:
    """One conversion. `apply` takes its events; `clock` counts seconds, `wall` seconds since the epoch."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.info = JobInfo(job, "", (), "", "calibrate", 0, 0, "stopped", (), 0.0)
        self.status: Status = "stopped"
        self.stage = ""
        self.bits = 0.0
        self.detail = ""
        self.done = self.total = 0
        self.layers = 0
        self.reached: dict[float, float] = {}
        self._rows: dict[str, LayerQuantized] = {}
        self.points: Points = {}
        self.measured: Points = {}
        self.results: dict[float, Result] = {}
        self.doubts: dict[str, Doubt] = {}
        self.log: deque[LogLine] = deque(maxlen=LOG_LINES)
        self.logged = 0  # lines ever written, so that a pane knows what is new
        self.error = self.hint = ""
        self.eta = Eta()
        self._promise = Promise()
        self.seconds = 0.0  # of earlier runs
        self.began = 0.0  # by the clock, of this run
        self.step_began = 0.0
        self.saved = 0.0
        self.asked_to_pause = False  # another process, which has not stopped yet

    @property
    def name(self) -> str:
        """The model's own name."""
        return Path(self.info.source).name or Path(self.job).name

    @property
    def active(self) -> bool:
        """Whether this process works on it or is about to."""
        return self.status in ("waiting", "running", "pausing")

    def allows(self, action: str) -> bool:
        """Whether a person may pause, resume or delete it now."""
        return self.status in {
            "pause": ("waiting", "running", "elsewhere"),
            "resume": ("stopped", "interrupted", "failed"),
            "delete": ("waiting", "running", "pausing", "stopped", "interrupted", "failed", "finished", "damaged"),
        }.get(action, ())

    @property
    def models(self) -> list[str]:
        """Directories of the finished models that may be used."""
        broken = {result.path for result in self.results.values() if result.judged is not None and result.judged.broken}
        paths = [result.path for result in self.results.values() if result.path] or list(self.info.models)
        return [path for path in paths if path not in broken]

    @property
    def share(self) -> float:
        """Of the whole job, 0 to 1."""
        if self.status == "finished":
            return 1.0
        return min(0.99, self.done / self.total) if self.total else 0.0

    @property
    def working(self) -> bool:
        """Whether this process or another one works on it now."""
        return self.status in WORKING

    @property
    def rows(self) -> list[LayerQuantized]:
        """Finished linears of the current bitrate, oldest first."""
        return list(self._rows.values())

    def elapsed(self, now: float) -> float:
        """Seconds worked, all runs together."""
        return self.seconds + (max(0.0, now - self.began) if self.working else 0.0)

    def left(self, now: float) -> float | None:
        """Seconds still to go; runs down with the clock, and goes up only together with `longer`."""
        left = self.eta.left()
        if left is None or not self.working:
            return left
        return self._promise.left(max(0.0, left - self._gone(now)), now)

    def left_by_stage(self, now: float) -> dict[str, float]:
        """Seconds of each stage still to go, in their order; empty if there is nothing to go by."""
        stages = dict(self.eta.left_by_stage() or {})
        for stage, kinds in STAGE_KINDS.items():
            if self.working and stage in stages and self.step_kind in kinds:
                stages[stage] = max(0.0, stages[stage] - self._gone(now))
        return stages

    def _gone(self, now: float) -> float:
        """Seconds of the running step that need not be waited for any more."""
        kind = self.step_kind
        if kind is None:
            return 0.0
        whole, gone = self.eta.typical(kind) or 0.0, max(0.0, now - self.step_began)
        return whole - max(whole - gone, gone / 8)  # a step that takes longer than its like is nearly done

    def longer(self, now: float) -> str:
        """Why the time left has just grown; "" if it has not."""
        if not self._promise.longer or now - self._promise.longer > LONGER_SECONDS:
            return ""
        taken = self.eta.taken(self.step_kind) if self.step_kind is not None else []
        if len(taken) > 2 and taken[-1] > 1.2 * median(taken[:-1]):
            now_and_before = exact(taken[-1]), exact(median(taken[:-1]))
            if now_and_before[0] != now_and_before[1]:  # as they are told
                return "a step took {}, not {}".format(*now_and_before)
        return "longer than thought"

    def measured_rows(self) -> list[LayerQuantized]:
        """What was measured, as rows of the table: the candidate nearest to the target."""
        points = self.measured.values()
        return [LayerQuantized(self.job, p.key, "", p.mean_bpw, p.error, p.seconds) for p in points]

    @property
    def step_kind(self) -> StepKind | None:
        """What the running step is; None in stages that have none."""
        if self.stage == "measure":
            return self.eta.measuring(self.eta.measured)
        if self.stage == "quantize":
            return "quantize" if len(self.eta.done["quantize"]) < (self._target + 1) * self.layers else "head"
        kinds: dict[str, StepKind] = {"calibrate": "calibrate", "compile": "finish", "evaluate": "finish"}
        return kinds.get(self.stage)

    @property
    def _target(self) -> int:
        """Which of the bitrates is being made."""
        return self.info.bits.index(self.bits) if self.bits in self.info.bits else 0

    # Events

    def apply(self, event: Event, now: float, wall: float) -> None:
        """Takes one event that happened at `now` (clock) and `wall` (seconds since the epoch; 0: in an earlier run)."""
        if isinstance(event, StageStarted):
            self._stage_started(event, now)
        elif isinstance(event, JobProgress):
            self.stage, self.detail = event.stage, event.detail
            self.done, self.total = event.done, event.total
        elif isinstance(event, JobEstimate):
            self.eta.expected = event.seconds
        elif isinstance(event, LayerMeasured):
            add_measured(self.measured, event, self.info.bits[0] if self.info.bits else 4.0)
        elif isinstance(event, LayerQuantized):
            self._quantized(event)
        elif isinstance(event, Allocated):
            self.reached[event.bits] = event.reached_bpw
        elif isinstance(event, Checkpointed):
            self._saved(event, now)
        elif isinstance(event, QualityWarning):
            self._doubt(event.key or event.message, event.message, remedy_for(event.message))
        elif isinstance(event, Evaluated):
            self._result(event.bits).judged = event
        elif isinstance(event, ModelWritten):
            result = self._result(event.bits)
            result.reached, result.path, result.size = event.reached_bpw, event.path, event.size
            self.eta.seen("finish", self._target, max(0.0, now - self.step_began) if wall else None)
        elif isinstance(event, JobFinished):
            self.status, self.seconds, self.done = "finished", event.seconds, self.total
        elif isinstance(event, JobEnded):
            self._ended(event, now)
        line = log_line(event)
        if line is not None:
            self.say(wall, *line)

    def say(self, wall: float, level: LogLevel, text: str) -> None:
        """Adds a line to the log."""
        self.log.append(LogLine(wall, level, text))
        self.logged += 1

    @classmethod
    def opened(cls, event: JobOpened, now: float, before: JobState | None = None) -> JobState:
        """A conversion as its files tell it; the log of the state it replaces stays, since it was heard live."""
        job = cls(event.job)
        job.info, job.layers = event.info, event.layers
        job.eta = _steps_done(event)
        job.done, job.total = event.info.done, event.info.total
        for past in event.past:
            job.apply(past, now, 0.0)
        job.status, job.error = event.info.status, event.info.problem
        if event.history:
            job.log.clear()
            job.logged = 0
            for when, past in event.history:
                if isinstance(past, LayerMeasured | JobEstimate):
                    job.apply(past, now, when)
                elif line := log_line(past):
                    job.say(when, *line)
        job.seconds, job.began, job.step_began = event.info.seconds, now, now
        if before is not None and before.logged >= job.logged:
            job.log, job.logged = before.log, before.logged
        return job

    def _stage_started(self, event: StageStarted, now: float) -> None:
        self.stage, self.detail = event.stage, ""
        if event.stage != "evaluate":  # which belongs to the step that writing began
            self.step_began = now
        if event.stage != "calibrate":
            self.eta.done["calibrate"].setdefault(0, None)
        if event.bits and event.bits != self.bits:
            self.bits = event.bits
            if event.stage == "quantize":
                self._rows, self.points = {}, {}

    def _quantized(self, event: LayerQuantized) -> None:
        self._rows[event.key] = event
        point = add_quantized(self.points, event)
        usual = mark_outliers(self.points, point.kind)
        for other in self.points.values():
            if other.kind == point.kind:
                self._judge(other, usual)

    def _judge(self, point: Point, usual: float) -> None:
        """Warns of numbers that are none, and of layers far worse than their like."""
        if not point.outlier:
            self.doubts.pop(point.key, None)
        elif not math.isfinite(point.error):
            text = f"{point.label}: the error is not a number"
            self._doubt(point.key, text, "Pause, and look for inf or NaN in the original weights of this layer")
        else:
            times = f"error {number(point.error)} is {point.error / usual:.0f} times the usual {number(usual)}"
            remedy = "Give more bits per weight, or more calibration rows"
            self._doubt(point.key, f"{point.label}: {times}", remedy)

    def _saved(self, event: Checkpointed, now: float) -> None:
        self.saved = now
        taken = max(0.0, now - self.step_began)
        if event.stage == "measure":
            self.eta.seen(self.eta.measuring(event.layer), event.layer, taken)
        elif event.stage == "quantize" and event.layer < self.layers:
            self.eta.seen("quantize", self._target * self.layers + event.layer, taken)
        elif event.stage == "quantize":  # the head comes after the last layer
            self.eta.seen("head", self._target, taken)
        elif event.stage == "calibrate":
            self.eta.seen("calibrate", 0, taken)
        self.step_began = now

    def _ended(self, event: JobEnded, now: float) -> None:
        if self.working:
            self.seconds = self.elapsed(now)
        self.status = "failed" if event.reason == "failed" else "stopped"
        self.error, self.hint = event.message, event.hint

    def _doubt(self, key: str, text: str, remedy: str) -> None:
        self.doubts[key] = Doubt(text, remedy)

    def _result(self, bits: float) -> Result:
        return self.results.setdefault(bits, Result(bits))


def _steps_done(event: JobOpened) -> Eta:
    """The steps of a job that its files say are done."""
    info = event.info
    targets = round((info.total - event.measure_steps) / event.layers) if event.layers else len(info.bits)
    eta = Eta(event.layers, event.measure_steps, targets)
    earlier = dict(event.prior)
    if earlier:
        eta.prior = {kind: earlier.get(kind, 0.0) for kind in PRIOR}
    for step, seconds in enumerate(event.measure_seconds):
        eta.seen(eta.measuring(step), step, seconds)
    for step, seconds in enumerate(event.quantize_seconds):
        eta.seen("quantize", step, seconds)
    for target in range(len(info.models)):
        eta.seen("finish", target, None)
    for target in range(len(info.models) + (info.stage in ("compile", "evaluate"))):
        eta.seen("head", target, None)
    return eta
