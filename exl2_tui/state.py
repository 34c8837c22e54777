"""What the app knows, as plain data: the model, the meters, what was just said. No Textual, no threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from exl2_tui.core.events import Event, LoadFinished
from exl2_tui.core.requests import ChatRequest, LoadOptions, Message, SamplerSettings
from exl2_tui.settings import Settings
from exl2_tui.store.tree import Chat, Turn

ModelStatus = Literal["none", "loading", "ready", "failed"]
WritingPhase = Literal["saving", "reading", "writing", "stopping"]
Clock = Callable[[], float]


class ModelService(Protocol):
    """The part of `service.Service` the app uses. Every answer arrives as an event; no call blocks."""

    def load(self, model: str, options: LoadOptions) -> int: ...
    def unload(self) -> None: ...
    def generate(self, request: ChatRequest) -> int: ...
    def cancel(self, request_id: int | None = None) -> None: ...
    def preview_prompt(
        self, messages: Sequence[Message], mode: str, token: int, *, user_name: str, bot_name: str
    ) -> None: ...
    def preview_sampler(self, settings: SamplerSettings, token: int) -> None: ...
    def list_modes(self) -> None: ...
    def describe_machine(self) -> None: ...
    def list_models(self) -> None: ...
    def close(self, timeout: float) -> None: ...


@runtime_checkable
class HearsService(Protocol):
    """A screen that wants answers of the service that change no state, such as previews."""

    def service_event(self, event: Event) -> None: ...


@runtime_checkable
class Draws(Protocol):
    """A screen that shows the session."""

    def repaint(self, changes: Changes) -> None: ...


@runtime_checkable
class HoldsSettings(Protocol):
    """A screen with a copy of the settings, which must hear of changes that are made elsewhere."""

    def take(self, settings: Settings) -> None: ...


@dataclass(slots=True)
class ModelState:
    """Which model there is. name, options: as the person asked for it. done, total: bytes while loading."""

    status: ModelStatus = "none"
    name: str = ""
    load_id: int = -1
    done: int = 0
    total: int = 0
    error: str = ""
    hint: str = ""
    info: LoadFinished | None = None
    options: LoadOptions | None = None


@dataclass(slots=True)
class Writing:
    """The answer being made. It belongs to its chat, whichever chat is on screen. Times by the app's clock.

    tokens: of this run; token_ids: of the whole answer. continued: it goes on with text that was there before.
    """

    chat: Chat
    turn: Turn
    phase: WritingPhase = "saving"
    request_id: int = -1
    started: float = 0.0
    first_token: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    prefilled: int = 0
    token_ids: list[int] = field(default_factory=list)
    continued: bool = False

    def speed(self, now: float) -> float:
        """Tokens per second since the first one; 0 until there is something to measure."""
        seconds = now - self.first_token
        return (self.tokens - 1) / seconds if self.first_token and seconds > 0.2 else 0.0

    def pace(self, now: float) -> float:
        """Tokens per second as far as they can be told at once: rough, but there from the second frame on."""
        return self.tokens / max(now - self.first_token, 0.05) if self.first_token else 0.0


@dataclass(frozen=True, slots=True)
class Queued:
    """A message that waits until it may be asked, in the chat it was written in."""

    chat: Chat
    text: str


@dataclass(slots=True)
class Meters:
    """Tokens in the cache and how many fit; speed of the last answer in tokens per second."""

    context_used: int = 0
    context_size: int = 0
    speed: float = 0.0


@dataclass(frozen=True, slots=True)
class Changes:
    """What a step touched, so that only that is drawn again.

    model: header. turns: which turns there are. live: text of the answer. status: meters. queue: waiting messages.
    chats: which chats there are. jobs: conversions. keys: which key does what. flash: one line of feedback.
    """

    model: bool = False
    turns: bool = False
    live: bool = False
    status: bool = False
    queue: bool = False
    chats: bool = False
    jobs: bool = False
    keys: bool = False
    flash: str = ""

    def __or__(self, other: Changes) -> Changes:
        return Changes(
            self.model or other.model,
            self.turns or other.turns,
            self.live or other.live,
            self.status or other.status,
            self.queue or other.queue,
            self.chats or other.chats,
            self.jobs or other.jobs,
            self.keys or other.keys,
            other.flash or self.flash,
        )
