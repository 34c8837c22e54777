"""Causal self-attention with grouped heads, rope, an optional norm of q and k, and an optional window."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.cache import KVCache
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.model.rope import RopeTable, rotate


class Attention:
    """H query heads share G key/value heads, H/G neighbours each."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        q: Linear,
        k: Linear,
        v: Linear,
        o: Linear,
        q_norm: RMSNorm | None,
        k_norm: RMSNorm | None,
    ) -> None:
        self.layer = layer
        self.head_dim = config.head_dim
        self.window = config.window(layer)
        self.q, self.k, self.v, self.o = q, k, v, o
        self.q_norm, self.k_norm = q_norm, k_norm

    def forward(self, x: Tensor, rope: RopeTable, cache: KVCache | None) -> Tensor:
        """x (B, T, C), the T positions of `rope` -> (B, T, C). With a cache B is 1 and the tokens come after its."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (linear.forward(x).view(heads) for linear in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm.forward(q), self.k_norm.forward(k)
        q, k, v = rotate(q, rope).transpose(1, 2), rotate(k, rope).transpose(1, 2), v.transpose(1, 2)
        start = 0
        if cache is not None:
            start = cache.length
            keys, values = cache.append(self.layer, k[0], v[0])
            k, v = keys[None], values[None]
        mask = attention_mask(start, x.shape[1], self.window, x.device)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.o.forward(mixed.transpose(1, 2).flatten(2))


def attention_mask(start: int, count: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which of the S = start + count keys each of the `count` last tokens sees: (count, S) bool, None for all.

    A window of W tokens includes the token itself.
    """
    if count == 1 and (window is None or start < window):
        return None
    distance = torch.arange(start, start + count, device=device)[:, None] - torch.arange(start + count, device=device)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)
