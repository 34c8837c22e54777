"""Service: the only bridge between a user interface and the core. Imports nothing heavy until the first load.

Calls return at once; answers arrive as events at `post`. One thread owns the engine and does one thing after another;
a second one answers small questions (previews, lists) meanwhile.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, Exl2Error
from exl2_tui.core.events import (
    Event,
    Failed,
    GenerationFinished,
    LoadFinished,
    MachineFound,
    ModeChoice,
    ModelInfo,
    ModelsListed,
    ModesListed,
    PromptPart,
    PromptPreview,
    SamplerPreview,
    SamplerStep,
    TokenDelta,
    Unloaded,
)
from exl2_tui.core.requests import ChatRequest, CompletionRequest, LoadOptions, Message, SamplerSettings

if TYPE_CHECKING:
    from exl2_tui.core.prompts import EncodedPrompt

JOIN_SECONDS = 0.03
CLOSE_SECONDS = 1.0


class ServiceEngine(Protocol):
    """What the service needs of core.engine.Engine."""

    @property
    def loaded(self) -> LoadFinished | None: ...

    def load(
        self, path: Path, options: LoadOptions, on_event: Callable[[Event], None], cancel: CancelToken
    ) -> LoadFinished: ...

    def unload(self) -> None: ...
    def chat(self, request: ChatRequest, request_id: int, cancel: CancelToken) -> Iterator[Event]: ...
    def complete(self, request: CompletionRequest, request_id: int, cancel: CancelToken) -> Iterator[Event]: ...
    def preview(self, messages: Sequence[Message], mode: str, *, user_name: str, bot_name: str) -> EncodedPrompt: ...
    def explain_sampling(self, settings: SamplerSettings) -> tuple[SamplerStep, ...]: ...


class ServiceLibrary(Protocol):
    """What the service needs of core.library.Library."""

    def resolve(self, model: str) -> Path: ...
    def list(self) -> tuple[ModelInfo, ...]: ...
    def mark_used(self, path: Path) -> None: ...


@dataclass(slots=True)
class _Task:
    """Work for a thread. run yields the events to post; cancelled says what to post if it is stopped."""

    id: int
    run: Callable[[CancelToken], Iterable[Event]]
    cancelled: Callable[[], Event]
    token: CancelToken = field(default_factory=CancelToken)


class Service:
    """Loads models and generates text on a thread of its own.

    post: takes every event; called from the service's threads, and from the thread that cancels a request which is
    still waiting. make_engine, make_library: run on the service's threads; tests give fakes.
    """

    def __init__(
        self,
        post: Callable[[Event], None],
        make_engine: Callable[[], ServiceEngine] | None = None,
        make_library: Callable[[], ServiceLibrary] | None = None,
    ) -> None:
        self._receiver = post
        self._make_engine = make_engine or _real_engine
        self._make_library = make_library or _real_library
        self._ids = itertools.count(1)
        self._engine: ServiceEngine | None = None
        self._closed = False
        self._main = _Worker("exl2-engine", self._post)
        self._side = _Worker("exl2-side", self._post)

    def load(self, model: str, options: LoadOptions | None = None) -> int:
        """Loads a model by name or path ("" for the last one or the built-in) in place of the one there is.

        Whatever runs or waits is cancelled first. Answers: LoadProgress, then LoadFinished, or Failed with the
        returned id, also if the load was cancelled.
        """
        load_id = next(self._ids)

        def run(token: CancelToken) -> Iterator[Event]:
            library = self._make_library()
            path = library.resolve(model)
            engine = self._engine = self._engine or self._make_engine()
            finished = engine.load(path, options or LoadOptions(), self._post, token)
            if token.cancelled:
                engine.unload()
                raise CancelledError
            library.mark_used(path)
            yield finished

        self.cancel()
        self._main.submit(_Task(load_id, run, lambda: Failed("Loading was stopped", "", load_id)))
        return load_id

    def unload(self) -> None:
        """Cancels whatever runs or waits and frees the model. Answer: Unloaded; nothing if there was no model."""

        def run(token: CancelToken) -> Iterator[Event]:
            info = self._engine.loaded if self._engine is not None else None
            if self._engine is not None and info is not None:
                self._engine.unload()
                yield Unloaded(info.model)

        self.cancel()
        unload_id = next(self._ids)
        self._main.submit(_Task(unload_id, run, lambda: Failed("Unloading was stopped", "", unload_id)))

    def generate(self, request: ChatRequest) -> int:
        """Answers a chat, after the requests before it. The last event is GenerationFinished or Failed."""
        return self._generate(lambda engine, number, token: engine.chat(request, number, token))

    def complete(self, request: CompletionRequest) -> int:
        """Continues a text, otherwise as generate."""
        return self._generate(lambda engine, number, token: engine.complete(request, number, token))

    def cancel(self, request_id: int | None = None) -> None:
        """Stops a request or load, running or waiting; None stops all. What is over already is left alone."""
        self._main.cancel(request_id)

    def preview_prompt(
        self,
        messages: Sequence[Message],
        mode: str,
        token: int,
        *,
        user_name: str = "User",
        bot_name: str = "Chatbort",
    ) -> None:
        """Answers with PromptPreview(token, ...), also while text is generated."""

        def run(_: CancelToken) -> Iterator[Event]:
            try:
                if self._engine is None or self._engine.loaded is None:
                    yield PromptPreview(token, mode, (), 0, error="No model is loaded")
                    return
                prompt = self._engine.preview(messages, mode, user_name=user_name, bot_name=bot_name)
            except Exl2Error as error:
                yield PromptPreview(token, mode, (), 0, error=str(error))
                return
            parts = tuple(PromptPart(part.text, part.special, part.role) for part in prompt.segments)
            yield PromptPreview(token, prompt.mode, parts, len(prompt.ids), prompt.stop_strings, prompt.note)

        self._side.submit(_Task(next(self._ids), run, lambda: PromptPreview(token, mode, (), 0, error="Stopped")))

    def preview_sampler(self, settings: SamplerSettings, token: int) -> None:
        """Answers with SamplerPreview(token, ...), also while text is generated."""

        def run(_: CancelToken) -> Iterator[Event]:
            if self._engine is None or self._engine.loaded is None:
                yield SamplerPreview(token, error="No model is loaded")
                return
            try:
                yield SamplerPreview(token, self._engine.explain_sampling(settings))
            except Exl2Error as error:
                message = error.message[:1].upper() + error.message[1:]
                yield SamplerPreview(token, error=f"{message}. {error.hint or ''}".strip())

        self._side.submit(_Task(next(self._ids), run, lambda: SamplerPreview(token, error="Stopped")))

    def describe_machine(self) -> None:
        """Answers with MachineFound."""

        def run(_: CancelToken) -> Iterator[Event]:
            from exl2_tui.core.library.hardware import describe_machine
            from exl2_tui.settings import data_dir

            yield describe_machine(data_dir())

        self._side.submit(_Task(next(self._ids), run, lambda: MachineFound("", 0, "", None, None)))

    def list_modes(self) -> None:
        """Answers with ModesListed."""

        def run(_: CancelToken) -> Iterator[Event]:
            from exl2_tui.core import prompts

            yield ModesListed(tuple(ModeChoice(name, prompts.get(name).description) for name in prompts.names()))

        self._side.submit(_Task(next(self._ids), run, lambda: ModesListed(())))

    def list_models(self) -> None:
        """Answers with ModelsListed."""

        def run(_: CancelToken) -> Iterator[Event]:
            yield ModelsListed(self._make_library().list())

        self._side.submit(_Task(next(self._ids), run, lambda: ModelsListed(())))

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Stops everything and returns within `timeout` seconds; nothing is posted afterwards."""
        self._closed = True
        deadline = time.monotonic() + timeout
        for worker in (self._main, self._side):
            worker.stop()
        for worker in (self._main, self._side):
            worker.join(max(0.0, deadline - time.monotonic()))

    def _generate(self, start: Callable[[ServiceEngine, int, CancelToken], Iterator[Event]]) -> int:
        request_id = next(self._ids)

        def run(token: CancelToken) -> Iterator[Event]:
            if self._engine is None or self._engine.loaded is None:
                yield Failed("No model is loaded", "Load a model first", request_id)
                return
            yield from join_deltas(start(self._engine, request_id, token))

        def never_started() -> GenerationFinished:
            info = self._engine.loaded if self._engine is not None else None
            context = info.context if info is not None else 0
            return GenerationFinished(request_id, "cancelled", 0, 0, 0, 0.0, 0.0, 0.0, 0, context_size=context, seed=0)

        self._main.submit(_Task(request_id, run, never_started))
        return request_id

    def _post(self, event: Event) -> None:
        if not self._closed:
            self._receiver(event)


class _Worker:
    """A thread that performs tasks one after another. It starts with the first task and ends with `stop`."""

    def __init__(self, name: str, post: Callable[[Event], None]) -> None:
        self._post = post
        self._changed = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._running: _Task | None = None
        self._stopped = False
        # A daemon: a native call that cannot be interrupted must not keep the program from ending.
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def submit(self, task: _Task) -> None:
        with self._changed:
            if self._stopped:
                return
            if not self._thread.ident:
                self._thread.start()
            self._waiting.append(task)
            self._changed.notify()

    def cancel(self, task_id: int | None) -> None:
        """Cancels one task or all. The running one ends by itself soon; a waiting one is answered for at once."""
        with self._changed:
            dropped = [task for task in self._waiting if task_id in (None, task.id)]
            for task in dropped:
                self._waiting.remove(task)
            if self._running is not None and task_id in (None, self._running.id):
                self._running.token.cancel()
        for task in dropped:
            self._post(task.cancelled())

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            if self._running is not None:
                self._running.token.cancel()
            self._changed.notify()

    def join(self, timeout: float) -> None:
        if self._thread.ident and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                self._running = self._waiting.popleft()
            self._perform(self._running)

    def _perform(self, task: _Task) -> None:
        try:
            for event in task.run(task.token):
                self._post(event)
        except CancelledError:
            self._post(task.cancelled())
        except Exl2Error as error:
            self._post(
                Failed(str(Exl2Error(error.message, file=error.file, tensor=error.tensor)), error.hint or "", task.id)
            )
        except MemoryError:
            self._post(Failed("There is not enough memory", "Close other programs, or use a smaller context", task.id))
        except Exception as error:  # noqa: BLE001  a bug in the core must neither end the thread nor stay unseen
            what = f"Internal error: {type(error).__name__}: {error}"
            self._post(Failed(what, "This is a bug in exl2-tui; please report it", task.id))


def join_deltas(events: Iterable[Event], clock: Callable[[], float] = time.monotonic) -> Iterator[Event]:
    """The same events, with the text of about 30 ms in one TokenDelta: screens draw 20 times a second, not 1,000.

    Text waits only behind text that was sent less than 30 ms ago, so a slow model's tokens pass one by one.
    """
    last = clock() - JOIN_SECONDS
    held: list[TokenDelta] = []

    def joined() -> TokenDelta:
        text = "".join(delta.text for delta in held)
        ids = tuple(token for delta in held for token in delta.token_ids)
        return TokenDelta(held[0].request_id, text, ids)

    try:
        for event in events:
            if isinstance(event, TokenDelta):
                held.append(event)
                if clock() - last < JOIN_SECONDS:
                    continue
                last = clock()
                event = joined()
                held.clear()
            elif held:
                yield joined()
                held.clear()
            yield event
    except Exception:
        if held:  # what was written before the model failed is kept
            yield joined()
        raise


def _real_engine() -> ServiceEngine:
    from exl2_tui.core.engine import Engine

    # torch came with objects by the hundred thousand, which stay: looking through them for garbage, as happens in the
    # middle of answers, would stop screen and engine for a tenth of a second.
    gc.freeze()
    return Engine()


def _real_library() -> ServiceLibrary:
    from exl2_tui.models_source import open_library

    return open_library()
