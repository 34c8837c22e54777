"""What a conversion reports while it works, and how conversions are listed, opened and set up.

Standard library only, like `events.py`. `job` is the work directory; sizes are stored bytes; bpw counts scales, groups
and permutation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exl2_tui.core.events import Event

# A conversion

ConvertStage = Literal["calibrate", "measure", "allocate", "quantize", "compile", "evaluate"]


@dataclass(frozen=True, slots=True)
class JobEstimate(Event):
    """What a job is expected to take, before it starts: memory and disk in bytes, time in seconds.

    stages: the parts of `seconds` by what is done: "calibrate", "measure", "quantize", "finish" (write and compare).
    """

    job: str
    peak_memory: int
    available_memory: int
    disk: int
    free_disk: int
    seconds: float
    stages: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StageStarted(Event):
    """A stage begins. `resumed` if an earlier run had already done part of it."""

    job: str
    stage: ConvertStage
    bits: float = 0.0
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class CalibrationReady(Event):
    """Rows x length tokens fit the model, measure_rows of them measure it, held_out_rows judge it."""

    job: str
    description: str
    rows: int
    length: int
    measure_rows: int
    held_out_rows: int


@dataclass(frozen=True, slots=True)
class JobProgress(Event):
    """`done` of `total` steps of the whole job; seconds_left is None until there is something to go by."""

    job: str
    stage: ConvertStage
    done: int
    total: int
    detail: str
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class LayerMeasured(Event):
    """Every candidate of a block (or linear) was tried: its bits per weight and the error it brings."""

    job: str
    key: str
    bpw: tuple[float, ...]
    errors: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Allocated(Event):
    """The bits are spent. `bpw` per key in model order; `predicted_error` is the sum that was made small.

    reached_bpw: of the decoder. head_bpw: of the output head where its bits are part of the budget, else 0.
    """

    job: str
    bits: float
    reached_bpw: float
    keys: tuple[str, ...]
    bpw: tuple[float, ...]
    predicted_error: float
    head_bpw: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerQuantized(Event):
    """One linear is done. error: relative error of its block's output against the original; recipe as stored."""

    job: str
    key: str
    recipe: str
    bpw: float
    error: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Tuned(Event):
    """Norms and scales were tuned against the original: KL per token (nats) on calibration rows that tuning did not
    see, before and after. Where it became worse, the model keeps what it had: `kept` is False."""

    job: str
    kl_before: float
    kl_after: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Checkpointed(Event):
    """Everything up to `layer` of `stage` survives a crash from here on."""

    job: str
    stage: ConvertStage
    layer: int


@dataclass(frozen=True, slots=True)
class QualityWarning(Event):
    """Something that may make the result worse than it needs to be. `key`: the tensor or file it is about, or ""."""

    job: str
    message: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    """The finished model against the original on held-out rows.

    kl: mean Kullback-Leibler divergence per token in nats; top1: share of tokens with the same most probable successor.
    """

    job: str
    bits: float
    kl: float
    top1: float
    perplexity: float
    original_perplexity: float
    tokens: int
    broken: bool


@dataclass(frozen=True, slots=True)
class ModelWritten(Event):
    """One finished model directory."""

    job: str
    bits: float
    reached_bpw: float
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class JobFinished(Event):
    """All bitrates are done. `broken` counts those that failed the evaluation."""

    job: str
    paths: tuple[str, ...]
    broken: int
    seconds: float


# The conversions of this machine, as a list and a viewer show them

JobStatus = Literal["stopped", "interrupted", "failed", "running", "elsewhere", "finished", "damaged"]
EndReason = Literal["paused", "failed"]


@dataclass(frozen=True, slots=True)
class JobInfo:
    """One conversion. stage "done" is finished; done, total: steps as in JobProgress; seconds worked so far.

    status "elsewhere": another process works on it; "interrupted": its process died in the middle; "failed", "damaged":
    `problem` says why it stopped, or why it cannot be resumed. models: finished model directories.
    """

    job: str
    source: str
    bits: tuple[float, ...]
    recipe: str
    stage: str
    done: int
    total: int
    status: JobStatus
    models: tuple[str, ...]
    seconds: float
    problem: str = ""


@dataclass(frozen=True, slots=True)
class JobsListed(Event):
    """Every conversion of this machine, in the order they were first started."""

    jobs: tuple[JobInfo, ...]


@dataclass(frozen=True, slots=True)
class JobOpened(Event):
    """Everything known about a conversion so far, also from earlier runs: comes before the events of a run.

    layers: blocks of the model, 0 if unknown. measure_steps: how many of the total measure. past: what the state says
    was done, as the events that reported it. measure_seconds, quantize_seconds: what each finished step took.
    history: what the journal says was reported, with the time in seconds since the epoch. prior: seconds that a step of
    each kind took in an earlier conversion, by the names of eta.py.
    """

    job: str
    info: JobInfo
    layers: int
    measure_steps: int
    past: tuple[Event, ...]
    measure_seconds: tuple[float, ...] = ()
    quantize_seconds: tuple[float, ...] = ()
    history: tuple[tuple[float, Event], ...] = ()
    prior: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class JobFollowed(Event):
    """What another process reported about its conversion since the last time, with the time it did."""

    job: str
    heard: tuple[tuple[float, Event], ...]


@dataclass(frozen=True, slots=True)
class JobEnded(Event):
    """A run is over before the job is finished; everything up to the last Checkpointed is kept."""

    job: str
    reason: EndReason
    message: str = ""
    hint: str = ""


NoteLevel = Literal["ok", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class FieldNote:
    """What was found about one field of a conversion that is being set up. taken: another folder beside it would do."""

    field: str
    level: NoteLevel
    text: str
    taken: bool = False


@dataclass(frozen=True, slots=True)
class ConvertChecked(Event):
    """Answers the question whether a conversion can start. `token` is the number the caller gave.

    facts: one line about the source, "" if it cannot be converted. source_size: bytes of its tensors; sizes: bytes of
    the finished model per bits per weight asked for or offered. estimate None: there is nothing to estimate yet.
    loads: tokens of context and the bytes that the largest model asked for takes with it. measurement: path of an
    earlier measurement of this model, "" if there is none or the draft names one.
    """

    token: int
    notes: tuple[FieldNote, ...]
    facts: str = ""
    source_size: int = 0
    sizes: tuple[tuple[float, int], ...] = ()
    estimate: JobEstimate | None = None
    loads: tuple[int, int] | None = None
    measurement: str = ""

    @property
    def can_start(self) -> bool:
        return bool(self.facts) and all(note.level != "error" for note in self.notes)
