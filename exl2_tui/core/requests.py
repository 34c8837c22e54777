"""What callers ask of the core, as plain frozen data: messages, sampling, loading. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from exl2_tui.core.errors import ConfigError

Role = Literal["system", "user", "assistant"]
CacheKind = Literal["fp16", "q8", "q6", "q4"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Ids of an assistant turn, when known, save re-tokenizing and keep the cache valid."""

    role: Role
    content: str
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """How the next token is chosen; order and meaning in `core/generation/sampler.py`. Neutral values switch steps off.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and typical_p 1 are off. repetition_penalty 1 is off and looks
    back over repetition_range tokens (-1: all of them); frequency and presence penalties 0 are off.
    seed None draws a new one for every request; equal seed, prompt and settings give equal text.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.8
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.025
    repetition_range: int = -1
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        limits: tuple[tuple[str, float, float], ...] = (
            ("temperature", 0.0, 100.0),
            ("top_k", 0, 1 << 31),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("typical_p", 0.0, 1.0),
            ("repetition_penalty", 0.01, 100.0),
            ("repetition_range", -1, 1 << 31),
            ("frequency_penalty", -100.0, 100.0),
            ("presence_penalty", -100.0, 100.0),
        )
        for name, low, high in limits:
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise ConfigError(f"{name} is {value}, but must lie between {low:g} and {high:g}")

    @classmethod
    def greedy(cls) -> SamplerSettings:
        """The most probable token, always; no penalties."""
        return cls(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """Answer the last user message of `messages`, or go on with an assistant's message at their end.

    `mode` names a prompt mode, `stop` adds to the mode's own strings.
    """

    messages: tuple[Message, ...]
    mode: str = "auto"
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    max_new_tokens: int = 1024
    stop: tuple[str, ...] = ()
    user_name: str = "User"
    bot_name: str = "Chatbort"


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Continue `prompt` without a template; `special` lets strings such as <|im_end|> become single tokens."""

    prompt: str
    special: bool = False
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model. context None takes the model's own length as far as memory allows.

    exact keeps activations in float32 in every kernel instead of the faster 8-bit ones. threads 0 uses all cores.
    device is "auto", "cpu", "cuda" or "cuda:N".
    gpu_split puts the layers on several GPUs: "auto" by what is free, or the GB to use of each, as "8,0,12"; "" is off.
    """

    context: int | None = None
    cache: CacheKind = "fp16"
    device: str = "auto"
    exact: bool = False
    threads: int = 0
    gpu_split: str = ""

    def __post_init__(self) -> None:
        if self.cache not in get_args(CacheKind):
            raise ConfigError(
                f"unknown cache kind {self.cache!r}", hint=f"Choose one of {', '.join(get_args(CacheKind))}"
            )
        if self.context is not None and self.context < 1:
            raise ConfigError(f"context is {self.context}, but must be at least 1")
        if self.threads < 0:
            raise ConfigError(f"threads is {self.threads}, but must be 0 (all cores) or more")
        self.split_bytes()
        if self.gpu_split and self.device not in ("auto", "cuda"):
            raise ConfigError(
                f'gpu_split is "{self.gpu_split}", but the device is "{self.device}"', hint="Leave one of them out"
            )

    def split_bytes(self) -> tuple[int, ...] | None:
        """What gpu_split allows of each GPU, in bytes; None for "auto", () if it is off."""
        if self.gpu_split in ("", "auto"):
            return None if self.gpu_split else ()
        try:
            limits = tuple(int(float(part) * 1e9) for part in self.gpu_split.split(","))
        except (ValueError, OverflowError):
            limits = (-1,)
        if min(limits) < 0 or not any(limits):
            raise ConfigError(
                f'gpu_split is "{self.gpu_split}", but must be "auto" or GB for each GPU, such as "8,8" or "0,12.5"'
            )
        return limits


RecipeName = Literal["refined", "classic"]
Allocation = Literal["sum", "largest"]


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """Make EXL2 models of `source`, an unquantized model directory, with `work` as the job's directory.

    bits: one model per average bpw of the decoder's linears, all overhead counted. head_bits: recipe of the
    head; None: chosen with the rest, for a file as large as with 6.
    output None: a directory per model inside `work`. calibration None: the built-in set; column: of JSONL or parquet.
    rows, length (tokens per row) and their measuring counterparts None: chosen for the recipe and the model's context.
    measurement: a file to reuse instead of measuring; measure_to: stop after measuring and write it there.
    allocation "largest" makes the largest error small, as the early release did. shard_size in MiB, 0: unlimited.
    """

    source: str
    work: str
    bits: tuple[float, ...] = (4.0,)
    head_bits: int | None = 6
    recipe: RecipeName = "refined"
    allocation: Allocation = "sum"
    output: str | None = None
    calibration: str | None = None
    column: str | None = None
    rows: int | None = None
    length: int | None = None
    measure_rows: int | None = None
    measure_length: int | None = None
    measurement: str | None = None
    measure_to: str | None = None
    shard_size: int = 8192
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.bits or any(not 2.0 <= value <= 8.05 for value in self.bits):
            asked = ", ".join(f"{value:g}" for value in self.bits) or "missing"
            raise ConfigError(f"bits per weight are {asked}, but must lie between 2 and 8")
        if len(set(self.bits)) != len(self.bits):
            raise ConfigError("the same bits per weight are there twice")
        if self.head_bits not in (None, 2, 3, 4, 5, 6, 8):
            raise ConfigError(f"head_bits is {self.head_bits}, but must be one of 2, 3, 4, 5, 6, 8, or auto")
        if self.head_bits is None and self.recipe != "refined":
            raise ConfigError("only the refined recipe can choose the bits of the head: give a number")
        if self.recipe not in get_args(RecipeName) or self.allocation not in get_args(Allocation):
            known = " or ".join(get_args(RecipeName)), " or ".join(get_args(Allocation))
            raise ConfigError(
                f"recipe and allocation are {self.recipe} and {self.allocation}, but must be {known[0]}, and {known[1]}"
            )
        if self.measure_to is not None and (self.output is not None or self.measurement is not None):
            raise ConfigError("measuring only cannot be combined with an output directory or a given measurement")
        for name in ("rows", "length", "measure_rows", "measure_length"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 1 << 24:
                raise ConfigError(f"{name} is {value}, but must be at least 1")
        if self.shard_size < 0:
            raise ConfigError(f"shard_size is {self.shard_size} MiB, but must be 0 (unlimited) or more")
