"""JobState: everything a screen shows about one conversion, made from its events. No Textual, no threads, no disk."""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from exl2_tui.core.events import (
    Allocated,
    CalibrationReady,
    Checkpointed,
    Evaluated,
    Event,
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
from exl2_tui.eta import Eta, StepKind, exact

Status = Literal["waiting", "running", "pausing", "stopped", "failed", "finished", "elsewhere", "damaged"]
LogLevel = Literal["info", "warning", "error", "done"]
STAGES = ("calibrate", "measure", "allocate", "quantize", "compile", "evaluate")
OUTLIER = 5.0  # times the median of its kind: this layer lost far more than its like
KINDS_NEEDED = 4  # layers of a kind before one of them can be called an outlier
LOG_LINES = 1000
_LAYER = re.compile(r"(?:^|\.)(\d+)\.(.+)$")


@dataclass(slots=True)
class Point:
    """A half of a block (or the head) in the chart. error: of its output; bpw, seconds: over its linears."""

    key: str
    label: str
    kind: str
    error: float
    bpw: list[float] = field(default_factory=list)
    seconds: float = 0.0
    outlier: bool = False

    @property
    def layer(self) -> int:
        """Number of the block, -1 for what lies outside of blocks."""
        number = self.label.split()[1:2]
        return int(number[0]) if number and number[0].isdigit() else -1

    @property
    def mean_bpw(self) -> float:
        return sum(self.bpw) / len(self.bpw) if self.bpw else 0.0


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
        self.rows: list[LayerQuantized] = []
        self.points: dict[str, Point] = {}
        self.measured: dict[str, Point] = {}
        self.results: dict[float, Result] = {}
        self.doubts: dict[str, Doubt] = {}
        self.log: deque[LogLine] = deque(maxlen=LOG_LINES)
        self.logged = 0  # lines ever written, so that a pane knows what is new
        self.error = self.hint = ""
        self.eta = Eta()
        self.seconds = 0.0  # of earlier runs
        self.began = 0.0  # by the clock, of this run
        self.step_began = 0.0
        self.saved = 0.0

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
            "pause": ("waiting", "running"),
            "resume": ("stopped", "failed"),
            "delete": ("waiting", "running", "pausing", "stopped", "failed", "finished", "damaged"),
        }.get(action, ())

    def slots(self, points: dict[str, Point]) -> list[Point | None]:
        """Points of the blocks at their places in the model, two to a layer; None where nothing is yet."""
        blocks = [point for point in points.values() if point.kind != "head"]
        if not self.layers:
            return list(blocks)
        placed: list[Point | None] = [None] * (2 * self.layers)
        for point in blocks:
            if 0 <= point.layer < self.layers:
                placed[2 * point.layer + (point.kind != "attention")] = point
        return placed

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

    def elapsed(self, now: float) -> float:
        """Seconds worked, all runs together."""
        return self.seconds + (max(0.0, now - self.began) if self.status in ("running", "pausing") else 0.0)

    def left(self, now: float) -> float | None:
        """Seconds still to go; the running step counts down, but never below nothing."""
        left = self.eta.left()
        if left is None or self.status != "running":
            return left
        step = self.eta.typical(self.step_kind) if self.step_kind is not None else 0.0
        return max(0.0, left - min(step, max(0.0, now - self.step_began)))

    def worst(self, count: int) -> list[Point]:
        """Points with the largest error first; what is no number is worst of all."""
        return sorted(self.points.values(), key=lambda point: (math.isfinite(point.error), -point.error))[:count]

    def measured_rows(self) -> list[LayerQuantized]:
        """What was measured, as rows of the table: the candidate nearest to the target."""
        points = self.measured.values()
        return [LayerQuantized(self.job, p.key, "", p.mean_bpw, p.error, p.seconds) for p in points]

    def median_error(self) -> float:
        errors = [point.error for point in self.points.values() if math.isfinite(point.error)]
        return median(errors) if errors else 0.0

    @property
    def step_kind(self) -> StepKind | None:
        """What the running step is; None in stages that have none."""
        if self.stage not in ("measure", "quantize"):
            return None
        measured = len(self.eta.seconds["forward"]) + len(self.eta.seconds["measure"])
        return self.eta.kind(self.stage, measured)

    # Events

    def apply(self, event: Event, now: float, wall: float) -> None:
        """Takes one event that happened at `now` (clock) and `wall` (seconds since the epoch; 0: in an earlier run)."""
        if isinstance(event, StageStarted):
            self._stage_started(event, now)
        elif isinstance(event, JobProgress):
            self.stage, self.detail = event.stage, event.detail
            self.done, self.total = event.done, event.total
        elif isinstance(event, LayerMeasured):
            self._measured(event)
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
        job.eta = Eta(event.layers, event.measure_steps, max(1, len(event.info.bits)))
        for step, seconds in enumerate(event.measure_seconds):
            job.eta.seconds[job.eta.kind("measure", step)].append(seconds)
        job.eta.seconds["quantize"].extend(event.quantize_seconds)
        job.done, job.total = event.info.done, event.info.total
        for past in event.past:
            job.apply(past, now, 0.0)
        job.status = event.info.status
        job.seconds, job.began, job.step_began = event.info.seconds, now, now
        if before is not None and before.logged >= job.logged:
            job.log, job.logged = before.log, before.logged
        return job

    def _stage_started(self, event: StageStarted, now: float) -> None:
        self.stage, self.detail = event.stage, ""
        self.step_began = now
        if event.bits and event.bits != self.bits:
            self.bits = event.bits
            if event.stage == "quantize":
                self.rows, self.points = [], {}

    def _measured(self, event: LayerMeasured) -> None:
        """The candidate nearest to the target stands for the layer until it is quantized."""
        if not event.bpw:
            return
        target = self.info.bits[0] if self.info.bits else 4.0
        nearest = min(range(len(event.bpw)), key=lambda index: abs(event.bpw[index] - target))
        key, label, kind = describe_key(event.key)
        point = self.measured.setdefault(key, Point(key, label, kind, 0.0))
        error = event.errors[nearest]
        point.error = error if not math.isfinite(error) else max(point.error, error)
        point.bpw.append(event.bpw[nearest])
        point.seconds += event.seconds

    def _quantized(self, event: LayerQuantized) -> None:
        self.rows.append(event)
        key, label, kind = describe_key(event.key)
        point = self.points.setdefault(key, Point(key, label, kind, event.error))
        point.error = event.error if not math.isfinite(event.error) else max(point.error, event.error)
        point.bpw.append(event.bpw)
        point.seconds += event.seconds
        self._judge(point)

    def _judge(self, point: Point) -> None:
        """Warns of numbers that are none, and of layers far worse than their like."""
        if not math.isfinite(point.error):
            point.outlier = True
            self._doubt(
                point.key,
                f"{point.label}: the error is not a number",
                "Pause, and look for inf or NaN in the original weights of this layer",
            )
            return
        like = [other.error for other in self.points.values() if other.kind == point.kind]
        if len(like) < KINDS_NEEDED:
            return
        limit = OUTLIER * median(like)
        for other in self.points.values():
            if other.kind == point.kind and math.isfinite(other.error):
                other.outlier = other.error > limit
                if other.outlier:
                    text = f"{other.label}: error {number(other.error)} is {other.error / median(like):.0f} times"
                    self._doubt(
                        other.key,
                        f"{text} the usual {number(median(like))}",
                        "Give more bits per weight, or more calibration rows",
                    )
                elif other.key in self.doubts:
                    del self.doubts[other.key]

    def _saved(self, event: Checkpointed, now: float) -> None:
        self.saved = now
        steps = {"measure": self.eta.measure_steps, "quantize": self.layers}.get(event.stage, 0)
        if event.layer < steps:  # the head comes after the last layer
            self.eta.seen(event.stage, event.layer, max(0.0, now - self.step_began))
        self.step_began = now

    def _ended(self, event: JobEnded, now: float) -> None:
        if self.status in ("running", "pausing"):
            self.seconds = self.elapsed(now)
        self.status = "failed" if event.reason == "failed" else "stopped"
        self.error, self.hint = event.message, event.hint

    def _doubt(self, key: str, text: str, remedy: str) -> None:
        self.doubts[key] = Doubt(text, remedy)

    def _result(self, bits: float) -> Result:
        return self.results.setdefault(bits, Result(bits))


def describe_key(key: str) -> tuple[str, str, str]:
    """Full name of a linear or half -> key of its half, label for people, kind: layers of a kind are comparable."""
    match = _LAYER.search(key)
    if match is None:
        return key, key, "head"
    parts = match.group(2).split(".")
    kind = parts[0]
    name = {"self_attn": "attention", "attention": "attention"}.get(kind, kind)
    return key[: match.end(1)] + f".{kind}", f"layer {match.group(1)} {name}", name


def short_name(key: str) -> str:
    """ "model.layers.3.mlp.down_proj" -> "3 mlp.down_proj"."""
    match = _LAYER.search(key)
    return f"{match.group(1)} {match.group(2)}" if match else key


def number(value: float) -> str:
    """An error in three significant digits without a leading zero: ".0121", "1.2e-05", "nan"."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    if value and abs(value) < 0.0005:
        return f"{value:.1e}"
    return f"{value:.4f}".removeprefix("0") if value < 1 else f"{value:.3g}"


def remedy_for(message: str) -> str:
    """What to do about a warning of the core."""
    if "calibrat" in message:
        return "Use more calibration text: more rows, or longer ones"
    if "broken" in message:
        return "Convert again with more bits per weight"
    return "Compare the result with the original before you rely on it"


def verdict(judged: Evaluated) -> tuple[LogLevel, str]:
    """What the numbers of an evaluation mean."""
    if judged.broken:
        return "error", "Broken: do not use this model"
    if judged.kl < 0.01:
        return "done", "Practically the original"
    if judged.kl < 0.03:
        return "done", "Very close to the original"
    if judged.kl < 0.15:
        return "done", "Close to the original, with a small loss"
    return "warning", "A clear loss: more bits per weight would help"


def log_line(event: Event) -> tuple[LogLevel, str] | None:
    """An event as a line of the log; None for those that only move the bar."""
    if isinstance(event, StageStarted):
        what = f" at {event.bits:g} bits per weight" if event.bits else ""
        return "info", f"{event.stage}{what}{', resumed' if event.resumed else ''}"
    if isinstance(event, JobEstimate):
        needs = f"{event.peak_memory / 1e9:.1f} GB of memory and {event.disk / 1e9:.1f} GB of disk"
        return "info", f"needs about {needs}"
    if isinstance(event, CalibrationReady):
        rows = f"{event.rows} rows of {event.length:,} tokens from {event.description.strip('()')}"
        return "info", f"{rows}; {event.held_out_rows} more judge the result"
    if isinstance(event, LayerMeasured) and event.errors:
        return "info", f"{short_name(event.key):<20}  {len(event.errors)} candidates tried in {exact(event.seconds)}"
    if isinstance(event, Allocated):
        return "info", f"{event.reached_bpw:.3f} bits per weight reached for a target of {event.bits:g}"
    if isinstance(event, LayerQuantized):
        numbers = f"{event.bpw:.2f} bpw  error {number(event.error)}  {exact(event.seconds)}"
        return "info", f"{short_name(event.key):<20}  {numbers}"
    if isinstance(event, QualityWarning):
        return "warning", event.message + (f" ({event.key})" if event.key else "")
    if isinstance(event, Evaluated):
        level, text = verdict(event)
        return level, f"{text}: KL {event.kl:.4f}, same top token {event.top1:.1%}, perplexity {event.perplexity:.2f}"
    if isinstance(event, ModelWritten):
        return "done", f"written to {event.path}"
    if isinstance(event, JobEnded):
        return ("error", event.message) if event.reason == "failed" else ("info", "paused; resume goes on here")
    if isinstance(event, JobFinished):
        return "done", f"finished in {exact(event.seconds)}"
    return None
