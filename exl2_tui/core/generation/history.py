"""TokenHistory: which tokens the penalties look back on, kept up to date one token at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import torch
from torch import Tensor


class TokenHistory:
    """How often each token occurs among the last `window` tokens.

    Appending costs the same whether the context has a hundred tokens or a hundred thousand, and `seen` copies nothing.
    window: tokens to look back on; -1 means all of them, 0 none. limit: ids from here on are not counted, because the
    sampler never sees their logits.
    """

    def __init__(self, window: int, limit: int) -> None:
        self._window = window
        self._limit = limit
        self._recent: deque[int] = deque()  # only kept for a finite window, to know which token leaves it
        self._slots: dict[int, int] = {}  # token -> its place in the two tensors
        self._ids = torch.empty(64, dtype=torch.int64)
        self._counts = torch.empty(64, dtype=torch.float32)

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
        """The distinct tokens (U,) int64 and how often each occurs (U,) float32, in no particular order."""
        used = len(self._slots)
        return self._ids[:used], self._counts[:used]

    def _add(self, token: int, change: int) -> None:
        if not 0 <= token < self._limit:
            return
        slot = self._slots.get(token)
        if slot is None:
            slot = len(self._slots)
            if slot == len(self._ids):
                self._ids = torch.cat((self._ids, torch.empty_like(self._ids)))
                self._counts = torch.cat((self._counts, torch.empty_like(self._counts)))
            self._slots[token] = slot
            self._ids[slot] = token
            self._counts[slot] = change
            return
        count = float(self._counts[slot]) + change
        self._counts[slot] = count
        if count == 0:  # keep the tensors dense: the last entry moves into the gap
            last = len(self._slots) - 1
            moved = int(self._ids[last])
            self._ids[slot], self._counts[slot] = self._ids[last], self._counts[last]
            self._slots[moved] = slot
            del self._slots[token]
