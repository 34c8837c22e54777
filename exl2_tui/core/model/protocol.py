"""What the rest of the core may ask of a model, whoever computes it. Knows nothing of weights or kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.config import ModelConfig


class Cache(Protocol):
    """Keys and values of the tokens a model has already seen; token i of the sequence lies at position i."""

    length: int  # tokens stored

    @property
    def capacity(self) -> int:
        """Tokens it has room for."""

    @property
    def nbytes(self) -> int:
        """Memory it may use, in bytes."""

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens. Raises ShapeError if fewer are stored."""


class LanguageModel(Protocol):
    """Token ids in, logits out."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def weight_bytes(self) -> int:
        """Memory held by the weights, in bytes."""

    @property
    def kernels(self) -> str:
        """What computes it, for display, such as "AVX-512" or "reference (torch)"."""

    def new_cache(self, context: int, kind: str = "fp16") -> Cache:
        """An empty cache for `context` tokens. Raises UnsupportedError for a kind this model cannot use."""

    def forward(
        self,
        ids: Tensor | Sequence[int],
        cache: Cache,
        *,
        all_logits: bool = False,
        cancel: CancelToken | None = None,
    ) -> Tensor:
        """Appends T >= 1 tokens to the cache; returns float32 logits on the CPU.

        (V,) for the token after the last one, or with all_logits (T, V), row t for the token after ids[t].
        Raises ShapeError for an id outside the vocabulary, ContextError if the cache is too small,
        CheckpointError if what the model reads of its files meanwhile cannot be read any more, CancelledError if
        cancelled; the cache is unchanged after any error.
        """

    def close(self) -> None:
        """Gives the weights back; the model cannot be used afterwards."""
