"""The gated feed-forward half of a block."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from exl2_tui.core.model.linear import Linear


class MLP:
    """down(silu(gate x) * up x)."""

    def __init__(self, gate: Linear, up: Linear, down: Linear) -> None:
        self.gate = gate
        self.up = up
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return self.down.forward(functional.silu(self.gate.forward(x)) * self.up.forward(x))
