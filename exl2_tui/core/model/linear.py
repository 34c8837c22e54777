"""A linear layer with a dense weight, which the quantizer can watch and exchange."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


class Linear:
    """y = x W^T + bias. weight (N, K) may be assigned; the observer, if set, is called with every input (..., K)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.observer: Callable[[Tensor], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., N)."""
        if self.observer is not None:
            self.observer(x)
        return functional.linear(x, self.weight, self.bias)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (self.bias.nbytes if self.bias is not None else 0)
