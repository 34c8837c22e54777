"""The decode loop over a fake model whose next token depends on its whole cache."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support.fake_model import FakeModel, FakeTime, FakeTokenizer, hashed_token

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import ContextError, Exl2Error, GenerationError, PromptError
from exl2_tui.core.events import Event, GenerationFinished, PrefillProgress, TokenDelta
from exl2_tui.core.generation import generator as generator_module
from exl2_tui.core.generation.generator import Generator
from exl2_tui.core.requests import SamplerSettings

GREEDY = SamplerSettings.greedy()


def make(model: FakeModel | None = None, context: int = 512) -> tuple[Generator, FakeModel]:
    model = model or FakeModel()
    return Generator(model, FakeTokenizer(), model.new_cache(context)), model


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenDelta))


def ids_of(events: Sequence[Event]) -> list[int]:
    return [token for event in events if isinstance(event, TokenDelta) for token in event.token_ids]


def end_of(events: Sequence[Event]) -> GenerationFinished:
    assert isinstance(events[-1], GenerationFinished)
    assert sum(isinstance(event, GenerationFinished) for event in events) == 1
    return events[-1]


def expected_tokens(prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(hashed_token(ids))
    return ids[len(prompt) :]


def test_prefill_then_tokens_then_the_end() -> None:
    generator, model = make()
    prompt = list(range(10, 110))
    events = list(generator.stream(prompt, GREEDY, max_new_tokens=20, request_id=7))
    assert all(event.request_id == 7 for event in events)  # type: ignore[attr-defined]
    progress = [event.done for event in events if isinstance(event, PrefillProgress)]
    assert progress[0] == 0 and progress[-1] == 100 and progress == sorted(progress)
    assert ids_of(events) == expected_tokens(prompt, 20)
    assert text_of(events) == FakeTokenizer().decode(ids_of(events))
    end = end_of(events)
    assert (end.reason, end.prompt_tokens, end.cached_tokens, end.generated_tokens) == ("length", 100, 0, 20)
    assert (end.context_used, end.context_size) == (119, 512)
    assert sum(model.calls) == 119
    assert 0 < end.prefill_seconds <= end.first_token_seconds
    assert end.decode_seconds > 0


def test_a_common_prefix_is_not_run_again() -> None:
    generator, model = make()
    prompt = list(range(10, 60))
    first = list(generator.stream(prompt, GREEDY, max_new_tokens=5))
    longer = prompt + ids_of(first) + list(range(11, 23))
    model.calls.clear()
    assert generator.cached_tokens(longer) == 54  # the fifth generated token was never run
    second = list(generator.stream(longer, GREEDY, max_new_tokens=4))
    assert end_of(second).cached_tokens == 54
    assert model.calls == [13, 1, 1, 1]
    assert ids_of(second) == expected_tokens(longer, 4)
    # another prompt that shares the first ten
    other = prompt[:10] + [99] * 10
    third = list(generator.stream(other, GREEDY, max_new_tokens=4))
    assert end_of(third).cached_tokens == 10
    assert ids_of(third) == expected_tokens(other, 4)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 63, 64, 65, 71, 72, 73, 200])
def test_the_end_of_a_prompt_is_run_in_one_piece(length: int) -> None:
    generator, model = make()
    prompt = [5 + i % 250 for i in range(length)]
    first = list(generator.stream(prompt, GREEDY, max_new_tokens=1))
    assert model.calls[-1] >= min(8, length) and sum(model.calls) == length
    model.calls.clear()
    again = list(generator.stream(prompt, GREEDY, max_new_tokens=1))
    assert model.calls == [min(8, length)]
    assert end_of(again).cached_tokens == max(0, length - 8)
    assert ids_of(again) == ids_of(first)


def test_stop_token_is_not_text_and_not_cached() -> None:
    generator, _ = make(FakeModel(lambda ids: 4 if len(ids) == 8 else 70))
    events = list(generator.stream([1, 20, 30], GREEDY, max_new_tokens=100, stop_ids={4}))
    end = end_of(events)
    assert end.reason == "stop_token"
    assert end.generated_tokens == 6
    assert ids_of(events) == [70] * 5
    assert end.context_used == 8


def test_stop_string_across_tokens() -> None:
    tokenizer = FakeTokenizer()
    reply = tokenizer.encode("Yes, hello.\nUser: what")
    generator, _ = make(FakeModel(lambda ids: reply[len(ids) - 3]))
    events = list(generator.stream([1, 20, 30], GREEDY, max_new_tokens=100, stop_strings=["\nUser:"]))
    assert end_of(events).reason == "stop_string"
    assert text_of(events) == "Yes, hello."
    assert tokenizer.decode(ids_of(events)) == "Yes, hello."


def test_context_full_and_prompt_too_long() -> None:
    generator, _ = make(context=32)
    events = list(generator.stream(list(range(10, 40)), GREEDY, max_new_tokens=100))
    end = end_of(events)
    assert (end.reason, end.generated_tokens, end.context_used) == ("context", 3, 32)
    full = list(generator.stream(list(range(10, 42)), GREEDY, max_new_tokens=100))
    assert (end_of(full).reason, end_of(full).generated_tokens) == ("context", 1)
    with pytest.raises(ContextError, match=r"33 tokens.* 32"):
        list(generator.stream(list(range(10, 43)), GREEDY, max_new_tokens=1))
    with pytest.raises(PromptError, match="empty"):
        list(generator.stream([], GREEDY, max_new_tokens=1))


def test_cancel_while_decoding_stops_within_a_token() -> None:
    generator, _ = make()
    cancel = CancelToken()
    events: list[Event] = []
    for event in generator.stream([1, 20], GREEDY, max_new_tokens=100, cancel=cancel):
        events.append(event)
        if len(ids_of(events)) == 3 and not cancel.cancelled:
            cancel.cancel()
    assert len(ids_of(events)) <= 4
    assert end_of(events).reason == "cancelled"
    kept = [1, 20, *ids_of(events)]
    again = list(generator.stream(kept, GREEDY, max_new_tokens=3))
    assert end_of(again).cached_tokens == max(0, len(kept) - 8)
    assert ids_of(again) == expected_tokens(kept, 3)


def test_cancel_while_prefilling(monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = CancelToken()
    clock = FakeTime(lambda now: now > 0.2 and cancel.cancel())
    monkeypatch.setattr(generator_module, "time", clock)
    model = FakeModel(seconds_per_token=0.002, clock=clock)
    generator, _ = make(model)
    prompt = [5 + i % 250 for i in range(400)]
    events = list(generator.stream(prompt, GREEDY, max_new_tokens=5, cancel=cancel))
    end = end_of(events)
    assert (end.reason, end.generated_tokens) == ("cancelled", 0)
    assert end.first_token_seconds == pytest.approx(end.prefill_seconds)
    done = end.context_used
    assert 0 < done < 400
    model.seconds_per_token = 0
    again = list(generator.stream(prompt, GREEDY, max_new_tokens=5))
    assert end_of(again).cached_tokens == done
    assert ids_of(again) == expected_tokens(prompt, 5)


def test_cancelled_before_it_starts() -> None:
    generator, model = make()
    cancel = CancelToken()
    cancel.cancel()
    events = list(generator.stream([1, 2, 3], GREEDY, max_new_tokens=5, cancel=cancel))
    assert end_of(events).reason == "cancelled"
    assert model.calls == []


def test_chunks_adapt_to_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime()
    monkeypatch.setattr(generator_module, "time", clock)
    model = FakeModel(seconds_per_token=0.01, clock=clock)
    generator, _ = make(model)
    list(generator.stream([5 + i % 250 for i in range(150)], GREEDY, max_new_tokens=1))
    assert model.calls[0] == 64
    assert max(model.calls[2:]) <= 32
    fast = FakeModel(context=4096, clock=clock)
    generator, _ = make(fast, 4096)
    list(generator.stream([5 + i % 250 for i in range(1000)], GREEDY, max_new_tokens=1))
    assert max(fast.calls) >= 256


def test_an_abandoned_stream_leaves_a_valid_cache() -> None:
    generator, _ = make()
    stream = generator.stream([1, 20, 30], GREEDY, max_new_tokens=100)
    for _ in range(6):
        next(stream)
    del stream
    events = list(generator.stream([1, 20, 30], GREEDY, max_new_tokens=6))
    assert ids_of(events) == expected_tokens([1, 20, 30], 6)


class BrokenModel(FakeModel):
    """Fails at one length of the cache; until then a model like any other."""

    fail_at = 9
    nan = False

    def forward(self, ids, cache, *, all_logits=False, cancel=None):  # type: ignore[no-untyped-def]
        if cache.length == self.fail_at and not self.nan:
            raise Exl2Error("the weights have melted")
        logits = super().forward(ids, cache, all_logits=all_logits, cancel=cancel)
        return logits * torch.nan if cache.length == self.fail_at and self.nan else logits


@pytest.mark.parametrize("nan", [False, True])
def test_a_failing_model_leaves_a_valid_cache(nan: bool) -> None:
    model = BrokenModel()
    model.nan = nan
    generator, _ = make(model)
    with pytest.raises(GenerationError if nan else Exl2Error, match="NaN" if nan else "melted"):
        list(generator.stream([1, 20, 30], GREEDY, max_new_tokens=100))
    model.fail_at = -1
    events = list(generator.stream([1, 20, 30], GREEDY, max_new_tokens=10))
    assert ids_of(events) == expected_tokens([1, 20, 30], 10)


def test_equal_seed_gives_equal_text() -> None:
    hot = SamplerSettings(temperature=30.0, top_k=0, top_p=1.0, seed=11)
    runs = [text_of(list(make()[0].stream([1, 20], hot, max_new_tokens=50))) for _ in range(2)]
    assert runs[0] == runs[1]
    other = SamplerSettings(temperature=30.0, top_k=0, top_p=1.0, seed=12)
    assert text_of(list(make()[0].stream([1, 20], other, max_new_tokens=50))) != runs[0]


def test_no_new_tokens_only_runs_the_prompt() -> None:
    generator, _ = make()
    events = list(generator.stream([1, 20, 30], GREEDY, max_new_tokens=0))
    end = end_of(events)
    assert (end.reason, end.generated_tokens, end.context_used) == ("length", 0, 3)
