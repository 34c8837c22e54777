"""Everything the core reports while it works, as typed frozen data. Standard library only; printed as JSON by --json.

An event carries the id of the request, load or job it belongs to, so that late events of something stopped can be
dropped by the receiver.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop_token", "stop_string", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object with its class name under "event"."""
        return {"event": type(self).__name__, **dataclasses.asdict(self)}


# Loading a model


@dataclass(frozen=True, slots=True)
class LoadProgress(Event):
    """`done` of `total` bytes of weights are in place; `tensor` is the one just finished."""

    model: str
    done: int
    total: int
    tensor: str


@dataclass(frozen=True, slots=True)
class LoadFinished(Event):
    """A model is ready.

    Sizes in bytes; context in tokens; format such as "EXL2 4.13 bpw" or "fp16"; device "cpu" or "cuda:0"; path is its
    directory.
    """

    model: str
    architecture: str
    format: str
    context: int
    weight_bytes: int
    cache_bytes: int
    seconds: float
    device: str
    kernels: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Unloaded(Event):
    model: str


# Generating text


@dataclass(frozen=True, slots=True)
class PromptReady(Event):
    """The prompt as it will be run.

    `mode` is the one really used, `note` says why if it differs from the one asked for.
    `dropped` counts the oldest messages that no longer fit into the context.
    """

    request_id: int
    mode: str
    prompt_tokens: int
    cached_tokens: int
    dropped: int
    note: str


@dataclass(frozen=True, slots=True)
class PrefillProgress(Event):
    """`done` of `total` prompt tokens have been run."""

    request_id: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TokenDelta(Event):
    """New text, whole characters, never part of a stop string; `token_ids` were produced since the last delta."""

    request_id: int
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GenerationFinished(Event):
    """The last event of a request. Seconds of wall time; decode_seconds covers generated_tokens - 1 steps."""

    request_id: int
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_seconds: float
    decode_seconds: float
    first_token_seconds: float
    context_used: int
    context_size: int
    seed: int

    @property
    def prefill_speed(self) -> float:
        """Prompt tokens per second that were really run (without those found in the cache)."""
        fresh = self.prompt_tokens - self.cached_tokens
        return fresh / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_speed(self) -> float:
        """Generated tokens per second after the first one."""
        return (self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


# Showing what the model would see


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A run of the prompt: `special` parts are single control tokens such as <|im_end|>; role is whose text it is."""

    text: str
    special: bool
    role: str


@dataclass(frozen=True, slots=True)
class PromptPreview(Event):
    """Answers Service.preview_prompt: the exact prompt of the messages in `mode`, in order, and its token count.

    `token` is the number the caller gave. `mode` is the one really used and `note` says why if another was asked for.
    `error` is the reason why there is no prompt (then parts are empty), else "".
    """

    token: int
    mode: str
    parts: tuple[PromptPart, ...]
    token_count: int
    stop_strings: tuple[str, ...] = ()
    note: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token that may come next, as text, with its probability among those a step leaves over."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class SamplerStep:
    """What one step of the sampler leaves over: how many tokens, and the most probable ones, most probable first.

    name: "model", then those of "penalties", "temperature", "top_k", "top_p", "min_p", "typical_p" or "greedy" that
    the settings switch on, in the order in which the sampler takes them.
    """

    name: str
    survivors: int
    best: tuple[TokenChance, ...]


@dataclass(frozen=True, slots=True)
class SamplerPreview(Event):
    """Answers Service.preview_sampler: what every step would do to the token after the last prompt.

    `token` is the number the caller gave. `error` is the reason why there are no steps, else "".
    """

    token: int
    steps: tuple[SamplerStep, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class ModeChoice:
    """One row of the mode picker."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class ModesListed(Event):
    """Answers Service.list_modes: every prompt mode, "auto" first."""

    modes: tuple[ModeChoice, ...]


@dataclass(frozen=True, slots=True)
class MachineFound(Event):
    """Answers Service.describe_machine: what there is to run models on. Memory and disk in bytes, None if unknown.

    kernels: such as "AVX-512", "" if plain torch is used, with the reason in `note`. gpus: a line each.
    """

    cpu: str
    cores: int
    kernels: str
    memory_free: int | None
    disk_free: int | None
    gpus: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """A request, load or job ended with an error a person can act on. request_id None: it belongs to no request."""

    message: str
    hint: str
    request_id: int | None = None


# Measuring a model


@dataclass(frozen=True, slots=True)
class EvaluationProgress(Event):
    """`done` of `total` rows of text are measured; perplexity of the tokens so far, kl in nats (None: no reference)."""

    done: int
    total: int
    tokens: int
    perplexity: float
    kl: float | None = None


@dataclass(frozen=True, slots=True)
class SpeedProgress(Event):
    """`done` of `total` measurements are made; `what` is the next one, such as "prompt of 512 tokens"."""

    done: int
    total: int
    what: str


# The models of this machine

ModelSource = Literal["built-in", "own", "directory", "hub"]  # own: the app's folder, where downloads go
Fit = Literal["yes", "tight", "cpu", "no", "unknown"]  # cpu: not on the GPU; the loader takes the processor instead


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model directory as a list shows it.

    size_bytes counts its tensor files; bits_per_weight is the average over the decoder's linear layers (16 for
    float16); context is the model's own limit in tokens. `problem` says why it cannot be loaded, "" if it can.
    memory: bytes it takes at the context and cache kind of the list, 0 if that was not asked; fits: in what is free.
    used: when it was last loaded, seconds since the epoch, 0 for never.
    """

    name: str
    path: str
    source: ModelSource
    family: str
    format: str
    bits_per_weight: float
    size_bytes: int
    context: int
    problem: str = ""
    memory: int = 0
    fits: Fit = "unknown"
    used: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelsListed(Event):
    """Every model found on this machine, in the order a list shows them."""

    models: tuple[ModelInfo, ...]


# Converting a model. `job` is the work directory; sizes are stored bytes; bpw counts scales, groups and permutation.

ConvertStage = Literal["calibrate", "measure", "allocate", "quantize", "compile", "evaluate"]


@dataclass(frozen=True, slots=True)
class JobEstimate(Event):
    """What a job is expected to take, before it starts: memory and disk in bytes, time in seconds."""

    job: str
    peak_memory: int
    available_memory: int
    disk: int
    free_disk: int
    seconds: float


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
    """What was found about one field of a conversion that is being set up."""

    field: str
    level: NoteLevel
    text: str


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
