"""Trained models through the whole path: directory, tokenizer, prompt, model, sampler, text."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.engine import Engine
from exl2_tui.core.errors import ContextError, Exl2Error
from exl2_tui.core.evaluate import make_rows, perplexity, read_texts
from exl2_tui.core.events import (
    Event,
    GenerationFinished,
    LoadFinished,
    LoadProgress,
    PrefillProgress,
    PromptPreview,
    PromptReady,
    TokenDelta,
    Unloaded,
)
from exl2_tui.core.library.catalog import Library
from exl2_tui.core.library.machine import this_machine
from exl2_tui.core.requests import ChatRequest, CompletionRequest, LoadOptions, Message, SamplerSettings
from exl2_tui.service import Service

GREEDY = SamplerSettings.greedy()


@pytest.fixture(scope="module")
def engine(nano_chat_exl2: Path) -> Iterator[Engine]:
    engine = Engine()
    engine.load(nano_chat_exl2)
    yield engine
    engine.unload()


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenDelta))


def ids_of(events: Sequence[Event]) -> tuple[int, ...]:
    return tuple(token for event in events if isinstance(event, TokenDelta) for token in event.token_ids)


def last(events: Sequence[Event]) -> GenerationFinished:
    assert isinstance(events[-1], GenerationFinished)
    return events[-1]


@pytest.mark.parametrize("mode", ["auto", "chatml", "llama", "raw"])
def test_every_mode_it_was_trained_on_gives_an_answer(engine: Engine, mode: str) -> None:
    request = ChatRequest((Message("user", "What is a volcano?"),), mode=mode, sampler=GREEDY, max_new_tokens=60)
    events = list(engine.chat(request))
    assert text_of(events).startswith("A volcano is")
    assert last(events).reason in ("stop_token", "stop_string")
    assert engine.current.tokenizer.decode(ids_of(events), continuation=True).strip() == text_of(events).strip()


def test_the_next_turn_reuses_the_cache_and_a_retry_says_the_same(engine: Engine) -> None:
    messages = [Message("system", "You are kind."), Message("user", "What is a volcano?")]
    settings = SamplerSettings(seed=3)
    events = list(engine.chat(ChatRequest(tuple(messages), sampler=GREEDY)))
    used = last(events).context_used
    messages += [Message("assistant", text_of(events), ids_of(events)), Message("user", "And what is a river?")]
    first = list(engine.chat(ChatRequest(tuple(messages), sampler=settings)))
    assert last(first).cached_tokens == used
    retry = list(engine.chat(ChatRequest(tuple(messages), sampler=settings)))
    assert last(retry).cached_tokens == last(first).prompt_tokens - 8
    assert text_of(retry) == text_of(first)


def test_equal_seed_equal_text(engine: Engine) -> None:
    def story(seed: int) -> str:
        return text_of(
            list(engine.complete(CompletionRequest("Once upon a time,", sampler=SamplerSettings(seed=seed))))
        )

    first = story(7)
    assert first.startswith(" ") and len(first) > 100
    assert story(7) == first
    assert story(8) != first


def test_fifty_turns(nano_chat_exl2: Path) -> None:
    engine = Engine()
    assert engine.load(nano_chat_exl2, LoadOptions(context=256)).context == 256
    messages = [Message("system", "You are a friendly assistant named Robin.")]
    dropped = 0
    for turn in range(50):
        messages.append(Message("user", f"Question {turn}: tell me something about the number {turn}, please."))
        request = ChatRequest(tuple(messages), sampler=SamplerSettings(seed=turn), max_new_tokens=40)
        events = list(engine.chat(request))
        start = events[0]
        assert isinstance(start, PromptReady)
        assert start.prompt_tokens <= 256 - 40 and start.dropped >= dropped
        assert last(events).reason != "context" and last(events).context_used <= 256
        dropped = start.dropped
        messages.append(Message("assistant", text_of(events), ids_of(events)))
    assert dropped > 60
    with pytest.raises(ContextError, match=r"but the context holds 256"):
        list(engine.chat(ChatRequest((messages[0], Message("user", "word " * 400)))))
    engine.unload()


def test_cancel_stops_a_prompt_and_an_answer_at_once(engine: Engine) -> None:
    for wait_for in (PrefillProgress, TokenDelta):
        cancel = CancelToken()
        prompt = CompletionRequest("The sea was calm that night. " * 100, max_new_tokens=1000)
        events = []
        for event in engine.complete(prompt, cancel=cancel):
            if cancel.cancelled:
                events.append(event)
            elif isinstance(event, wait_for):
                cancel.cancel()
        assert last(events).reason == "cancelled"
        assert len(events) <= 2  # at most text that was held back comes before the end


def test_the_meter_of_the_loaded_model_says_what_the_list_says(engine: Engine, nano_chat_exl2: Path) -> None:
    listed = Library([nano_chat_exl2]).list(machine=this_machine())
    needs = next(model.memory for model in listed if model.path == str(nano_chat_exl2))
    assert engine.loaded is not None and engine.loaded.memory_bytes == needs > engine.loaded.weight_bytes


def test_unloading_gives_the_memory_back(nano_chat: Path) -> None:
    process = psutil.Process()
    engine = Engine()
    engine.load(nano_chat)
    engine.unload()
    before = process.memory_info().rss
    for _ in range(4):
        engine.load(nano_chat)
        list(engine.complete(CompletionRequest("Once", sampler=GREEDY, max_new_tokens=2)))
        engine.unload()
    assert process.memory_info().rss - before < 12 << 20  # the weights alone are 24 MB


def test_unloading_by_the_service_gives_back_what_loading_took(small_chat: Path) -> None:
    """As the screen does it: 97 MB of weights, cache and working space come and go."""
    process, events, arrived = psutil.Process(), [], threading.Condition()

    def post(event: Event) -> None:
        with arrived:
            events.append(event)
            arrived.notify_all()

    def wait(kind: type[Event], count: int) -> None:
        with arrived:
            assert arrived.wait_for(lambda: sum(isinstance(event, kind) for event in events) == count, 300), events

    service = Service(post)
    try:
        sizes = []
        for count in (1, 2, 3):  # the first rounds fill caches that stay
            service.load(str(small_chat), LoadOptions(device="cpu"))
            wait(LoadFinished, count)
            service.complete(CompletionRequest("Once", sampler=GREEDY, max_new_tokens=4))
            wait(GenerationFinished, count)
            loaded = process.memory_info().rss
            service.unload()
            wait(Unloaded, count)
            sizes.append((loaded, process.memory_info().rss))
        (_, before), (loaded, after) = sizes[1:]
        assert loaded - before > 60 << 20
        assert after - before < (loaded - before) / 4
    finally:
        service.close()


def test_a_directory_that_cannot_be_loaded_leaves_the_model(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Exl2Error):
        engine.load(tmp_path)
    assert engine.loaded is not None
    assert text_of(list(engine.complete(CompletionRequest("Once", sampler=GREEDY, max_new_tokens=3))))


def test_a_cancelled_load_loads_nothing(nano_chat: Path) -> None:
    cancel = CancelToken()
    engine = Engine()

    def stop(event: Event) -> None:
        assert isinstance(event, LoadProgress) and 0 < event.done <= event.total
        cancel.cancel()

    with pytest.raises(Exl2Error, match="cancelled"):
        engine.load(nano_chat, on_event=stop, cancel=cancel)
    assert engine.loaded is None


def test_the_service_around_a_real_engine(nano_chat_exl2: Path) -> None:
    events: list[Event] = []
    changed = threading.Condition()

    def post(event: Event) -> None:
        with changed:
            events.append(event)
            changed.notify()

    def wait(kind: type[Event]) -> Event:
        with changed:
            assert changed.wait_for(lambda: any(isinstance(event, kind) for event in events), 300), events[-3:]
        return next(event for event in events if isinstance(event, kind))

    service = Service(post)
    service.load(str(nano_chat_exl2), LoadOptions())
    wait(LoadFinished)
    messages = (Message("user", "What is a volcano?"),)
    service.preview_prompt(messages, "chatml", 3)
    service.generate(ChatRequest(messages, mode="chatml", sampler=GREEDY))
    assert isinstance(wait(GenerationFinished), GenerationFinished)
    preview = wait(PromptPreview)
    assert isinstance(preview, PromptPreview)
    assert "".join(part.text for part in preview.parts).endswith("<|im_start|>assistant\n")
    assert text_of(events).startswith("A volcano is")
    service.close()


@pytest.mark.slow
def test_perplexity_of_the_real_quantized_model(engine: Engine, shared: Path) -> None:
    """The reference points of the models' own notes: 67 texts, 32,047 predicted tokens, 30.56."""
    rows = make_rows(read_texts(shared / "models" / "val.jsonl"), engine.current.tokenizer)
    assert (len(rows), sum(len(row) - 1 for row in rows)) == (67, 32_047)
    result = perplexity(engine.current.model, rows)
    assert result.perplexity == pytest.approx(30.56, abs=0.05)
