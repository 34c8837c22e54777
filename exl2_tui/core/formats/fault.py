"""Fault: the first thing found wrong with the tensors of a layer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from exl2_tui.core.errors import CheckpointError


class Fault(NamedTuple):
    """The tensor by its short name, what it should be and what it is."""

    tensor: str
    expected: str
    found: object

    def error(self, file: Path | str | None, prefix: str) -> CheckpointError:
        tensor = f"{prefix}.{self.tensor}" if prefix else self.tensor
        return CheckpointError(f"expected {self.expected}, found {self.found}", file=file, tensor=tensor)


class Expected(NamedTuple):
    """What a stored tensor has to look like."""

    name: str
    tensor: Tensor
    dtype: torch.dtype
    shape: tuple[int, ...]


def layout_fault(layout: list[Expected]) -> Fault | None:
    """The first tensor whose dtype or shape is another than expected, or which is empty."""
    for name, tensor, dtype, shape in layout:
        if tensor.dtype != dtype:
            return Fault(name, f"dtype {dtype}", tensor.dtype)
        if tuple(tensor.shape) != shape:
            return Fault(name, f"shape {shape}", tuple(tensor.shape))
        if tensor.numel() == 0:
            return Fault(name, "at least one element", f"shape {shape}")
    return None
