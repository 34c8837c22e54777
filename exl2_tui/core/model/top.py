"""The largest few logits of a token: all that most samplers look at, and all that has to leave a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.model.protocol import Cache


@dataclass(frozen=True, slots=True)
class TopLogits:
    """ids (n,) int64 and values (n,) float32 on the CPU, largest first.

    complete: there are no others. everything: fetches all logits (V,); only until the model runs again.
    """

    ids: Tensor
    values: Tensor
    complete: bool
    everything: Callable[[], Tensor]


@runtime_checkable
class Preselecting(Protocol):
    """A model whose logits lie on a GPU and need not all come to the CPU."""

    def forward_top(
        self, ids: Sequence[int], cache: Cache, count: int, vocab: int, *, cancel: CancelToken | None = None
    ) -> TopLogits:
        """As LanguageModel.forward, but with the `count` largest logits of the first `vocab`."""


def top_logits(logits: Tensor, count: int, vocab: int) -> TopLogits:
    """logits (V,) float32 on any device; NaN counts as largest."""
    values, ids = torch.topk(logits[:vocab], min(count, vocab, len(logits)))
    return TopLogits(ids.cpu(), values.cpu(), len(ids) == min(vocab, len(logits)), logits.cpu)
