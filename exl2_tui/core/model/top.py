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
    """logits (V,) float32 on any device. One transfer of 8 bytes per logit kept; NaN counts as largest."""
    known = logits[:vocab]
    count = min(count, len(known))
    values, ids = torch.topk(known, count)
    moved = torch.stack((values.view(torch.int32), ids.to(torch.int32))).cpu()
    return TopLogits(moved[1].to(torch.int64), moved[0].view(torch.float32), count == len(known), logits.cpu)
