"""Which turns leave a conversation that has outgrown the context."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from exl2_tui.core.errors import ContextError
from exl2_tui.core.generation.overflow import fit
from exl2_tui.core.requests import Message


@dataclass(frozen=True)
class Encoded:
    ids: tuple[int, ...]
    kept: tuple[str, ...]


def encode(messages: Sequence[Message]) -> Encoded:
    """Two tokens for the template and one per character of each message."""
    return Encoded(tuple(range(sum(2 + len(m.content) for m in messages))), tuple(m.content for m in messages))


def chat(turns: int, size: int = 8) -> list[Message]:
    messages = [Message("system", "system")]
    for i in range(turns):
        messages += [Message("user", f"q{i}".ljust(size)), Message("assistant", f"a{i}".ljust(size))]
    return [*messages, Message("user", "last".ljust(size))]


def test_what_fits_is_left_alone() -> None:
    prompt, dropped = fit(chat(3), encode, 200, 50)
    assert dropped == 0
    assert prompt.kept == tuple(m.content for m in chat(3))


def test_the_oldest_turns_leave_in_pairs_and_the_system_prompt_stays() -> None:
    messages = chat(20)
    prompt, dropped = fit(messages, encode, 200, 50)
    assert dropped % 2 == 0 and dropped > 0
    assert prompt.kept == ("system", *(m.content for m in messages[1 + dropped :]))
    assert len(prompt.ids) <= 150
    assert len(prompt.ids) > 50  # not far more than needed


def test_the_beginning_of_the_prompt_rarely_changes() -> None:
    first_kept = [fit(chat(turns), encode, 400, 100)[0].kept[1] for turns in range(60)]
    changes = sum(a != b for a, b in itertools.pairwise(first_kept))
    assert 5 <= changes <= 12  # 60 turns of 20 tokens, 100 tokens a time


def test_the_reply_may_take_the_rest_if_only_the_last_turn_is_left() -> None:
    messages = [Message("user", "x" * 50), Message("assistant", "y" * 50), Message("user", "z" * 90)]
    prompt, dropped = fit(messages, encode, 100, 50)
    assert dropped == 2
    assert len(prompt.ids) == 92


def test_a_batch_that_cannot_be_had_takes_only_what_must_go() -> None:
    messages = [
        Message("user", "a" * 8),
        Message("assistant", "b" * 8),
        Message("user", "c" * 8),
        Message("assistant", "d" * 8),
        Message("user", "z" * 160),
    ]
    prompt, dropped = fit(messages, encode, 240, 50)  # 202 tokens, limit 190, a batch would be 60
    assert dropped == 2
    assert prompt.kept[0] == "c" * 8


def test_a_message_longer_than_the_context_is_refused_with_numbers() -> None:
    with pytest.raises(ContextError, match=r"the message needs 102 tokens, but the context holds 100"):
        fit([Message("user", "x" * 100)], encode, 100, 50)
    with pytest.raises(ContextError, match=r"the message and the system prompt need 110 tokens"):
        fit([Message("system", "system"), *chat(5)[1:-1], Message("user", "x" * 100)], encode, 100, 50)


def test_a_greeting_before_the_first_question_leaves_with_it() -> None:
    messages = [Message("assistant", "hello" * 10), Message("user", "q" * 50), Message("user", "w" * 50)]
    prompt, dropped = fit(messages, encode, 120, 30)
    assert dropped == 2
    assert prompt.kept == ("w" * 50,)
