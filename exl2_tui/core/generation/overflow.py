"""What of a long conversation still fits into the context. Knows messages and counts, not how they are encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from exl2_tui.core.errors import ContextError
from exl2_tui.core.requests import Message


class Prompt(Protocol):
    """An encoded conversation."""

    @property
    def ids(self) -> tuple[int, ...]: ...


P = TypeVar("P", bound=Prompt)


def fit(
    messages: Sequence[Message], encode: Callable[[Sequence[Message]], P], context: int, max_new_tokens: int
) -> tuple[P, int]:
    """The prompt without as many of the oldest turns as must go, and how many messages that are.

    A turn is a user's message with the answers to it; system messages and the last turn always stay. A quarter of the
    context (or max_new_tokens, if that is less) is kept for the reply. Turns leave in batches of about a quarter of
    the context: if one left with every new question, the beginning of the prompt would change each time and nothing in
    the cache could be used again. The batch depends on the conversation alone, so the same one gives the same prompt.
    Raises ContextError if the last turn alone does not fit.
    """
    system = [message for message in messages if message.role == "system"]
    turns = _turns(messages)
    prompts: dict[int, P] = {}

    def size(drop: int) -> int:
        if drop not in prompts:
            prompts[drop] = encode([*system, *(message for turn in turns[drop:] for message in turn)])
        return len(prompts[drop].ids)

    def fewest(limit: int) -> int:
        """How many turns must go for a prompt of `limit` tokens; all but the last if that is not enough."""
        low, high = 0, max(0, len(turns) - 1)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if size(middle) <= limit else (middle + 1, high)
        return low

    limit = context - min(max_new_tokens, context // 4)
    whole = size(0)
    drop = 0
    if whole > limit:
        batch = max(1, context // 4)
        drop = fewest(whole - -(-(whole - limit) // batch) * batch)
        if size(drop) > limit or drop == len(turns) - 1:
            drop = fewest(limit)
    if size(drop) >= context:
        what = "the message and the system prompt need" if system else "the message needs"
        raise ContextError(
            f"{what} {size(drop):,} tokens, but the context holds {context:,}",
            hint="Shorten the message, or load the model with a longer context",
        )
    return prompts[drop], sum(map(len, turns[:drop]))


def _turns(messages: Sequence[Message]) -> list[list[Message]]:
    turns: list[list[Message]] = []
    for message in messages:
        if message.role == "system":
            continue
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns
