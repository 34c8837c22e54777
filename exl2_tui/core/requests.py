"""What callers ask of the core, as plain frozen data: messages, sampling, loading. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from exl2_tui.core.errors import ConfigError

Role = Literal["system", "user", "assistant"]
CacheKind = Literal["fp16", "q8"]


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
    """Answer the last user message of `messages`; `mode` names a prompt mode, `stop` adds to the mode's own strings."""

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
    """

    context: int | None = None
    cache: CacheKind = "fp16"
    device: str = "auto"
    exact: bool = False
    threads: int = 0
