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

    Sizes in bytes; memory_bytes: the estimate of weights, cache and working space, as lists of models show it. context
    in tokens; format such as "EXL2 4.13 bpw" or "fp16"; device "cpu" or "cuda:0"; path is its directory.
    """

    model: str
    architecture: str
    format: str
    context: int
    weight_bytes: int
    cache_bytes: int
    memory_bytes: int
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

    def after(self, earlier: GenerationFinished) -> GenerationFinished:
        """This request and the one whose answer it went on with as one: tokens and times together, first token of the
        first."""
        return dataclasses.replace(
            self,
            generated_tokens=earlier.generated_tokens + self.generated_tokens,
            prefill_seconds=earlier.prefill_seconds + self.prefill_seconds,
            decode_seconds=earlier.decode_seconds + self.decode_seconds,
            first_token_seconds=earlier.first_token_seconds,
        )


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
