"""Passages: tokens that a model writes by itself, a step and a choice in turn, before anybody looks at them.

Between two tokens Python needs the interpreter's lock some three times, and while a screen is drawn waits for it each
time. A passage is one native call of some hundredths of a second. On a GPU it also spares the launch of every step.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.model.protocol import Cache


@dataclass(frozen=True, slots=True)
class Choice:
    """What is needed to choose `count` tokens one after another, in the form of csrc/cpu/choosing.h.

    vocab: ids from here on are never chosen. seen (>= distinct,) int64 and counts, float32: the distinct tokens that
    the penalties look back on and how often each occurs; with uses_history, those that are chosen join them.
    settings (8,) float64; uniforms float64: random numbers in [0, 1), of which the first `used` are spent.
    preselection: so many of the largest logits nearly always tell the token; 0: all are needed.
    """

    count: int
    vocab: int
    seen: Tensor
    counts: Tensor
    distinct: int
    uses_history: bool
    settings: Tensor
    uniforms: Tensor
    used: int
    preselection: int


@dataclass(frozen=True, slots=True)
class Passage:
    """tokens: what was chosen, in order. logits (V,) float32 of the token behind them if it could not be told for sure
    from the largest few; None: the last token has not been run yet."""

    tokens: list[int]
    logits: Tensor | None


@runtime_checkable
class WritesPassages(Protocol):
    """A model that can choose tokens itself."""

    def write(
        self,
        token: int,
        cache: Cache,
        choice: Choice,
        *,
        stop_ids: Collection[int],
        seconds: float,
        cancel: CancelToken | None = None,
    ) -> Passage:
        """Runs `token` and what is chosen behind it: up to choice.count tokens, or up to one of stop_ids, and no step
        that would begin after `seconds`. The cache then holds all of them but the last, or all if there are logits.

        Errors as of LanguageModel.forward. Cancelled after some tokens, it returns those.
        """
