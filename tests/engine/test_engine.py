"""The engine around a fake model: chats, overflow, replacing and freeing models."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.fake_model import FakeModel, FakeTokenizer, fake_engine, loaded_model

from exl2_tui.core.engine import Engine, model_name
from exl2_tui.core.errors import CheckpointError, ContextError, NotFoundError, PromptError
from exl2_tui.core.events import Event, GenerationFinished, PrefillProgress, PromptReady, TokenDelta
from exl2_tui.core.generation import filters
from exl2_tui.core.generation.filters import Candidates
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.requests import ChatRequest, CompletionRequest, LoadOptions, Message, SamplerSettings

GREEDY = SamplerSettings.greedy()


def answers(model_says: str = "ok, and") -> FakeModel:
    """After <|im_start|>assistant\\n the model says its line, then <|im_end|>."""
    tokenizer = FakeTokenizer()
    reply = [*tokenizer.encode(model_says), 4]
    header = [3, *tokenizer.encode("assistant\n")]

    def next_token(ids: Sequence[int]) -> int:
        for done in range(len(reply)):
            if list(ids[len(ids) - done - len(header) :]) == header + reply[:done]:
                return reply[done]
        return 90

    return FakeModel(next_token)


def ask(engine: Engine, messages: Sequence[Message], **options: object) -> tuple[list[Event], Message]:
    request = ChatRequest(tuple(messages), mode="chatml", sampler=GREEDY, **options)  # type: ignore[arg-type]
    events = list(engine.chat(request, request_id=5))
    text = "".join(e.text for e in events if isinstance(e, TokenDelta))
    ids = tuple(i for e in events if isinstance(e, TokenDelta) for i in e.token_ids)
    return events, Message("assistant", text, ids)


def ready(events: Sequence[Event]) -> PromptReady:
    return next(e for e in events if isinstance(e, PromptReady))


def finished(events: Sequence[Event]) -> GenerationFinished:
    assert isinstance(events[-1], GenerationFinished)
    return events[-1]


def test_an_answer_from_prompt_to_end() -> None:
    engine = fake_engine(answers())
    events, reply = ask(engine, [Message("user", "hello?")])
    assert [type(e) for e in events[:2]] == [PromptReady, PrefillProgress]
    assert all(e.request_id == 5 for e in events)  # type: ignore[attr-defined]
    assert reply.content == "ok, and"
    assert FakeTokenizer().decode(reply.token_ids or ()) == "ok, and"
    assert finished(events).reason == "stop_token"
    assert ready(events).mode == "chatml"


def test_the_second_turn_finds_the_first_in_the_cache() -> None:
    engine = fake_engine(answers())
    messages = [Message("system", "be kind"), Message("user", "one")]
    events, reply = ask(engine, messages)
    used = finished(events).context_used
    events, _ = ask(engine, [*messages, reply, Message("user", "two")])
    assert ready(events).cached_tokens == used == finished(events).cached_tokens


@pytest.mark.parametrize(("context", "often"), [(300, 15), (800, 40)])
def test_fifty_turns_in_a_small_context(context: int, often: int) -> None:
    engine = fake_engine(answers(), context=context)
    messages = [Message("system", "Be very kind to people.")]
    dropped_before = 0
    reused = 0
    for turn in range(50):
        messages.append(Message("user", f"question number {turn}"))
        events, reply = ask(engine, messages, max_new_tokens=40)
        messages.append(reply)
        start, end = ready(events), finished(events)
        assert reply.content == "ok, and"
        assert end.reason == "stop_token"
        assert start.prompt_tokens <= context - 40
        assert start.dropped >= dropped_before
        assert start.dropped <= 2 * turn
        reused += start.dropped == dropped_before and end.cached_tokens > 0.6 * start.prompt_tokens
        dropped_before = start.dropped
        shown = engine.preview(messages[:1] + messages[1 + start.dropped : -1], "chatml")
        assert "Be very kind" in "".join(segment.text for segment in shown.segments)
    assert dropped_before > 50
    assert reused > often


def test_a_message_longer_than_the_context() -> None:
    engine = fake_engine(answers(), context=100)
    with pytest.raises(ContextError, match=r"tokens, but the context holds 100"):
        ask(engine, [Message("user", "x" * 200)])
    assert ask(engine, [Message("user", "short")])[1].content == "ok, and"


def test_there_must_be_a_question() -> None:
    engine = fake_engine(answers())
    for messages in ([], [Message("system", "x")], [Message("user", "q"), Message("assistant", "")]):
        with pytest.raises(PromptError, match="no question"):
            ask(engine, messages)


def test_stop_strings_of_the_mode_and_of_the_request() -> None:
    tokenizer = FakeTokenizer()
    reply = tokenizer.encode(" Fine, thanks.\nUser: and you?")
    header = [*tokenizer.encode("Chatbort"), *tokenizer.encode(":")]

    def next_token(ids: Sequence[int]) -> int:
        starts = [i for i in range(len(ids) + 1) if list(ids[i - len(header) : i]) == header]
        return reply[len(ids) - starts[-1]] if starts else 90

    engine = fake_engine(FakeModel(next_token))
    request = ChatRequest((Message("user", "hi"),), mode="raw", sampler=GREEDY)
    events = list(engine.chat(request))
    assert "".join(e.text for e in events if isinstance(e, TokenDelta)).rstrip() == "Fine, thanks."
    assert finished(events).reason == "stop_string"
    request = ChatRequest((Message("user", "hi"),), mode="raw", sampler=GREEDY, stop=("thanks",))
    events = list(engine.chat(request))
    assert "".join(e.text for e in events if isinstance(e, TokenDelta)) == "Fine, "


def test_completion_starts_with_bos_and_keeps_leading_space() -> None:
    tokenizer = FakeTokenizer()
    reply = [*tokenizer.encode(" world"), 2]
    seen: list[list[int]] = []

    def next_token(ids: Sequence[int]) -> int:
        seen.append(list(ids))
        return reply[len(ids) - 2]

    engine = fake_engine(FakeModel(next_token))
    events = list(engine.complete(CompletionRequest("hello", sampler=GREEDY)))
    assert seen[0] == [1, *tokenizer.encode("hello")]
    assert "".join(e.text for e in events if isinstance(e, TokenDelta)) == " world"
    assert finished(events).reason == "stop_token"
    special = list(engine.complete(CompletionRequest("<|im_end|>", special=True, sampler=GREEDY, max_new_tokens=0)))
    assert ready(special).prompt_tokens == 2


def test_nothing_works_without_a_model() -> None:
    engine = Engine()
    assert engine.loaded is None
    with pytest.raises(NotFoundError, match="no model is loaded"):
        list(engine.chat(ChatRequest((Message("user", "x"),))))
    with pytest.raises(NotFoundError, match="no model is loaded"):
        engine.preview((), "raw")
    engine.unload()


def test_unload_frees_the_model() -> None:
    alive = []

    def opener(path, options, progress, cancel, make_room):  # type: ignore[no-untyped-def]
        model = FakeModel()
        alive.append(weakref.ref(model))
        return loaded_model(path, model)

    engine = Engine(opener)
    engine.load(Path("model"))
    ask(engine, [Message("user", "hi")], max_new_tokens=3)
    assert alive[0]() is not None
    engine.unload()
    assert engine.loaded is None
    gc.collect()
    assert alive[0]() is None


def test_loading_frees_the_old_model_first_and_a_bad_one_leaves_it() -> None:
    models = [FakeModel(), FakeModel()]
    order: list[str] = []

    def opener(path, options, progress, cancel, make_room):  # type: ignore[no-untyped-def]
        if path.name == "bad":
            raise CheckpointError("broken", file=path)
        make_room()
        order.append(f"{path.name}: {[model.closed for model in models]}")
        return loaded_model(path, models[len(order) - 1])

    engine = Engine(opener)
    engine.load(Path("first"), LoadOptions())
    with pytest.raises(CheckpointError):
        engine.load(Path("bad"))
    assert engine.loaded is not None and engine.loaded.model == "first"
    info = engine.load(Path("second"))
    assert order == ["first: [False, False]", "second: [True, False]"]
    assert info.model == "second" and info.context == 512 and info.kernels == "fake"


def test_model_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert model_name(Path("models/nano-chat")) == "nano-chat"
    assert model_name(Path("hub/models--Qwen--Qwen2.5-0.5B/snapshots/060db64")) == "Qwen/Qwen2.5-0.5B"
    monkeypatch.chdir(tmp_path)
    assert model_name(Path()) == tmp_path.name


def test_the_sampler_is_explained_step_by_step_as_it_filters() -> None:
    engine = fake_engine(answers())
    with pytest.raises(NotFoundError, match="no prompt has been run"):
        engine.explain_sampling(SamplerSettings())
    ask(engine, [Message("user", "hello?")])
    end = engine.current.generator.prompt_end
    assert end is not None
    settings = SamplerSettings(0.7, 40, 0.9, 0.02, 0.95, 1.3)
    steps = engine.explain_sampling(settings, show=300)
    assert [step.name for step in steps] == [
        "model", "penalties", "temperature", "top_k", "top_p", "min_p", "typical_p",
    ]  # fmt: skip
    size = engine.current.tokenizer.vocab_size
    seen = Sampler(settings, size).history(end.ids).seen()
    ids = torch.arange(size)
    logits = end.logits[:size]
    candidates = Candidates(ids, logits)
    wanted = [candidates]
    candidates = Candidates(ids, filters.penalize(logits, seen, 1.3, 0, 0))
    wanted.append(candidates)
    for narrow, value in (
        (filters.scale, 0.7),
        (filters.keep_top_k, 40),
        (filters.keep_top_p, 0.9),
        (filters.keep_min_p, 0.02),
        (filters.keep_typical, 0.95),
    ):
        candidates = narrow(candidates, value)  # type: ignore[operator]
        wanted.append(candidates)
    for step, left in zip(steps, wanted, strict=True):
        assert step.survivors == len(left)
        assert {chance.token for chance in step.best} == set(left.ids.tolist())
        chances = dict(zip(left.ids.tolist(), left.probabilities().tolist(), strict=True))
        assert {chance.token: chance.probability for chance in step.best} == pytest.approx(chances)
    texts = {chance.token: chance.text for chance in steps[0].best}
    assert texts[1] == "<s>" and texts[5 + ord("o")] == "o"
    assert [step.name for step in engine.explain_sampling(GREEDY)] == ["model", "greedy"]
    assert engine.explain_sampling(GREEDY)[-1].best[0].text == "o"  # what it said


def test_an_answer_goes_on_where_it_was_stopped() -> None:
    engine = fake_engine(answers())
    question = Message("user", "hello?")
    _, whole = ask(engine, [question])
    _, begun = ask(engine, [question], max_new_tokens=3)
    assert whole.content.startswith(begun.content) and begun.content != whole.content
    _, rest = ask(engine, [question, begun])
    assert begun.content + rest.content == whole.content
    assert (begun.token_ids or ()) + (rest.token_ids or ()) == whole.token_ids
    # Without its tokens, as after a crash, the text is encoded again; a space that begins the rest is kept.
    begun = Message("assistant", "ok,")
    _, rest = ask(engine, [question, begun])
    assert rest.content == " and"
    with pytest.raises(PromptError, match="no question"):
        ask(engine, [begun])
