"""The service with engines that only pretend, in plain threads, without torch and without Textual."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CheckpointError, GenerationError, NotFoundError
from exl2_tui.core.events import (
    Event,
    Failed,
    GenerationFinished,
    LoadFinished,
    LoadProgress,
    ModelInfo,
    ModelsListed,
    ModesListed,
    PromptPreview,
    SamplerPreview,
    SamplerStep,
    TokenChance,
    TokenDelta,
    Unloaded,
)
from exl2_tui.core.requests import ChatRequest, CompletionRequest, LoadOptions, Message, SamplerSettings
from exl2_tui.service import Service, join_deltas

LIMIT = 60.0  # seconds; reached only by what never comes
INFO = LoadFinished("fake", "LlamaForCausalLM", "fake", 512, 1, 1, 2, 0.0, "cpu", "fake")


def end(request_id: int, reason: Any = "length") -> GenerationFinished:
    return GenerationFinished(request_id, reason, 1, 0, 1, 0.1, 0.1, 0.1, 2, 512, 0)


class SlowEngine:
    """Says "x" every 5 ms until it has said `words` or is cancelled; loads until cancelled while `hold_load` is set."""

    def __init__(self) -> None:
        self.words = 10**9
        self.hold_load = False
        self.loaded: LoadFinished | None = None
        self.threads: set[str] = set()
        self.unloads = 0
        self.stuck = threading.Event()  # in a computation that looks at no token
        self.let_go = threading.Event()

    def load(
        self, path: Path, options: LoadOptions, on_event: Callable[[Event], None], cancel: CancelToken
    ) -> LoadFinished:
        self.threads.add(threading.current_thread().name)
        if path.name == "bad":
            raise CheckpointError("the file is cut off", file=path, hint="Fetch it again")
        on_event(LoadProgress("fake", 0, 20, "t"))
        while self.hold_load:
            cancel.check()
            time.sleep(0.005)
        self.loaded = INFO
        return INFO

    def unload(self) -> None:
        self.unloads += 1
        self.loaded = None

    def chat(self, request: ChatRequest, request_id: int, cancel: CancelToken) -> Iterator[Event]:
        text = request.messages[-1].content
        if text == "nan":
            yield TokenDelta(request_id, "so far", (1,))
            yield TokenDelta(request_id, " so good", (2,))
            raise GenerationError("the model computed NaN", hint="Check the files")
        if text == "bug":
            raise ZeroDivisionError("oops")
        if text == "stuck":
            self.stuck.set()
            self.let_go.wait(LIMIT)
        for i in range(self.words):
            if cancel.cancelled:
                yield end(request_id, "cancelled")
                return
            yield TokenDelta(request_id, "x", (i,))
            time.sleep(0.005)
        yield end(request_id)

    def complete(self, request: CompletionRequest, request_id: int, cancel: CancelToken) -> Iterator[Event]:
        yield TokenDelta(request_id, request.prompt.upper(), (1,))
        yield end(request_id)

    def preview(self, messages: Sequence[Message], mode: str, *, user_name: str, bot_name: str) -> Any:
        raise NotFoundError(f"no mode {mode}")

    def explain_sampling(self, settings: SamplerSettings) -> tuple[SamplerStep, ...]:
        if settings.temperature == 0:
            raise NotFoundError("no prompt has been run yet", hint="Ask something first")
        return (SamplerStep("model", 2, (TokenChance(1, " x", 0.75),)),)


class FakeLibrary:
    used: ClassVar[list[Path]] = []

    def resolve(self, model: str) -> Path:
        if model == "missing":
            raise NotFoundError("no model 'missing'", hint="See the list")
        return Path(model or "built-in")

    def list(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo("fake", "fake", "built-in", "Llama", "fake", 16.0, 1, 512),)

    def mark_used(self, path: Path) -> None:
        self.used.append(path)


class Listener:
    """Collects events and waits for them."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append((time.perf_counter(), event))
            self._changed.notify_all()

    def wait(self, matches: Callable[[Event], bool], timeout: float = LIMIT) -> Event:
        def found() -> Event | None:
            return next((event for _, event in self.events if matches(event)), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() is not None, timeout), [e for _, e in self.events][-5:]
        event = found()
        assert event is not None
        return event

    def of(self, request_id: int) -> list[Event]:
        return [event for _, event in self.events if getattr(event, "request_id", None) == request_id]

    def end(self, request_id: int) -> Event:
        return self.wait(
            lambda e: isinstance(e, GenerationFinished | Failed) and e.request_id == request_id  # type: ignore[union-attr]
        )


class Bench:
    def __init__(self) -> None:
        self.engine = SlowEngine()
        self.heard = Listener()
        self.service = Service(self.heard, lambda: self.engine, FakeLibrary)

    def load(self) -> None:
        self.service.load("fake", LoadOptions())
        self.heard.wait(lambda e: isinstance(e, LoadFinished))

    def ask(self, text: str = "hi") -> int:
        return self.service.generate(ChatRequest((Message("user", text),)))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.service.close()


def test_load_and_generate_on_one_worker_thread(bench: Bench) -> None:
    bench.engine.words = 30
    load_id = bench.service.load("", LoadOptions())
    assert bench.engine.loaded is None  # the call did not wait
    bench.heard.wait(lambda e: isinstance(e, LoadFinished))
    request_id = bench.ask()
    assert request_id != load_id
    assert bench.heard.end(request_id) == end(request_id)
    text = "".join(e.text for e in bench.heard.of(request_id) if isinstance(e, TokenDelta))
    ids = [i for e in bench.heard.of(request_id) if isinstance(e, TokenDelta) for i in e.token_ids]
    assert text == "x" * 30
    assert ids == list(range(30))
    assert bench.engine.threads == {"exl2-engine"}


def test_deltas_are_joined(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exl2_tui.service.JOIN_SECONDS", 10**9)
    bench.engine.words = 20
    bench.load()
    request_id = bench.ask()
    bench.heard.end(request_id)
    deltas = [e for e in bench.heard.of(request_id) if isinstance(e, TokenDelta)]
    assert [e.text for e in deltas] == ["x", "x" * 19]  # the first at once


def test_joining_by_the_clock() -> None:
    now = 0.0

    def deltas(step: float) -> Iterator[Event]:
        nonlocal now
        for i in range(10):
            yield TokenDelta(1, str(i), (i,))
            now += step
        yield end(1)

    fast = list(join_deltas(deltas(0.010), lambda: now))
    assert [e.text for e in fast if isinstance(e, TokenDelta)] == ["0", "123", "456", "789"]
    assert fast[1] == TokenDelta(1, "123", (1, 2, 3))
    assert isinstance(fast[-1], GenerationFinished)
    slow = list(join_deltas(deltas(0.050), lambda: now))
    assert [e.text for e in slow if isinstance(e, TokenDelta)] == list("0123456789")


def test_cancel_is_at_once_and_what_waits_is_answered(bench: Bench) -> None:
    bench.load()
    first, second, third = bench.ask(), bench.ask(), bench.ask()
    bench.heard.wait(lambda e: isinstance(e, TokenDelta))
    bench.service.cancel(second)
    waiting = bench.heard.end(second)
    assert isinstance(waiting, GenerationFinished) and waiting.reason == "cancelled"
    assert waiting.context_size == 512
    bench.service.cancel(first)
    ended = bench.heard.end(first)
    assert isinstance(ended, GenerationFinished) and ended.reason == "cancelled"
    bench.heard.wait(lambda e: isinstance(e, TokenDelta) and e.request_id == third)
    assert not [e for e in bench.heard.of(second) if isinstance(e, TokenDelta)]
    bench.service.cancel(12345)  # unknown: nothing happens
    bench.service.cancel()
    bench.heard.end(third)


def test_queued_requests_run_in_order(bench: Bench) -> None:
    bench.engine.words = 3
    bench.load()
    numbers = [bench.ask() for _ in range(5)]
    for number in numbers:
        bench.heard.end(number)
    ends = [e.request_id for _, e in bench.heard.events if isinstance(e, GenerationFinished)]
    assert ends == numbers


def test_errors_become_events_and_the_service_goes_on(bench: Bench) -> None:
    bench.engine.words = 2
    assert bench.heard.end(bench.ask()) == Failed("No model is loaded", "Load a model first", 1)
    missing = bench.service.load("missing")
    assert bench.heard.end(missing) == Failed("no model 'missing'", "See the list", missing)
    bad = bench.service.load("bad")
    assert bench.heard.end(bad) == Failed("bad: the file is cut off", "Fetch it again", bad)
    bench.load()
    broken = bench.ask("nan")
    assert bench.heard.end(broken) == Failed("the model computed NaN", "Check the files", broken)
    assert "".join(e.text for e in bench.heard.of(broken) if isinstance(e, TokenDelta)) == "so far so good"
    bug = bench.heard.end(bench.ask("bug"))
    assert isinstance(bug, Failed) and "ZeroDivisionError" in bug.message
    assert isinstance(bench.heard.end(bench.ask()), GenerationFinished)
    number = bench.service.complete(CompletionRequest("abc"))
    bench.heard.end(number)
    assert [e.text for e in bench.heard.of(number) if isinstance(e, TokenDelta)] == ["ABC"]


def test_unload_stops_the_answer_and_later_requests_fail(bench: Bench) -> None:
    bench.load()
    running = bench.ask()
    bench.heard.wait(lambda e: isinstance(e, TokenDelta))
    bench.service.unload()
    assert bench.heard.wait(lambda e: isinstance(e, Unloaded)) == Unloaded("fake")
    ended = bench.heard.end(running)
    assert isinstance(ended, GenerationFinished) and ended.reason == "cancelled"
    assert isinstance(bench.heard.end(bench.ask()), Failed)
    count = len(bench.heard.events)
    bench.service.unload()  # nothing to say
    bench.heard.end(bench.ask())
    assert len(bench.heard.events) == count + 1


def test_a_cancelled_load(bench: Bench) -> None:
    bench.engine.hold_load = True
    load_id = bench.service.load("fake")
    bench.heard.wait(lambda e: isinstance(e, LoadProgress))
    bench.service.cancel(load_id)
    assert bench.heard.end(load_id) == Failed("Loading was stopped", "", load_id)
    assert not any(isinstance(e, LoadFinished) for _, e in bench.heard.events)
    bench.engine.hold_load = False
    bench.load()


def test_a_second_load_replaces_the_first(bench: Bench) -> None:
    bench.engine.hold_load = True
    first = bench.service.load("fake")
    second = bench.service.load("fake")
    assert isinstance(bench.heard.end(first), Failed)
    bench.engine.hold_load = False
    bench.heard.wait(lambda e: isinstance(e, LoadFinished))
    assert not bench.heard.of(second)
    assert sum(isinstance(e, LoadFinished) for _, e in bench.heard.events) == 1


def test_close_stops_an_answer_and_then_all_is_silent() -> None:
    bench = Bench()
    bench.load()
    bench.ask()
    bench.heard.wait(lambda e: isinstance(e, TokenDelta))
    bench.service.close(LIMIT)  # the answer has no end of its own
    worker = bench.service._main._thread
    assert not worker.is_alive()
    count = len(bench.heard.events)
    bench.ask()
    assert not bench.service._main._waiting and len(bench.heard.events) == count


def test_close_does_not_wait_for_what_cannot_be_stopped() -> None:
    bench = Bench()
    bench.load()
    bench.ask("stuck")
    assert bench.engine.stuck.wait(LIMIT)
    count = len(bench.heard.events)
    bench.service.close(0.1)
    worker = bench.service._main._thread
    assert worker.is_alive()
    bench.engine.let_go.set()
    worker.join(LIMIT)
    assert not worker.is_alive() and len(bench.heard.events) == count


def test_close_without_ever_starting() -> None:
    Bench().service.close()


def test_small_questions_are_answered_while_text_is_generated(bench: Bench) -> None:
    bench.load()
    running = bench.ask()
    bench.heard.wait(lambda e: isinstance(e, TokenDelta))
    bench.service.list_models()
    bench.service.preview_prompt([Message("user", "x")], "odd", 77)
    bench.service.list_modes()
    models = bench.heard.wait(lambda e: isinstance(e, ModelsListed))
    assert isinstance(models, ModelsListed) and models.models[0].name == "fake"
    preview = bench.heard.wait(lambda e: isinstance(e, PromptPreview))
    assert preview == PromptPreview(77, "odd", (), 0, error="no mode odd")
    modes = bench.heard.wait(lambda e: isinstance(e, ModesListed))
    assert isinstance(modes, ModesListed)
    assert modes.modes[0].name == "auto" and "chatml" in [mode.name for mode in modes.modes]
    assert not any(isinstance(e, GenerationFinished) for e in bench.heard.of(running))


def test_the_sampler_is_previewed_while_text_is_generated(bench: Bench) -> None:
    bench.service.preview_sampler(SamplerSettings(), 1)
    answer = bench.heard.wait(lambda e: isinstance(e, SamplerPreview) and e.token == 1)
    assert answer == SamplerPreview(1, error="No model is loaded")
    bench.load()
    request = bench.ask()
    bench.service.preview_sampler(SamplerSettings(), 2)
    answer = bench.heard.wait(lambda e: isinstance(e, SamplerPreview) and e.token == 2)
    assert answer == SamplerPreview(2, (SamplerStep("model", 2, (TokenChance(1, " x", 0.75),)),))
    bench.service.preview_sampler(SamplerSettings.greedy(), 3)
    answer = bench.heard.wait(lambda e: isinstance(e, SamplerPreview) and e.token == 3)
    assert answer == SamplerPreview(3, error="No prompt has been run yet. Ask something first")
    bench.service.cancel(request)


def test_a_preview_without_a_model(bench: Bench) -> None:
    bench.service.preview_prompt([Message("user", "x")], "raw", 1)
    assert bench.heard.wait(lambda e: isinstance(e, PromptPreview)) == PromptPreview(
        1, "raw", (), 0, error="No model is loaded"
    )


def test_importing_and_making_a_service_loads_no_torch() -> None:
    code = (
        "import sys, exl2_tui.service as s; x = s.Service(lambda e: None); x.close();"
        "sys.exit('torch' in sys.modules or 'textual' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
