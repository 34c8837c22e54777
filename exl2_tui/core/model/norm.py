"""RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor


class RMSNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis; statistics in float32.

    weight (C,), or (heads, D) for the norm of each head of q or k.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) or (..., heads, D) -> the same shape and dtype."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)
