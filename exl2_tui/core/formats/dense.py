"""One linear layer of plain floating-point numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """weight (N, K) float16, bfloat16 or float32 as Hugging Face stores it; bias (N,) of the same kind, or None."""

    weight: Tensor
    bias: Tensor | None

    kind: Literal["float"] = "float"

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def bits_per_weight(self) -> float:
        return 8.0 * self.weight.element_size()

    @property
    def nbytes(self) -> int:
        """Stored bytes, bias included."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def dequantize(self) -> Tensor:
        """(K, N) view in the stored dtype; nothing is copied."""
        return self.weight.t()
