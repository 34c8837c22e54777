"""TokenHistory: which tokens the penalties look back on, kept up to date one token at a time."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter, deque
from collections.abc import Iterable

import torch
from torch import Tensor


class TokenHistory:
    """How often each token occurs among the last `window` tokens.

    Appending costs the same whether the context has a hundred tokens or a hundred thousand, and `seen` copies nothing.
    window: tokens to look back on; -1 means all of them, 0 none. limit: ids from here on are not counted, because the
    sampler never sees their logits.

    ids (limit,) int64 and counts (limit,) float32 hold the distinct tokens and how often each occurs, in no particular
    order; the first len() entries are in use.
    """

    def __init__(self, window: int, limit: int) -> None:
        self._window = window
        self._limit = limit if window else 0
        self._recent: deque[int] = deque()  # only kept for a finite window, to know which token leaves it
        self._slots: dict[int, int] = {}  # token -> its place in the two tensors
        self.ids = torch.empty(self._limit, dtype=torch.int64)
        self.counts = torch.empty(self._limit, dtype=torch.float32)
        # The same memory for Python: to torch, a single number is a call that gives the interpreter lock away.
        self._ids = (ctypes.c_int64 * self._limit).from_address(self.ids.data_ptr())
        self._counts = (ctypes.c_float * self._limit).from_address(self.counts.data_ptr())

    def append(self, token: int) -> None:
        """Adds the newest token; the one that falls out of the window is forgotten."""
        if self._window == 0:
            return
        if self._window > 0:
            self._recent.append(token)
            if len(self._recent) > self._window:
                self._add(self._recent.popleft(), -1)
        self._add(token, 1)

    def extend(self, tokens: Iterable[int]) -> None:
        """As append for each token, but a long prompt is counted at once."""
        tokens = list(tokens)
        if self._window >= 0:
            tokens = tokens[-self._window :] if self._window else []
            for token in tokens:
                self.append(token)
            return
        for token, count in Counter(tokens).items():
            self._add(token, count)

    def seen(self) -> tuple[Tensor, Tensor]:
        """The entries in use: the distinct tokens (U,) and how often each occurs (U,)."""
        return self.ids[: len(self)], self.counts[: len(self)]

    @property
    def room(self) -> int:
        """How many tokens can be added before one falls out of the window."""
        return self._window - len(self._recent) if self._window > 0 else sys.maxsize

    def __len__(self) -> int:
        """How many distinct tokens there are."""
        return len(self._slots)

    def _add(self, token: int, change: int) -> None:
        if not 0 <= token < self._limit:
            return
        slot = self._slots.get(token)
        if slot is None:
            slot = self._slots[token] = len(self._slots)
            self._ids[slot] = token
            self._counts[slot] = change
            return
        count = self._counts[slot] = self._counts[slot] + change
        if count == 0:  # keep the tensors dense: the last entry moves into the gap
            last = len(self._slots) - 1
            moved = self._ids[last]
            self._ids[slot], self._counts[slot] = moved, self._counts[last]
            self._slots[moved] = slot
            del self._slots[token]
