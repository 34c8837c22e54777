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
    return unpack_top(pack_top(logits, count, vocab).cpu(), logits, vocab)


def pack_top(logits: Tensor, count: int, vocab: int) -> Tensor:
    """The best logits' bits and their ids, (2, n) int32 on the same device, to be moved at once."""
    known = logits[:vocab]
    values, ids = torch.topk(known, min(count, len(known)))
    return torch.stack((values.view(torch.int32), ids.to(torch.int32)))


def unpack_top(packed: Tensor, logits: Tensor, vocab: int) -> TopLogits:
    """packed: what pack_top made of logits (V,), on the CPU; copied."""
    ids, values = packed[1].to(torch.int64), packed[0].view(torch.float32).clone()
    return TopLogits(ids, values, len(ids) == min(vocab, len(logits)), logits.cpu)
